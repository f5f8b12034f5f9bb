"""LSTM and GRU forward and backward, beside what people use today: flax, Keras and PyTorch."""

from __future__ import annotations

from functools import partial
from statistics import geometric_mean

import jax.numpy as jnp
import numpy as np

from benchmarks.bars import bar, ratio
from benchmarks.harness import Suite, compiled_case, difference, measure
from benchmarks.limits import Limits
from benchmarks.recurrent_peers import (
    GRU,
    LSTM,
    Kind,
    comparable,
    flax_layer,
    flops,
    keras_case,
    ours,
    problem,
    step,
    torch_case,
)
from benchmarks.workers import WorkerCase

# batch, time, features, hidden
SHAPES = [(32, 128, 256, 256), (64, 256, 128, 128), (16, 100, 512, 512), (8, 1000, 12, 64)]
SKIPPED = (64, 256, 128, 128)
LONG = (8, 18_000, 12, 128)
KERAS = ("Keras on JAX", "Keras on TensorFlow")
QUICK_SHAPES = {"LSTM": SHAPES[::3], "GRU": SHAPES[3:]}
QUICK = (
    "LSTM: 2 shapes of 4, GRU: 1 of 4; 3 rounds of 9; no forward alone, no Keras, not 18,000 steps."
)


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    quick = suite == "quick"
    rounds = 3 if quick else 9
    parts = [_beside_peers(kind, limits, suite, peers, rounds) for kind in (LSTM, GRU)]
    parts.append(_skipping(limits, rounds, peers["torch"]))
    if not quick:
        parts.append(_long(limits))
    rows = [row for new, _ in parts for row in new]
    return rows, [found for _, bars in parts for found in bars]


def _beside_peers(
    kind: Kind, limits: Limits, suite: Suite, peers: dict[str, bool], rounds: int
) -> tuple[list[dict], list[dict]]:
    rows: list[dict] = []
    to_torch, to_flax, forward_to_flax, errors = [], [], [], []
    quick = suite == "quick"
    for shape in QUICK_SHAPES[kind.name] if quick else SHAPES:
        arrays, work = problem(*shape, kind), flops(*shape, kind)
        flax = flax_layer(*shape[2:], kind)
        cases = [
            compiled_case("ours", partial(step, ours), *arrays, flops=work),
            compiled_case("flax", partial(step, flax), *arrays, flops=work),
        ]
        if peers["torch"]:
            cases.append(torch_case(arrays, kind, work=work))
        expected, *others = (comparable(case.run(), kind) for case in cases)
        errors += [difference(other, expected) for other in others]
        if peers["keras"] and (suite == "full" or (suite == "standard" and shape == SHAPES[0])):
            cases += [
                keras_case(name, kind, shape, work)
                for name, peer in zip(KERAS, ("keras", "tensorflow"), strict=True)
                if peers[peer]
            ]
        new = measure(f"{kind.name} with gradient, {shape}", cases, rounds, limits)
        rows += new
        for case in cases:
            if isinstance(case, WorkerCase):
                case.close()
        to_flax.append(ratio(new[1], new[0]))
        if peers["torch"]:
            to_torch.append(ratio(new[0], new[2]))
        if quick:
            continue
        new = measure(
            f"{kind.name} forward, {shape}",
            [
                compiled_case("ours", ours, *arrays[:2], flops=work / 3),
                compiled_case("flax", flax, *arrays[:2], flops=work / 3),
            ],
            5, limits,
        )  # fmt: skip
        rows += new
        forward_to_flax.append(ratio(new[1], new[0]))
    name = f"{kind.name} with gradient"
    torch_mean = [geometric_mean(to_torch)] if to_torch else []
    bars = [
        bar(f"{name}: ours / PyTorch, geometric mean", *torch_mean, at_most=1.0),
        bar(f"{name}: ours / PyTorch, each shape", *to_torch),
        bar(f"{name}: flax / ours, each shape", *to_flax, at_least=1),
        bar(f"{kind.name} forward: flax / ours, each shape", *forward_to_flax, at_least=1),
        bar(f"{kind.name}: ours against flax and PyTorch, largest difference", max(errors)),
    ]
    if kind is LSTM:
        mean = geometric_mean(to_flax)
        bars.append(bar(f"{name}: flax / ours, geometric mean", mean, at_least=1.5))
    return rows, bars


def quarter_lengths(batch: int, time: int) -> np.ndarray:
    """Lengths of an exponential distribution, the longest ``time`` and the mean a quarter of it."""
    shape = -np.log1p(-(np.arange(batch) + 0.5) / batch)

    def scaled(mean):
        lengths = np.clip(np.rint(mean * shape), 1, time).astype(np.int64)
        lengths[-1] = time
        return lengths

    # Clipping and the one longest row move the mean, so the scale is searched for.
    scale = max(
        (mean for mean in np.linspace(1, time, 1000) if scaled(mean).mean() <= time / 4), default=1
    )
    return np.random.default_rng(0).permutation(scaled(scale))


def _skipping(limits: Limits, rounds: int, torch: bool) -> tuple[list[dict], list[dict]]:
    batch, time = SKIPPED[:2]
    inputs, parameters, d_outputs = problem(*SKIPPED)
    lengths = quarter_lengths(batch, time)
    within = jnp.arange(time)[None, :, None] < lengths[:, None, None]
    arrays = (inputs, parameters, d_outputs * within)
    padded = partial(ours, lengths=jnp.asarray(lengths, jnp.int32))
    cases = [
        compiled_case("without lengths", partial(step, ours), *arrays),
        compiled_case("with lengths", partial(step, padded), *arrays),
    ]
    if torch:
        cases.append(torch_case(arrays, LSTM, lengths=lengths))
    group = f"padding skipped: mean length {lengths.mean():.0f} of {time}"
    rows = measure(group, cases, rounds, limits)
    packed = [ratio(rows[2], rows[1])] if torch else []
    return rows, [
        bar(
            "mean length a quarter: with / without lengths, time",
            ratio(rows[1], rows[0]),
            at_most=0.5,
        ),
        bar("the same: PyTorch packed sequences / ours with lengths, time", *packed),
    ]


def _long(limits: Limits) -> tuple[list[dict], list[dict]]:
    arrays = problem(*LONG)
    cases = [
        compiled_case("all gates kept", partial(step, partial(ours, remat=False)), *arrays),
        compiled_case("recomputed", partial(step, partial(ours, remat=True)), *arrays),
        compiled_case("chosen by shape", partial(step, ours), *arrays),
        compiled_case("flax", partial(step, flax_layer(*LONG[2:])), *arrays),
    ]
    rows = measure(f"long sequences, {LONG}", cases, 3, limits)
    memory = [row["extra_info"]["temp_bytes"] for row in rows]
    return rows, [
        bar(
            "18,000 steps: all gates kept / recomputed, temporary memory",
            memory[0] / memory[1],
            at_least=20,
        ),
        bar(
            "18,000 steps: recomputed / all gates kept, time",
            ratio(rows[1], rows[0]),
            at_most=1.4,
        ),
    ]
