"""Distinct ids among those that a step looks up, and where each stands among them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.kernels.checks import INT32_MAX, as_integers
from jaxnets.kernels.losses import safe_ids
from jaxnets.kernels.numerics import running_count
from jaxnets.kernels.rows.rows import SparseRows


def as_ids(ids: Any) -> Any:
    """``ids`` with each array, or list of numbers, as int32."""

    def is_list(node):
        return isinstance(node, list | tuple) and all(
            is_list(inner) or isinstance(inner, int | np.integer) for inner in node
        )

    return jax.tree.map(lambda leaf: as_integers("ids", leaf), ids, is_leaf=is_list)


def spoil_last(rows: Any, row_ids: jax.Array, local_ids: Any) -> Any:
    """``rows`` with NaN in the last, if an id is out of range: that one fills up then.

    Indexing takes the last row for a local id out of bounds.
    """
    if not row_ids.size:
        return rows
    missing = [(leaf == row_ids.size).any() for leaf in jax.tree.leaves(local_ids)]
    lost = jnp.array(missing, bool).any()

    def spoil(rows):
        if not jnp.issubdtype(rows.dtype, jnp.inexact):
            return rows
        return rows.at[-1].set(jnp.where(lost, jnp.asarray(jnp.nan, rows.dtype), rows[-1]))

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


_GOLDEN = np.uint32(0x9E3779B1)  # Knuth's multiplier, 2**32 over the golden ratio: odd, and a prime
_SLOTS_PER_ID = 4


def first_of_each(ids: jax.Array) -> jax.Array:
    """Whether an id stands before all that equal it, [n] bool of ``ids [n]``, whatever they are.

    By hashing: of the ids that fall into a slot the foremost is the first of its kind, and those
    that equal it are not. Those that differ from it try again with another hash, and each time
    there are fewer. No sort: of tens of thousands XLA for TPU takes half a minute to compile one.
    """
    bits = math.ceil(math.log2(max(2, _SLOTS_PER_ID * ids.size)))
    places = jnp.arange(ids.size, dtype=jnp.int32)

    def settle(state):
        is_first, left, factor = state
        slots = (ids.astype(jnp.uint32) * factor) >> (32 - bits)
        slots = jnp.where(left, slots.astype(jnp.int32), 1 << bits)
        table = jnp.full(1 << bits, ids.size, jnp.int32).at[slots].min(places, mode="drop")
        foremost = table.at[slots].get(mode="clip")
        is_first |= left & (foremost == places)
        return is_first, left & (ids[foremost] != ids), factor * _GOLDEN

    left = ids == ids  # all, and in a shard_map varying as the ids do
    return lax.while_loop(lambda state: state[1].any(), settle, (~left, left, _GOLDEN))[0]


def _distinct(ids: jax.Array, fill: int) -> tuple[jax.Array, jax.Array]:
    """Sorted distinct ids, filled up with ``fill``, and where each id stands among them."""
    # Equal ids have one rank, so their order is all the same: a stable sort takes XLA for TPU twice
    # the time to compile.
    places = jnp.arange(ids.size, dtype=jnp.int32)
    ordered, order = lax.sort((ids, places), num_keys=1, is_stable=False)
    is_first = jnp.concatenate([jnp.ones(ids[:1].shape, bool), ordered[1:] != ordered[:-1]])
    rank = running_count(is_first) - 1
    # Fillers differ, so that ids are distinct and sorted to the end, as the scatters promise XLA.
    distinct = (jnp.int32(fill) + places).at[rank].set(ordered)
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
