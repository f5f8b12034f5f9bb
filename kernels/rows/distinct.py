"""Distinct ids among those that a step looks up, and where each stands among them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.checks import INT32_MAX, as_integers
from jaxnets.kernels.losses import safe_ids
from jaxnets.kernels.rows.rows import SparseRows


def as_ids(ids: Any) -> Any:
    """``ids`` with each array, or list of numbers, as int32."""

    def is_list(node):
        return isinstance(node, list | tuple) and all(
            is_list(inner) or isinstance(inner, int | np.integer) for inner in node
        )

    return jax.tree.map(lambda leaf: as_integers("ids", leaf), ids, is_leaf=is_list)


def spoil_fillers(rows: Any, row_ids: jax.Array, local_ids: Any, vocab_size: int) -> Any:
    """``rows`` with NaN in those that fill up, if an id is out of range.

    Indexing takes the last row for a local id out of bounds, and then that is one that fills up.
    """
    missing = [(leaf == row_ids.size).any() for leaf in jax.tree.leaves(local_ids)]
    lost = (row_ids >= vocab_size) & jnp.array(missing, bool).any()

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
    vocab_size = vocabs.pop()[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(ids))
    if count and not vocab_size:
        raise ValueError(f"tables must hold at least one row, got {shapes}")
    if vocab_size + count > INT32_MAX:
        raise ValueError(
            f"tables must have at most {INT32_MAX} - {count} rows for {count} ids, so that those "
            f"behind the last fit int32, got {vocab_size}"
        )
    return vocab_size


def distinct_ids(ids: Any, vocab_size: int) -> tuple[jax.Array, Any]:
    """``row_ids [rows]`` and ``local_ids`` of :func:`gather_rows`, of ``ids``, all int32."""
    leaves, tree = jax.tree.flatten(ids)
    if not sum(leaf.size for leaf in leaves):
        return jnp.zeros(0, jnp.int32), jax.tree.unflatten(tree, leaves)
    flat = safe_ids(jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), vocab_size)
    row_ids, local = _distinct(flat, vocab_size)
    local = jnp.where(flat < vocab_size, local, flat.size)
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


def summed_rows(reads: list[tuple[Any, Any]], vocab_size: int, dtype: Any) -> SparseRows:
    """One gradient of pairs (ids [...], values [..., features]), those of equal ids summed.

    Args:
      reads: at least one; an id outside [0, vocab_size) is dropped.
      vocab_size: ids from there on fill up, to the number of all ids together.
      dtype: of the sum.
    """
    row_ids, local_ids = distinct_ids([ids for ids, _ in reads], vocab_size)
    shape = row_ids.shape + reads[0][1].shape[reads[0][0].ndim :]
    total = jnp.zeros(shape, dtype)
    for at, (_, values) in zip(local_ids, reads, strict=True):
        values = values.reshape(-1, *shape[1:]).astype(dtype)
        total = total.at[at.reshape(-1)].add(values, mode="drop")
    return SparseRows(row_ids, total)


def sort_ids(ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``ids [n]`` in order: ``(order, ordered, is_first)``, [n] each.

    ``ordered = ids[order]`` keeps the order of equal ids; ``is_first`` marks the first of each.
    """
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    is_first = jnp.concatenate([jnp.ones(ids[:1].shape, bool), ordered[1:] != ordered[:-1]])
    return order, ordered, is_first
