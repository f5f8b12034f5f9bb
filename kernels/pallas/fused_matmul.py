r"""A matmul that never writes its product, only what an epilogue makes of it, tile by tile.

.. math:: z = l r^T, \qquad \text{outputs} = \text{epilogue}(z, \ldots)

``left [rows, depth]``, ``right [columns, depth]``. An output is either a tile of the size of ``z``,
or a reduction of it over the rows of a tile. Softmax losses keep from ``z`` (logits, classes x
tokens) a maximum and a sum of exponentials a tile; a 1x1 convolution adds bias and residual and
applies its activation. All of them are this one kernel, in two versions:

- **TPU (Mosaic)**: a sequential grid (rows, columns, depth); the product is accumulated in VMEM.
- **GPU (Triton)**: one program a tile, which loops over the depth with the product in registers.
  Programs are numbered in groups of row tiles, so that those that run together share operands in L2
  (Tillet et al. 2019, "Triton", and its matmul tutorial).

Sizes need not be multiples of the tiles. The left operand's rows may be gathered from a table by
``left_ids``: on GPU inside the kernel, on TPU by XLA before it (a row of a tiled table is not a
tile, and moving single rows there was not worth a kernel that nobody here can time).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

from jaxnets.kernels.dispatch import Choice, Target
from jaxnets.kernels.numerics import matmul, result_dtype

_GROUP = 8  # row tiles that run side by side on a GPU


class Tiles(NamedTuple):
    """The sizes of a tile; powers of two, at least 16 (on TPU 128 but for ``rows``, 16)."""

    rows: int
    columns: int
    depth: int


class PallasOptions(NamedTuple):
    """What the kernel is compiled for, and in which tiles (None: the platform's); static."""

    target: Target
    tiles: Tiles | None = None

    @classmethod
    def of(cls, choice: Choice) -> PallasOptions | None:
        """The call of what the dispatcher chose; None where that is not Pallas."""
        if choice.implementation != "pallas":
            return None
        return cls(choice.target, None if choice.tiles is None else Tiles(*choice.tiles))


# Not tuned: a tile's product fits the registers of 4 warps, respectively a fraction of VMEM.
DEFAULT_TILES = {"gpu": Tiles(128, 64, 32), "tpu": Tiles(512, 512, 512)}
# What the tuner tries beside them.
OTHER_TILES = {
    "gpu": (Tiles(128, 128, 32), Tiles(64, 64, 32), Tiles(128, 128, 64), Tiles(64, 128, 64)),
    "tpu": (Tiles(256, 512, 512), Tiles(512, 1024, 512), Tiles(1024, 512, 1024)),
}


class Tile(NamedTuple):
    """An output [rows, columns]."""

    dtype: jnp.dtype


class Reduced(NamedTuple):
    """An output of the epilogue's [1, columns] for each tile of rows, [row tiles, columns]."""

    dtype: jnp.dtype


class Inputs(NamedTuple):
    """What the epilogue reads beside the product: [rows] each, [columns] each, [rows, columns]."""

    rows: Sequence[jax.Array] = ()
    columns: Sequence[jax.Array] = ()
    tiles: Sequence[jax.Array] = ()


# epilogue(product [rows, columns], row_ids [rows, 1], row inputs [rows, 1] each, column inputs
# [1, columns] each, tile inputs) -> outputs. In the last tile row_ids go beyond the rows that
# exist; what stands there may be anything, and a reduction must leave it out.
Epilogue = Callable[..., Sequence[jax.Array]]


def fused_matmul(
    call: PallasOptions,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    *,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left_ids: jax.Array | None = None,
) -> Sequence[jax.Array]:
    """The outputs of ``epilogue`` on ``left @ right.T``, accumulated in float32."""
    target, tiles = call.target, call.tiles or DEFAULT_TILES[call.target.platform]
    dtype = result_dtype(left, right)
    left, right = left.astype(dtype), right.astype(dtype)
    if target.platform == "tpu" and left_ids is not None:
        left, left_ids = left.at[left_ids].get(mode="fill", fill_value=jnp.nan), None
    with jax.enable_x64(False):  # indices are int32 in a kernel, whatever the user's default
        if target.platform == "tpu":
            return _mosaic(target, tiles, epilogue, outputs, name, left, right, inputs)
        return _triton(target, tiles, epilogue, outputs, name, left, right, inputs, left_ids)


def reference(
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    *,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    left_ids: jax.Array | None = None,
) -> Sequence[jax.Array]:
    """The same as one tile in plain JAX."""
    left = left if left_ids is None else left[left_ids]
    product = matmul(left, right, (1, 1))
    results = epilogue(
        product, jnp.arange(left.shape[0])[:, None], [a[:, None] for a in inputs.rows],
        [a[None] for a in inputs.columns], list(inputs.tiles),
    )  # fmt: skip
    return [r.astype(o.dtype) for r, o in zip(results, outputs, strict=True)]


def _mosaic(
    target: Target,
    tiles: Tiles,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
) -> Sequence[jax.Array]:
    (rows, depth), columns = left.shape, right.shape[0]
    # A block is a multiple of the hardware's tiles or the whole axis.
    block_rows, block_columns, block_depth = (
        min(size, tile) for size, tile in zip((rows, columns, depth), tiles, strict=True)
    )
    grid = tuple(
        pl.cdiv(size, block)
        for size, block in ((rows, block_rows), (columns, block_columns), (depth, block_depth))
    )
    counts = len(inputs.rows), len(inputs.columns), len(inputs.tiles)

    def kernel(left_ref, right_ref, *refs):
        input_refs, output_refs, total = refs[: sum(counts)], refs[sum(counts) : -1], refs[-1]
        first_row, step = pl.program_id(0) * block_rows, pl.program_id(2)

        @pl.when(step == 0)
        def _():
            total[...] = jnp.zeros_like(total)

        a, b = left_ref[...], right_ref[...]
        if depth % block_depth:  # what stands behind the end may be anything
            inside = step * block_depth + lax.broadcasted_iota(jnp.int32, (1, block_depth), 1)
            a, b = (jnp.where(inside < depth, x, jnp.zeros_like(x)) for x in (a, b))
        if 1 in (block_rows, block_columns):  # Mosaic broadcasts a row to float32 as it is
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        total[...] += matmul(a, b, (1, 1))

        @pl.when(step == grid[2] - 1)
        def _():
            row_ids = first_row + lax.broadcasted_iota(jnp.int32, (block_rows, 1), 0)
            read = [ref[...] for ref in input_refs]
            results = epilogue(
                total[...], row_ids, read[: counts[0]],
                read[counts[0] : counts[0] + counts[1]], read[counts[0] + counts[1] :],
            )  # fmt: skip
            for ref, result in zip(output_refs, results, strict=True):
                ref[...] = result.astype(ref.dtype)

    row_block = pl.BlockSpec((block_rows, 1), lambda i, j, k: (i, 0))
    column_block = pl.BlockSpec((1, block_columns), lambda i, j, k: (0, j))
    tile_block = pl.BlockSpec((block_rows, block_columns), lambda i, j, k: (i, j))
    reduced_block = pl.BlockSpec((None, 1, block_columns), lambda i, j, k: (i, 0, j))
    results = pl.pallas_call(
        kernel,
        name=name,
        grid=grid,
        in_specs=[
            pl.BlockSpec((block_rows, block_depth), lambda i, j, k: (i, k)),
            pl.BlockSpec((block_columns, block_depth), lambda i, j, k: (j, k)),
            *[row_block] * counts[0], *[column_block] * counts[1], *[tile_block] * counts[2],
        ],
        out_specs=[tile_block if isinstance(o, Tile) else reduced_block for o in outputs],
        out_shape=[
            jax.ShapeDtypeStruct(
                (rows, columns) if isinstance(o, Tile) else (grid[0], 1, columns), o.dtype
            )
            for o in outputs
        ],
        scratch_shapes=[tpu.VMEM((block_rows, block_columns), jnp.float32)],
        compiler_params=tpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        interpret=target.interpret,
        cost_estimate=_cost(rows, columns, depth, left.dtype),
    )(
        left, right, *(a[:, None] for a in inputs.rows), *(a[None] for a in inputs.columns),
        *inputs.tiles,
    )  # fmt: skip
    return [r if isinstance(o, Tile) else r[:, 0] for r, o in zip(results, outputs, strict=True)]


def _triton(
    target: Target,
    tiles: Tiles,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    left_ids: jax.Array | None,
) -> Sequence[jax.Array]:
    depth, columns = right.shape[1], right.shape[0]
    rows = left.shape[0] if left_ids is None else left_ids.shape[0]
    block_rows, block_columns, block_depth = (
        min(max(16, pl.next_power_of_2(size)), tile)
        for size, tile in zip((rows, columns, depth), tiles, strict=True)
    )
    row_tiles, column_tiles = pl.cdiv(rows, block_rows), pl.cdiv(columns, block_columns)
    counts = len(inputs.rows), len(inputs.columns), len(inputs.tiles)
    gathered = left_ids is not None

    def kernel(left_ref, right_ref, *refs):
        ids_ref, refs = (refs[0], refs[1:]) if gathered else (None, refs)
        input_refs, output_refs = refs[: sum(counts)], refs[sum(counts) :]
        i, j = _grouped(pl.program_id(0), row_tiles, column_tiles)
        row_slice, column_slice = (
            pl.ds(i * block_rows, block_rows),
            pl.ds(j * block_columns, block_columns),
        )
        row_ids = i * block_rows + jnp.arange(block_rows)
        row_inside = row_ids < rows
        column_inside = j * block_columns + jnp.arange(block_columns) < columns
        if ids_ref is not None:
            ids = triton.load(ids_ref.at[row_slice], mask=row_inside, other=0)

        def over_depth(k, total):
            steps = k * block_depth + jnp.arange(block_depth)
            inside = (steps < depth)[None, :]
            depth_slice = pl.ds(k * block_depth, block_depth)
            if gathered:
                at = left_ref.at[ids[:, None], jnp.minimum(steps, depth - 1)[None, :]]
            else:
                at = left_ref.at[row_slice, depth_slice]
            a = triton.load(at, mask=row_inside[:, None] & inside, other=0.0)
            b = triton.load(
                right_ref.at[column_slice, depth_slice],
                mask=column_inside[:, None] & inside,
                other=0.0,
            )
            return total + matmul(a, b, (1, 1))

        total = lax.fori_loop(
            0,
            pl.cdiv(depth, block_depth),
            over_depth,
            jnp.zeros((block_rows, block_columns), jnp.float32),
        )
        tile_inside = row_inside[:, None] & column_inside[None, :]
        tile_index = (row_slice, column_slice)
        # A slice, its mask and the axis it lacks in a tile.
        places = (
            [((row_slice,), row_inside, 1)] * counts[0]
            + [((column_slice,), column_inside, 0)] * counts[1]
            + [(tile_index, tile_inside, ())] * counts[2]
        )
        read = [
            jnp.expand_dims(triton.load(ref.at[place], mask=mask, other=0), axis)
            for ref, (place, mask, axis) in zip(input_refs, places, strict=True)
        ]
        results = epilogue(
            total, row_ids[:, None], read[: counts[0]],
            read[counts[0] : counts[0] + counts[1]], read[counts[0] + counts[1] :],
        )  # fmt: skip
        for ref, output, result in zip(output_refs, outputs, results, strict=True):
            result = result.astype(ref.dtype)
            if isinstance(output, Tile):
                triton.store(ref.at[tile_index], result, mask=tile_inside)
            else:
                triton.store(ref.at[i, column_slice], result.reshape(-1), mask=column_inside)

    return pl.pallas_call(
        kernel,
        name=name,
        grid=(row_tiles * column_tiles,),
        out_shape=[
            jax.ShapeDtypeStruct((rows if isinstance(o, Tile) else row_tiles, columns), o.dtype)
            for o in outputs
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=target.interpret,
        cost_estimate=_cost(rows, columns, depth, left.dtype),
    )(left, right, *([left_ids] if gathered else []), *inputs.rows, *inputs.columns, *inputs.tiles)


def _grouped(program: jax.Array, row_tiles: int, column_tiles: int) -> tuple[jax.Array, jax.Array]:
    """Row and column tile of a program: down ``_GROUP`` row tiles, then to the next column."""
    in_group = _GROUP * column_tiles
    first = program // in_group * _GROUP
    height = jnp.minimum(row_tiles - first, _GROUP)
    return first + program % in_group % height, program % in_group // height


def _cost(rows: int, columns: int, depth: int, dtype: Any) -> pl.CostEstimate:
    return pl.CostEstimate(
        flops=2 * rows * columns * depth,
        transcendentals=rows * columns,
        bytes_accessed=(rows + columns) * depth * jnp.dtype(dtype).itemsize,
    )
