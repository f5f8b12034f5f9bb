"""The gradient of a table as the rows that a step touched, not as an array of the table's size.

A step that reads a few thousand rows of a table [vocab, features] pays for the whole vocabulary all
the same, if its gradient is dense and its optimiser goes over every row. Here a step

1. gathers the rows it needs, each once (:func:`gather_rows`): a small table, with ids into it;
2. runs any loss on the small table and differentiates that, so its gradient is one row an id;
3. updates those rows (``jaxnets.optim``) in the donated tables.

Each costs the number of rows. The tables must be donated to the jitted step
(``jax.jit(step, donate_argnums=...)``); otherwise JAX copies them, and the step is O(vocab) again.
It is so too for a bfloat16 or float16 table on CPU, which XLA scatters by way of a float32 copy
(bitcasting to integers, or updating row by row, makes it copy as well): keep it in float32 there.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from jaxnets.kernels import meshes
from jaxnets.kernels.checks import INT32_MAX, as_integers
from jaxnets.kernels.losses import safe_ids


@jax.named_scope("gather_rows")
def gather_rows(tables: Any, ids: Any) -> tuple[Int32[Array, " rows"], Any, Any]:
    """The rows of ``tables`` that ``ids`` name, each once, and ids into them.

    Args:
      tables: an array [vocab, ...] or a pytree of such with one vocab, as {"weight": [vocab,
        features], "bias": [vocab]}.
      ids: an array of integers of any width, a list of numbers, or a pytree of such, of any
        shapes; in [0, vocab).

    Returns:
      ``(row_ids, rows, local_ids)``; row_ids [rows] int32, sorted and distinct, filled up with
      ids of vocab and above to the number of ids; rows, like tables with [rows, ...]; and
      local_ids, like ids, with ``rows[local_ids]`` equal to ``tables[ids]``. An id outside
      [0, vocab) gives a local id outside [0, rows): the losses make it NaN, and so does
      ``rows[local_ids]``, as the rows behind the last id are NaN then. Without an id all of them
      are empty.

    Raises:
      TypeError: float ids.
      ValueError: no table, tables with different vocabs, or a vocab so large that the ids behind
        the last do not fit int32.

    Example:
      >>> import jax.numpy as jnp
      >>> table = jnp.arange(10.0)[:, None] * jnp.ones(2)
      >>> row_ids, rows, local_ids = gather_rows(table, jnp.array([7, 3, 7]))
      >>> row_ids.tolist(), rows[:2].tolist(), local_ids.tolist()
      ([3, 7, 12], [[3.0, 3.0], [7.0, 7.0]], [1, 0, 1])
    """
    ids = as_ids(ids)
    vocab = check_tables(tables, ids)
    given, (tables, ids) = ids, meshes.replicated((jax.tree.map(jnp.asarray, tables), ids))
    row_ids, local_ids = distinct_ids(ids, vocab)

    def read(table):
        return table.at[row_ids].get(mode="clip") if row_ids.size else table[:0]

    rows = jax.tree.map(read, tables)
    rows = spoil_fillers(rows, row_ids, local_ids, vocab)
    return row_ids, rows, meshes.placed_like(given, local_ids)


def as_ids(ids: Any) -> Any:
    """``ids`` with each array, or list of numbers, as int32."""

    def is_list(node):
        return isinstance(node, list | tuple) and all(
            is_list(inner) or isinstance(inner, int | np.integer) for inner in node
        )

    return jax.tree.map(lambda leaf: as_integers("ids", leaf), ids, is_leaf=is_list)


def spoil_fillers(rows: Any, row_ids: jax.Array, local_ids: Any, vocab: int) -> Any:
    """``rows`` with NaN in those that fill up, if an id is out of range.

    Indexing takes the last row for a local id out of bounds, and then that is one that fills up.
    """
    missing = [(leaf == row_ids.size).any() for leaf in jax.tree.leaves(local_ids)]
    lost = (row_ids >= vocab) & jnp.array(missing, bool).any()

    def spoil(rows):
        if not jnp.issubdtype(rows.dtype, jnp.inexact):
            return rows
        shape = (-1, *(1 for _ in rows.shape[1:]))
        return jnp.where(lost.reshape(shape), jnp.asarray(jnp.nan, rows.dtype), rows)

    return jax.tree.map(spoil, rows)


def check_tables(tables: Any, ids: Any) -> int:
    """The tables' first axis; raises unless they share it, and ids behind the last fit int32."""
    shapes = [np.shape(table) for table in jax.tree.leaves(tables)]
    vocabs = {shape[:1] for shape in shapes}
    if len(vocabs) != 1 or () in vocabs:
        raise ValueError(f"tables must share their first axis, got {shapes}")
    vocab = vocabs.pop()[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(ids))
    if count and not vocab:
        raise ValueError(f"tables must hold at least one row, got {shapes}")
    if vocab + count > INT32_MAX:
        raise ValueError(
            f"tables must have at most {INT32_MAX} - {count} rows for {count} ids, so that those "
            f"behind the last fit int32, got {vocab}"
        )
    return vocab


def distinct_ids(ids: Any, vocab: int) -> tuple[jax.Array, Any]:
    """``row_ids [rows]`` and ``local_ids`` of :func:`gather_rows`, of ``ids``, all int32."""
    leaves, tree = jax.tree.flatten(ids)
    if not sum(leaf.size for leaf in leaves):
        return jnp.zeros(0, jnp.int32), jax.tree.unflatten(tree, leaves)
    flat = safe_ids(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), vocab)
    row_ids, local = _distinct(flat, vocab)
    local = jnp.where(flat < vocab, local, flat.size)
    ends = [sum(leaf.size for leaf in leaves[: i + 1]) for i in range(len(leaves))]
    pieces = jnp.split(local, ends[:-1])
    shaped = [p.reshape(leaf.shape) for p, leaf in zip(pieces, leaves, strict=True)]
    return row_ids, jax.tree.unflatten(tree, shaped)


def _distinct(ids: jax.Array, fill: int) -> tuple[jax.Array, jax.Array]:
    """Sorted distinct ids, filled up with ``fill``, and where each id stands among them."""
    order, ordered, is_first = sort_ids(ids)
    rank = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    # Fillers differ, so that ids are distinct and sorted to the end, as the scatters promise XLA.
    fillers = jnp.int32(fill) + jnp.arange(ids.size, dtype=jnp.int32)
    distinct = fillers.at[rank].set(ordered)
    local = jnp.zeros(ids.shape, jnp.int32).at[order].set(rank, unique_indices=True)
    return distinct, local


def sort_ids(ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``ids [n]`` in order: ``(order, ordered, is_first)``, [n] each.

    ``ordered = ids[order]`` keeps the order of equal ids; ``is_first`` marks the first of each.
    """
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    is_first = jnp.concatenate([jnp.ones(ids[:1].shape, bool), ordered[1:] != ordered[:-1]])
    return order, ordered, is_first
