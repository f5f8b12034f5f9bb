"""Which rows run which chunks: padding that fills a chunk for a row costs that row nothing.

With the rows sorted by falling length, those that are still running are the first ones. They are
never counted exactly, since shapes are static, but to the next of a few counts: a stage runs its
``rows`` for as long as more than the next stage's rows are needed. The trip counts are the data's,
so one compiled program serves every batch of lengths.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def row_counts(batch: int) -> tuple[int, ...]:
    """Falling row counts for the stages of a batch: the batch, then halves of it, down to 8."""
    counts = [batch]
    while counts[-1] > 8 and len(counts) < 4:
        counts.append(-(-counts[-1] // 2))
    return tuple(counts)


def sweep(rows, chunk, time, lengths, body, rowwise, whole, *, descending):
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


def falling(lengths):
    """The rows from the longest to the shortest; None without lengths."""
    return None if lengths is None else jnp.argsort(lengths, descending=True)


def take_rows(tree, order):
    """The rows of each array in the order ``order``, or as they are where it is None."""
    if order is None:
        return tree
    return jax.tree.map(lambda array: array[order], tree)


def put_rows(tree, order):
    """The inverse of ``take_rows``."""
    return take_rows(tree, None if order is None else jnp.argsort(order))


def _stages(rows, chunk, time, lengths):
    """(rows, first chunk, chunk after the last) of each stage, in the order of time."""
    if lengths is None or (len(rows) == 1 and time <= chunk):  # one chunk needs no loop around it
        return [(rows[0], 0, -(-time // chunk))]
    falls = jnp.sort(lengths, descending=True)
    ends = [-(-falls[following] // chunk) for following in (*rows[1:], 0)]
    starts = [jnp.zeros_like(ends[0]), *ends[:-1]]
    return list(zip(rows, starts, ends, strict=True))
