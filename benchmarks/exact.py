"""Full softmax: value and gradient of the exact loss, tiled against naive and against its limit."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, difference, measure, normal
from benchmarks.limits import Limits
from jaxnets.kernels import Tiles, linear_softmax_cross_entropy

SIZES = 4096, 512, 32_768  # tokens, features, classes
OTHER_SIZES = [
    (512, 128, 8192), (512, 2048, 32_768), (1024, 512, 262_144), (2048, 2048, 8192),
    (16_384, 128, 8192),
]  # fmt: skip
LEAN = Tiles(memory_mb=25)
FASTER_THAN = (
    "naive optax", "torch cross_entropy", "torch linear_cross_entropy",
    "torch linear_cross_entropy, its default options", "jax-cce",
)  # fmt: skip
QUICK = "Exact loss: 1 round of 5; no loss a token, no value only, no 131,072 classes."


def problem(tokens: int, features: int, vocab_size: int, dtype=jnp.float32):
    """Hidden states, weights and labels of an output layer."""
    weight = (normal(1, vocab_size, features) * features**-0.5).astype(dtype)
    labels = np.random.default_rng(2).integers(0, vocab_size, tokens)
    return (
        normal(0, tokens, features, dtype=dtype),
        weight,
        jnp.zeros(vocab_size, dtype),
        jnp.asarray(labels, jnp.int32),
    )


def naive_loss(hidden, weight, bias, labels):
    """What one writes today: all logits, then optax."""
    logits = hidden @ weight.T + bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def ours(hidden, weight, bias, labels, **options):
    """The exact loss, with the bias where the gradient is asked for by number."""
    return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, **options)


def _mean_of_token_losses(hidden, weight, bias, labels):
    losses = ours(hidden, weight, bias, labels, reduction="none")
    return jnp.asarray(losses).mean()


def _matmuls(hidden, weight, logits_gradient):
    """The three matmuls that value and gradient cannot do without."""
    return hidden @ weight.T, logits_gradient @ weight, logits_gradient.T @ hidden


def _torch_cases(arrays, flops) -> list[Case]:
    """PyTorch's loss on whole logits; that of a linear layer too, where this PyTorch has it."""
    import torch

    functional = torch.nn.functional
    hidden, weight, bias = (torch.from_numpy(np.array(a)).requires_grad_() for a in arrays[:3])
    labels = torch.from_numpy(np.array(arrays[3])).long()
    losses = {
        "cross_entropy": lambda: functional.cross_entropy(hidden @ weight.T + bias, labels),
    }
    if hasattr(functional, "linear_cross_entropy"):
        linear = partial(functional.linear_cross_entropy, hidden, weight, labels, linear_bias=bias)
        chunked = partial(linear, options=torch.nn.LinearCrossEntropyOptions())
        losses |= {
            "linear_cross_entropy": linear,
            "linear_cross_entropy, its default options": chunked,
        }

    def run(function):
        for tensor in (hidden, weight, bias):
            tensor.grad = None
        loss = function()
        loss.backward()
        return float(loss.detach())

    return [Case(f"torch {name}", partial(run, loss), flops) for name, loss in losses.items()]


def jax_cce_case(arrays, flops) -> Case:
    """Cut cross-entropy in JAX."""
    import jax_cce

    hidden, weight, _, labels = arrays  # it has no bias
    gradient = jax.value_and_grad(jax_cce.linear_cross_entropy, (0, 1))
    return compiled_case("jax-cce", gradient, hidden, weight, labels, flops=flops)


def tokamax_case(arrays, flops) -> Case:
    """By chunks, which it has to be told on CPU; else it makes whole logits there."""
    from tokamax import linear_softmax_cross_entropy_loss

    def loss(hidden, table, labels):
        return linear_softmax_cross_entropy_loss(
            hidden, labels, table, reduction="mean", implementation="chunked_xla"
        )

    hidden, weight, _, labels = arrays  # it has no bias
    gradient = jax.value_and_grad(loss, (0, 1))
    return compiled_case("tokamax", gradient, hidden, weight.T, labels, flops=flops)


def _torch_adaptive_case(arrays, vocab_size, features) -> Case:
    import torch

    cutoffs = [vocab_size // 16, vocab_size // 4]
    layer = torch.nn.AdaptiveLogSoftmaxWithLoss(features, vocab_size, cutoffs)
    hidden = torch.from_numpy(np.array(arrays[0])).requires_grad_()
    # Labels as Zipf has them: the adaptive softmax is fast because most of them are in the head.
    ranks = np.exp(np.random.default_rng(0).uniform(size=len(hidden)) * np.log(vocab_size))
    labels = torch.from_numpy(ranks.astype(np.int64) - 1)

    def run():
        layer.zero_grad()
        loss = layer(hidden, labels).loss
        loss.backward()
        return float(loss.detach())

    return Case("torch adaptive softmax (another model)", run)


def _with_gradient(name, loss, arrays, flops=None) -> Case:
    return compiled_case(name, jax.value_and_grad(loss, (0, 1, 2)), *arrays, flops=flops)


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    tokens, features, vocab_size = SIZES
    arrays = problem(tokens, features, vocab_size)
    flops = 3 * 2.0 * tokens * features * vocab_size
    cases = [
        _with_gradient("naive optax", naive_loss, arrays, flops),
        _with_gradient("tiled", ours, arrays, flops),
        _with_gradient("tiled, 25 MB", partial(ours, tiles=LEAN), arrays, flops),
        compiled_case(
            "three matmuls",
            _matmuls,
            *arrays[:2],
            jax.random.normal(jax.random.key(1), (tokens, vocab_size)),
            flops=flops,
        ),
    ]
    if suite != "quick":
        a_token = "tiled, a loss a token (two passes)"
        cases += [
            _with_gradient(a_token, _mean_of_token_losses, arrays, flops * 4 / 3),
            compiled_case("tiled, value only", ours, *arrays, flops=flops / 3),
        ]
    exact, tiled = (jax.block_until_ready(case.run()) for case in cases[:2])
    error = difference(tiled, exact)
    del exact, tiled
    if peers["torch"]:
        cases += [
            *_torch_cases(arrays, flops),
            _torch_adaptive_case(arrays, vocab_size, features),
        ]
    if peers.get("jax_cce"):
        cases.append(jax_cce_case(arrays, flops))
    if peers.get("tokamax"):
        cases.append(tokamax_case(arrays, flops))
    rounds = 1 if suite == "quick" else 5
    rows = measure(f"exact loss, {tokens}x{features}, {vocab_size} classes", cases, rounds, limits)
    by_name = {row["name"]: row for row in rows}
    temporary = {row["name"]: row["extra_info"].get("temp_bytes") for row in rows}
    bars = [
        *(
            bar(f"{name} / tiled, time", ratio(by_name[name], by_name["tiled"]), at_least=1.0)
            for name in FASTER_THAN
            if name in by_name
        ),
        bar(
            "tiled / three matmuls, time",
            ratio(by_name["tiled"], by_name["three matmuls"]),
            at_most=1.15,
        ),
        bar(
            "naive / tiled, temporary memory",
            temporary["naive optax"] / temporary["tiled"],
            at_least=4,
        ),
        bar(
            "naive / tiled, 25 MB: temporary memory",
            temporary["naive optax"] / temporary["tiled, 25 MB"],
            at_least=30,
        ),
        bar("tiled against naive, largest relative difference", error),
    ]
    del cases, arrays
    if suite == "quick":
        return rows, bars

    arrays = problem(tokens, features, 131_072)
    hundred = partial(ours, tiles=Tiles(memory_mb=100))
    case = _with_gradient("tiled, 100 MB", hundred, arrays, 4 * flops)
    rows += measure(f"exact loss, {tokens}x{features}, 131072 classes", [case], 1, limits)
    bars.append(
        bar(
            "tiled at 131,072 classes, asked for 100: MB beside its gradients",
            case.info["temp_bytes"] / 1e6,
            at_most=100,
        )
    )
    if suite == "full":
        faster = []
        for sizes in OTHER_SIZES:
            arrays = problem(*sizes)
            cases = [
                _with_gradient("naive optax", naive_loss, arrays),
                _with_gradient("tiled", ours, arrays),
            ]
            new = measure("exact loss, {}x{}, {} classes".format(*sizes), cases, 3, limits)
            faster.append(ratio(*new))
            rows += new
        bars.append(bar("naive / tiled, time, other sizes", *faster, at_least=1.0))
        for dtype in (jnp.bfloat16, jnp.float32):
            arrays = problem(1024, features, vocab_size, dtype)
            cases = [
                _with_gradient("naive optax", naive_loss, arrays),
                _with_gradient("tiled", ours, arrays),
            ]
            rows += measure(
                f"exact loss, {jnp.dtype(dtype).name}, 1024x512, 32768", cases, 3, limits
            )
    return rows, bars
