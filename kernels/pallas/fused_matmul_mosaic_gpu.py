"""The fused matmul for Hopper and Blackwell GPUs (Mosaic GPU), behind a pipeline of TMA copies.

A program has three warpgroups: one copies tiles of both operands to shared memory, some steps
ahead; two multiply, each half of the rows, and wait for every product. On Hopper, by ``wgmma``, it
is in their registers, on Blackwell, by ``tcgen05``, in tensor memory. What the epilogue makes of it
goes a slice of columns at a time, so that few of its values live at once.

Operands are read where they are: the copies fill with zeros what is beyond their ends, and write
nothing there. Only to the multiples of ``_UNIT`` that a copy wants they are padded before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.pallas.contract import Epilogue, Inputs, Reduced, Tile, Tiles, cost, grouped

_WARPGROUPS = 2  # that multiply
_SLICE = 32
_SHARED = 220 * 1024  # bytes of shared memory to fill; a multiprocessor gives a program 227 KiB
_MOST_STEPS = 4  # that are copied ahead
_FLOAT32 = jnp.dtype(jnp.float32)
_UNIT = 8, 64  # rows and columns of what shared memory is tiled by, for ``wgmma``


def fused_matmul(
    target: Target,
    tiles: Tiles,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    blackwell: bool,
) -> Sequence[jax.Array]:
    """As ``fused_matmul.fused_matmul``; operands of 16 bits."""
    layout = plgpu.Layout.TCGEN05 if blackwell else plgpu.Layout.WGMMA
    (rows, depth), columns = left.shape, right.shape[0]
    group_rows = tiles.rows // _WARPGROUPS
    row_tiles, column_tiles = pl.cdiv(rows, tiles.rows), pl.cdiv(columns, tiles.columns)
    all_rows, all_columns = row_tiles * tiles.rows, column_tiles * tiles.columns
    counts = len(inputs.rows), len(inputs.columns), len(inputs.tiles)

    def kernel(left_ref, right_ref, *refs, out_buffers, in_buffers, arrived, products, multiplied):
        input_refs, output_refs = refs[: sum(counts)], refs[sum(counts) :]
        row_refs, column_refs = input_refs[: counts[0]], input_refs[counts[0] : sum(counts[:2])]
        i, j = grouped(lax.axis_index("tile"), row_tiles, column_tiles)
        group = lax.axis_index("warpgroup")
        first_row, shape = i * tiles.rows + group * group_rows, (group_rows, _SLICE)
        row_slice = pl.ds(first_row, group_rows)

        def multiply(step, left_tile, right_tile, product):
            mine = left_tile.at[pl.ds(group * group_rows, group_rows)]
            operands = mine, right_tile.transpose((1, 0))
            if blackwell:
                done, total = multiplied.at[group], _half(products, group)
                plgpu.tcgen05_mma(total, *operands, done, accumulate=step[0] > 0)
                plgpu.barrier_wait(done)
            else:
                plgpu.wgmma(product, *operands)
                plgpu.wgmma_wait(0)
            return product

        def read_tile(n, column_slice):
            buffer, barrier = _mine(in_buffers[n], group), arrived[n].at[group]
            ref = input_refs[sum(counts[:2]) + n]
            plgpu.copy_gmem_to_smem(ref.at[row_slice, column_slice], buffer, barrier)
            plgpu.barrier_wait(barrier)
            return plgpu.load(buffer, layout=layout)

        def write_tile(ref, buffer, result, column_slice):
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the slice before
            buffer[...] = result
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(buffer, ref.at[row_slice, column_slice])

        def write(slice_of_product):
            row_ids = first_row + plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=layout)
            rows_of = layout.reduce(1), row_slice, shape, (0,)
            by_row = [_broadcast(ref, *rows_of) for ref in row_refs]
            for start in range(0, tiles.columns, _SLICE):
                column_slice = pl.ds(j * tiles.columns + start, _SLICE)
                columns_of = layout.reduce(0), column_slice, shape, (1,)
                by_column = [_broadcast(ref, *columns_of) for ref in column_refs]
                by_tile = [read_tile(n, column_slice) for n in range(counts[2])]
                results = epilogue(slice_of_product(start), row_ids, by_row, by_column, by_tile)
                buffers = iter(out_buffers)
                for ref, output, result in zip(output_refs, outputs, results, strict=True):
                    result = result.astype(ref.dtype)
                    if isinstance(output, Tile):
                        write_tile(ref, _mine(next(buffers), group), result, column_slice)
                    else:
                        ref[i * _WARPGROUPS + group, column_slice] = result
            plgpu.wait_smem_to_gmem(0)

        def multiply_and_write(multiply_all):
            def in_registers(product):
                multiply_all(product)
                total = product[...]
                write(lambda start: total[:, start : start + _SLICE])

            if not blackwell:
                return pl.run_scoped(in_registers, plgpu.ACC((group_rows, tiles.columns), _FLOAT32))
            multiply_all(None)
            total = _half(products, group)
            return write(
                lambda start: plgpu.async_load_tmem(
                    total.at[:, pl.ds(start, _SLICE)], layout=layout
                )
            )

        plgpu.emit_pipeline_warp_specialized(
            multiply,
            grid=(pl.cdiv(depth, tiles.depth),),
            in_specs=[
                _operand((tiles.rows, tiles.depth), left.dtype, i),
                _operand((tiles.columns, tiles.depth), right.dtype, j),
            ],
            wg_axis="warpgroup", num_compute_wgs=_WARPGROUPS, memory_registers=40,
            max_concurrent_steps=steps, compute_context=multiply_and_write,
        )(left_ref, right_ref)  # fmt: skip

    of_tiles = [o.dtype for o in outputs if isinstance(o, Tile)]
    read_tiles = [a.dtype for a in inputs.tiles]
    slice_bytes = sum(
        tiles.rows * _SLICE * jnp.dtype(dtype).itemsize for dtype in (*of_tiles, *read_tiles)
    )
    step_bytes = (tiles.rows + tiles.columns) * tiles.depth * left.dtype.itemsize
    steps = min(_MOST_STEPS, (_SHARED - slice_bytes) // step_bytes)
    all_products = plgpu.TMEM((group_rows, _WARPGROUPS * tiles.columns), _FLOAT32)
    all_multiplied = plgpu.Barrier(num_barriers=_WARPGROUPS, orders_tensor_core=True)
    results = plgpu.kernel(
        kernel,
        kernel_name=name,
        out_type=tuple(
            jax.ShapeDtypeStruct(
                _whole_units((rows, columns))
                if isinstance(o, Tile)
                else (row_tiles * _WARPGROUPS, all_columns),
                o.dtype,
            )
            for o in outputs
        ),
        scratch_types={
            "out_buffers": tuple(_buffer(group_rows, dtype) for dtype in of_tiles),
            "in_buffers": tuple(_buffer(group_rows, dtype) for dtype in read_tiles),
            "arrived": tuple(plgpu.Barrier(num_barriers=_WARPGROUPS) for _ in read_tiles),
            "products": all_products if blackwell else (),
            "multiplied": all_multiplied if blackwell else (),
        },
        grid=(row_tiles * column_tiles,),
        grid_names=("tile",),
        num_threads=_WARPGROUPS + 1,
        thread_name="warpgroup",
        interpret=plgpu.InterpretGPUParams() if target.interpret else None,
        cost_estimate=cost(rows, columns, depth, left.dtype),
    )(
        *(_padded(a, _whole_units(a.shape)) for a in (left, right)),
        *(_padded(a, (all_rows,)) for a in inputs.rows),
        *(_padded(a, (all_columns,)) for a in inputs.columns),
        *(_padded(a, _whole_units(a.shape)) for a in inputs.tiles),
    )  # fmt: skip
    return [
        r[:rows, :columns] if isinstance(o, Tile) else r[:, :columns]
        for r, o in zip(results, outputs, strict=True)
    ]


def _operand(block: tuple[int, int], dtype: Any, tile: jax.Array) -> plgpu.BlockSpec:
    """The blocks of an operand's rows ``tile``, as ``wgmma`` reads them from shared memory."""
    return plgpu.BlockSpec(block, lambda step: (tile, step), transforms=_swizzled(block[1], dtype))


def _buffer(rows: int, dtype: Any) -> Any:
    """Shared memory for a slice of each warpgroup's tile."""
    return plgpu.SMEM((_WARPGROUPS, rows, _SLICE), dtype, transforms=_swizzled(_SLICE, dtype))


def _mine(buffer: Any, group: jax.Array) -> Any:
    """A warpgroup's own part of a buffer."""
    return buffer.at[group]


def _swizzled(columns: int, dtype: Any) -> tuple[Any, ...]:
    bits = jnp.dtype(dtype).itemsize * 8
    swizzle = plgpu.find_swizzle(columns * bits)
    tiling = plgpu.TilingTransform((8, swizzle * 8 // bits))  # type: ignore[abstract]
    return tiling, plgpu.SwizzleTransform(swizzle)  # type: ignore[abstract]


def _half(products: Any, group: jax.Array) -> Any:
    """A warpgroup's own columns of tensor memory."""
    columns = products.shape[1] // _WARPGROUPS
    return products.at[:, pl.ds(group * columns, columns)]


def _broadcast(ref: Any, layout: Any, place: Any, shape: tuple[int, int], axes: Any) -> jax.Array:
    """A vector in the registers of those that hold its rows or columns of a product."""
    vector = plgpu.load(ref.at[place], layout=layout, optimized=False)
    return lax.broadcast_in_dim(vector, shape, axes)


def _whole_units(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(pl.cdiv(size, unit) * unit for size, unit in zip(shape, _UNIT, strict=True))


def _padded(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jnp.pad(array, [(0, more - size) for size, more in zip(array.shape, shape, strict=True)])
