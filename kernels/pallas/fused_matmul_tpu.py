"""The fused matmul for TPU (Mosaic): a sequential grid, the product accumulated in VMEM."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.pallas.contract import Epilogue, Inputs, Reduced, Tile, Tiles, cost


def fused_matmul(
    target: Target,
    tiles: Tiles,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
) -> Sequence[jax.Array]:
    """As ``fused_matmul.fused_matmul``."""
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
                ref[...] = result.astype(ref.dtype).reshape(ref.shape)

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
        cost_estimate=cost(rows, columns, depth, left.dtype),
    )(
        left, right, *(a[:, None] for a in inputs.rows), *(a[None] for a in inputs.columns),
        *inputs.tiles,
    )  # fmt: skip
    return [r if isinstance(o, Tile) else r[:, 0] for r, o in zip(results, outputs, strict=True)]
