"""Programs over a mesh of devices: a device's part is compiled, and what it sends is counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.compilers.compile import topology
from benchmarks.compilers.programs import (
    DEFAULT,
    Program,
    lstm_outputs,
    outputs_and_gradients,
    value_and_gradients,
)
from jaxnets.kernels import VocabSharding, linear_softmax_cross_entropy

_TOKENS = ("data", "vocab")  # what has no vocabulary is split over both


class Grid(NamedTuple):
    """Devices of a topology: tokens are split over its rows, and classes over its columns."""

    device: str
    topology: str
    rows: int
    columns: int

    def mesh(self, kind: AxisType = AxisType.Auto) -> Mesh:
        devices: np.ndarray = np.array(topology(self.device, self.topology).devices)
        return Mesh(devices.reshape(self.rows, self.columns), _TOKENS, axis_types=(kind, kind))


GRIDS = {
    grid.device: grid for grid in (Grid("v5e", "v5e:4x4", 4, 4), Grid("v5p", "v5p:2x2x1", 2, 2))
}


def exact_loss(grid: Grid, hidden, weight, labels):
    """Value and gradients of tokens split over the rows and classes over the columns."""
    sharding = VocabSharding(grid.mesh(), "vocab", "data")

    def loss(hidden, weight, labels):
        return linear_softmax_cross_entropy(hidden, weight, labels, sharding=sharding)

    return value_and_gradients(loss, hidden, weight, labels)


def exact_shapes(grid: Grid, tokens: int, features: int, vocab: int):
    """The arguments of :func:`exact_loss`."""
    return (
        _shape(grid, (tokens, features), P("data"), "bfloat16"),
        _shape(grid, (vocab, features), P("vocab"), "bfloat16"),
        _shape(grid, (tokens,), P("data"), "int32"),
    )


def lstm_shapes(grid: Grid, batch: int, time: int, features: int, hidden: int):
    """Inputs, parameters and the cotangent of the outputs, the batch split over all devices.

    By type, as over ``jax.make_mesh``'s axes: only so may a device run the kernel on its rows.
    """
    shape = partial(_shape, grid, dtype="bfloat16", kind=AxisType.Explicit)
    sizes = (features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,)
    parameters = tuple(shape(size, P()) for size in sizes)
    split = P(_TOKENS)
    return shape((batch, time, features), split), parameters, shape((batch, time, hidden), split)


def _shape(
    grid: Grid, shape: tuple[int, ...], spec: P, dtype: str, kind: AxisType = AxisType.Auto
) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(grid.mesh(kind), spec))


def sharded_programs(device: str) -> Iterator[Program]:
    """Those of the grid of ``device``, by its name; none where it has none. Sizes are of all."""
    if device not in GRIDS:
        return
    grid = GRIDS[device]
    count = grid.rows * grid.columns
    over = f"bfloat16, over {grid.topology}"
    tokens, features, vocab = 32_768, 4096, 131_072
    yield Program(
        "exact loss", f"{tokens} x {features}, {vocab:,} classes, {over}", DEFAULT,
        partial(exact_loss, grid), partial(exact_shapes, grid, tokens, features, vocab),
        "bfloat16", flops=3 * 2.0 * tokens * features * vocab / count,
        moved=4.0 * features * (tokens / grid.rows + vocab / grid.columns),
    )  # fmt: skip
    batch, time, features, hidden = sizes = 256, 128, 512, 512
    weights = (features + hidden + 1) * 4 * hidden
    yield Program(
        "LSTM with gradient", f"{sizes}, {over}", DEFAULT,
        partial(outputs_and_gradients, partial(lstm_outputs, None)),
        partial(lstm_shapes, grid, *sizes),
        "bfloat16", flops=3 * 2.0 * batch * time * (features + hidden) * 4 * hidden / count,
        moved=4.0 * (batch * time * (features + hidden) / count + weights),
    )  # fmt: skip
