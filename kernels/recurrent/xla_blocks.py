"""Blocks of arrays: some steps of some rows, read and written where they are.

With lengths the rows are taken in another order, ``order``; without, it is None. No array is sorted
or padded as a whole.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax


def read(array, order, rows: int, start, chunk: int):
    """Steps from ``start`` of the first ``rows`` rows of ``order``: [chunk, rows, ...].

    Steps beyond the end are zeros, so that no array is padded to whole chunks.
    """
    time = array.shape[1]
    if time % chunk == 0:
        return _read_inside(array, order, rows, start, chunk)
    inside = jnp.minimum(start, time - chunk)
    part = _read_inside(array, order, rows, inside, chunk)
    longer = jnp.concatenate([part, jnp.zeros_like(part)])
    return lax.dynamic_slice_in_dim(longer, start - inside, chunk)


def write(array, part, order, index):
    """Writes a chunk, [chunk, rows, ...], where ``read`` would read it."""
    (chunk, rows), time = part.shape[:2], array.shape[1]
    start, part = index * chunk, part.astype(array.dtype)
    if time % chunk == 0:
        return _write_inside(array, part, order, start)
    inside = jnp.minimum(start, time - chunk)
    longer = jnp.concatenate([_read_inside(array, order, rows, inside, chunk), part])
    shift = start - inside
    steps = jnp.arange(chunk)
    # The steps before ``start`` stay as they are; the first of ``part`` comes right after them.
    part = longer[jnp.where(steps < shift, steps, chunk + steps - shift)]
    return _write_inside(array, part, order, inside)


def _read_inside(array, order, rows: int, start, chunk: int):
    if order is None:
        part = lax.dynamic_slice_in_dim(array, start, chunk, axis=1)
    else:
        part = lax.gather(
            array, _starts(order[:rows], start),
            lax.GatherDimensionNumbers(
                offset_dims=tuple(range(1, array.ndim)), collapsed_slice_dims=(0,),
                start_index_map=(0, 1),
            ),
            slice_sizes=(1, chunk, *array.shape[2:]), mode="promise_in_bounds",
        )  # fmt: skip
    return jnp.moveaxis(part, 1, 0)


def _write_inside(array, part, order, start):
    part = jnp.moveaxis(part, 0, 1)
    if order is None:
        return lax.dynamic_update_slice_in_dim(array, part, start, axis=1)
    return lax.scatter(
        array, _starts(order[: part.shape[0]], start), part,
        lax.ScatterDimensionNumbers(
            update_window_dims=tuple(range(1, array.ndim)), inserted_window_dims=(0,),
            scatter_dims_to_operand_dims=(0, 1),
        ),
        unique_indices=True, mode="promise_in_bounds",
    )  # fmt: skip


def _starts(rows, start):
    return jnp.stack([rows, jnp.full_like(rows, start)], axis=1)


def put(array, part, index):
    """Writes ``part``, of fewer rows perhaps, into ``array[index]``."""
    starts = (index, *(jnp.zeros_like(index) for _ in part.shape))
    return lax.dynamic_update_slice(array, part[None], starts)
