"""Evaluation over all items: the best and the rank of the true one, tiled against whole scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, measure
from benchmarks.limits import Limits
from jaxnets.kernels import linear_label_rank, linear_top_k

SIZES = 256, 128, 1_000_000  # users, features, items
QUICK_ITEMS = 100_000
K, SEEN = 100, 50
QUICK = f"Evaluation: 1 round of 3; {QUICK_ITEMS:,} items of 1,000,000."


def problem(users: int, features: int, items: int) -> tuple[jax.Array, ...]:
    """Hidden states, a table, true items, and those that a user has seen."""
    draw = np.random.default_rng(0)
    hidden, weight = (draw.normal(size=(n, features)).astype(np.float32) for n in (users, items))
    true, seen = draw.integers(0, items, users), draw.integers(0, items, (users, SEEN))
    return tuple(jnp.asarray(a) for a in (hidden, weight, true, seen))


def _without(scores, seen):
    return scores.at[jnp.arange(len(scores))[:, None], seen].set(-jnp.inf)


def naive_top_k(hidden, weight, true, seen):
    """What one writes today: all scores, then the largest."""
    return tuple(lax.top_k(_without(hidden @ weight.T, seen), K))


def naive_rank(hidden, weight, true, seen):
    """The same for the rank: the scores above that of the true item."""
    scores = hidden @ weight.T
    own = jnp.take_along_axis(scores, true[:, None], 1)
    return (_without(scores, seen) > own).sum(1)


def tiled_top_k(hidden, weight, true, seen):
    """Ours."""
    return tuple(linear_top_k(hidden, weight, K, exclude=seen))


def tiled_rank(hidden, weight, true, seen):
    """Ours."""
    return linear_label_rank(hidden, weight, true, exclude=seen).above


def _torch_case(arrays, flops) -> Case:
    import torch

    hidden, weight, _, seen = (torch.from_numpy(np.array(a)) for a in arrays)
    seen = seen.long()

    def run():
        with torch.no_grad():
            scores = (hidden @ weight.T).scatter_(1, seen, -torch.inf)
            return [a.numpy() for a in torch.topk(scores, K)]

    return Case("torch matmul, topk", run, flops)


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    users, features, items = SIZES
    if suite == "quick":
        items = min(items, QUICK_ITEMS)
    arrays = problem(users, features, items)
    flops = 2.0 * users * features * items
    cases = [
        compiled_case("naive top-k", naive_top_k, *arrays, flops=flops),
        compiled_case("tiled top-k", tiled_top_k, *arrays, flops=flops),
        compiled_case("naive rank", naive_rank, *arrays, flops=flops),
        compiled_case("tiled rank", tiled_rank, *arrays, flops=2 * flops),
    ]
    if peers["torch"]:
        cases.append(_torch_case(arrays, flops))
    rounds = 1 if suite == "quick" else 3
    group = f"evaluation, {users} users x {features}, {items} items"
    rows = measure(group, cases, rounds, limits)
    by_name = {row["name"]: row for row in rows}
    memory = {row["name"]: row["extra_info"].get("temp_bytes") for row in rows}
    pairs = [(f"naive {name}", f"tiled {name}") for name in ("top-k", "rank")]
    torch = [ratio(by_name["torch matmul, topk"], by_name["tiled top-k"])] if peers["torch"] else []
    return rows, [
        bar(
            "evaluation: naive / tiled, time of the best and of the rank",
            *(ratio(by_name[naive], by_name[tiled]) for naive, tiled in pairs),
        ),
        bar(
            "evaluation: naive / tiled, temporary memory of both",
            *(memory[naive] / memory[tiled] for naive, tiled in pairs),
            at_least=5,
        ),
        bar("evaluation: torch / tiled, time of the best", *torch),
    ]
