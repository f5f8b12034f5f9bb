"""Which rows run which chunks: padding that fills a chunk for a row costs that row nothing.

With the rows sorted by falling length, those that are still running are the first ones. They are
never counted exactly, since shapes are static, but to the next of a few counts: a stage runs its
``rows`` for as long as more than the next stage's rows are needed. The trip counts are the data's,
so one compiled program serves every batch of lengths.

A chunk of those rows is read and written where it is: no array is sorted or padded as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def row_counts(batch: int) -> tuple[int, ...]:
    """Falling row counts for the stages of a batch: the batch, then halves of it, down to 8."""
    counts = [batch]
    while counts[-1] > 8 and len(counts) < 4:
        counts.append(-(-counts[-1] // 2))
    return tuple(counts)


def sweep(
    rows: tuple[int, ...],
    chunk: int,
    time: int,
    lengths: jax.Array | None,
    body: Callable,
    rowwise: Any,
    whole: Any,
    *,
    descending: bool,
) -> tuple[Any, Any]:
    """Runs ``body(rows, index, rowwise, whole) -> (rowwise, whole)`` over the chunks of all stages.

    ``rowwise`` is a tree of arrays [batch, ...]; the body sees and returns their first ``rows``.
    """
    batch = rows[0]
    stages = _stages(rows, chunk, time, lengths)
    for count, first, last in reversed(stages) if descending else stages:

        def step(n, state, count=count, first=first, last=last):
            index = first + last - 1 - n if descending else n
            return body(count, index, *state)

        part = jax.tree.map(lambda a, count=count: a[:count], rowwise)
        part, whole = lax.fori_loop(first, last, step, (part, whole))
        if count == batch:
            rowwise = part
        else:
            rowwise = jax.tree.map(lambda a, p, count=count: a.at[:count].set(p), rowwise, part)
    return rowwise, whole


def falling(lengths: jax.Array | None) -> jax.Array | None:
    """The rows from the longest to the shortest; None without lengths."""
    return None if lengths is None else jnp.argsort(lengths, descending=True)


def take_rows(tree: Any, order: jax.Array | None) -> Any:
    """The rows of each array in the order ``order``, or as they are where it is None."""
    if order is None:
        return tree
    return jax.tree.map(lambda array: array[order], tree)


def put_rows(tree: Any, order: jax.Array | None) -> Any:
    """The inverse of ``take_rows``."""
    return take_rows(tree, None if order is None else jnp.argsort(order))


def _stages(rows: tuple[int, ...], chunk: int, time: int, lengths: jax.Array | None) -> list[tuple]:
    """(rows, first chunk, chunk after the last) of each stage, in the order of time."""
    if lengths is None or (len(rows) == 1 and time <= chunk):  # one chunk needs no loop around it
        return [(rows[0], 0, -(-time // chunk))]
    falls = jnp.sort(lengths, descending=True)
    ends = [-(-falls[following] // chunk) for following in (*rows[1:], 0)]
    starts = [jnp.zeros_like(ends[0]), *ends[:-1]]
    return list(zip(rows, starts, ends, strict=True))


def read(
    array: jax.Array, order: jax.Array | None, rows: int, start: jax.Array, chunk: int
) -> jax.Array:
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


def write(
    array: jax.Array, part: jax.Array, order: jax.Array | None, index: jax.Array
) -> jax.Array:
    """Writes a chunk, [chunk, rows, ...], where ``read`` would read it."""
    (chunk, rows), time = part.shape[:2], array.shape[1]
    start, part = index * chunk, part.astype(array.dtype)
    if time % chunk == 0:
        return _write_inside(array, part, order, start)
    inside = jnp.minimum(start, time - chunk)
    longer = jnp.concatenate([_read_inside(array, order, rows, inside, chunk), part])
    shift = start - inside
    steps = jnp.arange(chunk, dtype=jnp.int32)
    # The steps before ``start`` stay as they are; the first of ``part`` comes right after them.
    part = longer[jnp.where(steps < shift, steps, chunk + steps - shift)]
    return _write_inside(array, part, order, inside)


def _read_inside(
    array: jax.Array, order: jax.Array | None, rows: int, start: jax.Array, chunk: int
) -> jax.Array:
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


def _write_inside(
    array: jax.Array, part: jax.Array, order: jax.Array | None, start: jax.Array
) -> jax.Array:
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


def _starts(rows: jax.Array, start: jax.Array) -> jax.Array:
    return jnp.stack([rows, jnp.full_like(rows, start)], axis=1)


def put(array: jax.Array, part: jax.Array, index: jax.Array) -> jax.Array:
    """Writes ``part``, of fewer rows perhaps, into ``array[index]``."""
    starts = (index, *(jnp.zeros_like(index) for _ in part.shape))
    return lax.dynamic_update_slice(array, part[None], starts)
