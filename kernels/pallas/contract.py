"""What a fused matmul takes and gives, whichever backend of Pallas it is written for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxnets.kernels.dispatch import PALLAS, Choice, Target, gpu_generation

_GROUP = 8  # row tiles that run side by side on a GPU


class Tiles(NamedTuple):
    """The sizes of a tile; powers of two, at least 16 (on TPU 128 but for ``rows``, 16)."""

    rows: int
    columns: int
    depth: int


class PallasOptions(NamedTuple):
    """What the kernel is compiled for, by which backend, in which tiles (None: its own); static.

    ``blackwell``: for that generation of GPUs, where the backend tells them apart.
    """

    target: Target
    tiles: Tiles | None = None
    implementation: str = "pallas"
    blackwell: bool = False

    @classmethod
    def of(cls, choice: Choice) -> PallasOptions | None:
        """The call of what the dispatcher chose; None where that is not Pallas."""
        if choice.implementation not in PALLAS:
            return None
        tiles = None if choice.tiles is None else Tiles(*choice.tiles)
        blackwell = choice.implementation == "mosaic_gpu" and gpu_generation() == "Blackwell"
        return cls(choice.target, tiles, choice.implementation, blackwell)

    @property
    def backend(self) -> str:
        """A key of ``DEFAULT_TILES``."""
        return backend(self.implementation, self.target.platform)


def backend(implementation: str, platform: str) -> str:
    """What a Pallas implementation is written in: "tpu", "triton" or "mosaic_gpu"."""
    if platform == "gpu":
        return "mosaic_gpu" if implementation == "mosaic_gpu" else "triton"
    return platform


# Not tuned. On TPU a tile's product is a fraction of VMEM; by Triton it fits the registers of 4
# warps, by Mosaic GPU those of two warpgroups, which each hold half of its rows.
DEFAULT_TILES = {
    "tpu": Tiles(512, 512, 512),
    "triton": Tiles(128, 64, 32),
    "mosaic_gpu": Tiles(256, 128, 64),
}
# What the tuner tries beside them.
OTHER_TILES = {
    "triton": (Tiles(128, 128, 32), Tiles(64, 64, 32), Tiles(128, 128, 64), Tiles(64, 128, 64)),
    "tpu": (Tiles(256, 512, 512), Tiles(512, 1024, 512), Tiles(1024, 512, 1024)),
    "mosaic_gpu": (Tiles(128, 256, 64), Tiles(128, 128, 64)),
}


class Tile(NamedTuple):
    """An output [rows, columns]."""

    dtype: jnp.dtype


class Reduced(NamedTuple):
    """An output of the epilogue's [columns] for each tile of rows, [row tiles, columns]."""

    dtype: jnp.dtype


class Inputs(NamedTuple):
    """What the epilogue reads beside the product: [rows] each, [columns] each, [rows, columns]."""

    rows: Sequence[jax.Array] = ()
    columns: Sequence[jax.Array] = ()
    tiles: Sequence[jax.Array] = ()


# epilogue(product [rows, columns], row_ids, row inputs, column inputs, tile inputs) -> outputs. The
# inputs are lists of arrays that broadcast to the product: [rows, 1] or [1, columns], or all of it
# where a backend has no axes of size 1. A reduction over the rows is [columns], and goes back by
# ``over_rows``. In the last tile row_ids go beyond the rows that exist; what stands there may be
# anything, and a reduction must leave it out.
Epilogue = Callable[..., Sequence[jax.Array]]


def over_rows(reduced: jax.Array, tile: jax.Array) -> jax.Array:
    """``reduced [columns]`` in each row of a ``tile``."""
    return lax.broadcast_in_dim(reduced, tile.shape, (1,))


def grouped(program: jax.Array, row_tiles: int, column_tiles: int) -> tuple[jax.Array, jax.Array]:
    """Row and column tile of a program: down ``_GROUP`` row tiles, then to the next column."""
    in_group = _GROUP * column_tiles
    first = program // in_group * _GROUP
    height = jnp.minimum(row_tiles - first, _GROUP)
    return first + program % in_group % height, program % in_group // height


def cost(rows: int, columns: int, depth: int, dtype: Any) -> pl.CostEstimate:
    """What a scheduler around the kernel may count with."""
    return pl.CostEstimate(
        flops=2 * rows * columns * depth,
        transcendentals=rows * columns,
        bytes_accessed=(rows + columns) * depth * jnp.dtype(dtype).itemsize,
    )
