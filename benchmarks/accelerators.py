"""Every implementation that can run on this device beside the others: a value and all gradients.

On a GPU or TPU these are the shapes that the kernels there are held to; on a CPU small ones, where
the XLA implementations are alone but for the peers of the other comparisons.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.bars import bar, ratio
from benchmarks.exact import naive_loss
from benchmarks.harness import Case, compiled_case, difference, measure
from benchmarks.limits import Limits
from jaxnets.kernels import dispatch
from jaxnets.kernels.tuning import PROBLEMS, labels_of, value_and_gradients

Sizes = dict[str, Any]
# Operation, dtype and sizes: for a GPU or TPU, and for a CPU.
SHAPES: tuple[tuple[str, str, Sizes, Sizes], ...] = (
    (
        "linear_softmax_cross_entropy", "bfloat16",
        {"tokens": 8192, "features": 4096, "vocab_size": 131_072},
        {"tokens": 256, "features": 128, "vocab_size": 4096},
    ),
    (
        "sampled_softmax_cross_entropy", "bfloat16",
        {"tokens": 8192, "features": 1024, "num_sampled": 8192, "per_token": False},
        {"tokens": 256, "features": 128, "num_sampled": 512, "per_token": False},
    ),
    (
        "lstm", "float32",
        {"batch": 64, "time": 512, "features": 512, "hidden": 512, "extras": ()},
        {"batch": 16, "time": 32, "features": 64, "hidden": 64, "extras": ()},
    ),
    (
        "lstm", "float32",
        {"batch": 256, "time": 512, "features": 64, "hidden": 64, "extras": ()},
        {"batch": 32, "time": 32, "features": 16, "hidden": 32, "extras": ()},
    ),
    (
        "pointwise_conv", "bfloat16",
        {"positions": 262_144, "features": 256, "out": 1024, "groups": 1, "channels_first": False},
        {"positions": 4096, "features": 64, "out": 128, "groups": 1, "channels_first": False},
    ),
)  # fmt: skip


def cases(operation: str, dtype: str, sizes: Sizes) -> list[Case]:
    """The implementations that can run here, the default first; for the softmax the naive one."""
    found = dispatch.operation_named(operation)
    function, arrays = PROBLEMS[operation](dtype, **sizes)
    runnable = [
        name
        for name, obstacle in found.implementations.items()
        if name != "reference" and obstacle(dispatch.target(), jnp.dtype(dtype), sizes) is None
    ]
    made = [
        compiled_case(name, value_and_gradients(partial(function, name)), *arrays)
        for name in runnable
    ]
    if operation == "linear_softmax_cross_entropy":
        naive = partial(_naive, labels_of(sizes["tokens"], sizes["vocab_size"]))
        made.append(compiled_case("naive optax", value_and_gradients(naive), *arrays))
    return made


def _naive(labels, hidden, weight, bias):
    return naive_loss(hidden, weight, bias, labels)


def run(limits: Limits) -> tuple[list[dict], list[dict]]:
    """The rows, and each implementation's time over the default's."""
    on_cpu = dispatch.target().platform == "cpu"
    rows: list[dict] = []
    bars: list[dict] = []
    for operation, dtype, large, small in SHAPES:
        sizes = small if on_cpu else large
        made = cases(operation, dtype, sizes)
        results = [jax.block_until_ready(case.run()) for case in made]
        listed = ", ".join(f"{name} {value}" for name, value in sizes.items() if value)
        group = f"{operation}, {dtype}: {listed}"
        new = measure(group, made, 5, limits)
        rows += new
        default = made[0].name
        for case, row, result in zip(made[1:], new[1:], results[1:], strict=True):
            bars += [
                bar(f"{group}: {case.name} / {default}, time", ratio(row, new[0])),
                bar(
                    f"{group}: {case.name} against {default}, relative difference",
                    difference(result, results[0]),
                ),
            ]
    return rows, bars
