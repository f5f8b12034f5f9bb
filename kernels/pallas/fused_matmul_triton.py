"""The fused matmul for GPU (Triton): a program a tile, which loops over the depth."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.pallas.contract import Epilogue, Inputs, Reduced, Tile, Tiles, cost, grouped
from jaxnets.kernels.pallas.triton import pallas_call, triton


def fused_matmul(
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
    """As ``fused_matmul.fused_matmul``."""
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
        i, j = grouped(pl.program_id(0), row_tiles, column_tiles)
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
                triton.store(ref.at[i, column_slice], result, mask=column_inside)

    return pallas_call(
        kernel,
        name=name,
        grid=(row_tiles * column_tiles,),
        out_shape=[
            jax.ShapeDtypeStruct((rows if isinstance(o, Tile) else row_tiles, columns), o.dtype)
            for o in outputs
        ],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=3),
        interpret=target.interpret,
        cost_estimate=cost(rows, columns, depth, left.dtype),
    )(left, right, *([left_ids] if gathered else []), *inputs.rows, *inputs.columns, *inputs.tiles)
