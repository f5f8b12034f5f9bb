"""Rows of tables that are split over devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int32

from jaxnets.kernels.rows.distinct import as_ids, check_tables, distinct_ids, spoil_fillers
from jaxnets.kernels.rows.rows import Rows
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def sharded_gather_rows(
    sharding: VocabSharding, tables: Any, ids: Any
) -> tuple[Int32[Array, " rows"], Any, Any]:
    """:func:`gather_rows` from tables that are split over devices.

    Args:
      sharding: over which axes the tables' first axis is split.
      tables: of float arrays [vocab, ...], split over ``sharding.vocab``.
      ids: an integer array, or a pytree of such, of any shapes and layout.

    Returns:
      ``(row_ids, rows, local_ids)`` as of :func:`gather_rows`, on all devices; the rows behind the
      last id are 0, or NaN if an id is out of range.

    Raises:
      TypeError, ValueError: as :func:`gather_rows`; or tables that do not divide.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
      >>> table = jnp.arange(10.0)[:, None] * jnp.ones(2)
      >>> row_ids, rows, local = sharded_gather_rows(sharding, table, jnp.array([7, 3, 7]))
      >>> row_ids[:2].tolist(), rows[:2].tolist(), local.tolist()
      ([3, 7], [[3.0, 3.0], [7.0, 7.0]], [1, 0, 1])
    """
    ids = as_ids(ids)
    vocab = check_tables(tables, ids)
    sharding = as_sharding(sharding)
    sharding.check(vocab, (sharding.mesh.size,))
    return _gather_rows(sharding, tables, ids)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("sharded_gather_rows")
def _gather_rows(sharding: VocabSharding, tables: Any, ids: Any) -> tuple[jax.Array, Any, Any]:
    vocab = jax.tree.leaves(tables)[0].shape[0]

    def on_device(tables, ids):
        row_ids, local_ids = distinct_ids(ids, vocab)

        def read(table):
            local, _ = sharding.local_ids(row_ids, table.shape[0])
            return table.at[local].get(mode="fill", fill_value=0)

        rows = sharding.sum_over_vocab(jax.tree.map(read, tables))
        return row_ids, spoil_fillers(rows, row_ids, local_ids, vocab), local_ids

    return sharding.run(on_device, (sharding.table_spec, P()), P(), tables, ids)


def local_rows(sharding: VocabSharding, rows: Rows, size: int) -> Rows:
    """Inside ``run``: the rows of ``rows`` that are among this device's ``size`` classes.

    Others' ids become ones out of bounds, so that shapes stay; ids are sorted and distinct again.
    """
    local, own = sharding.local_ids(rows.ids, size)
    key = jnp.where(own, local, size + jnp.arange(rows.ids.size, dtype=jnp.int32))
    order = jnp.argsort(key)
    return Rows(key[order], rows.values[order])


def read_sharded(sharding: VocabSharding, vocab: int, part: jax.Array, ids: jax.Array) -> jax.Array:
    """Inside ``run``: ``table[ids]`` on all devices, NaN (0) where an id is out of range."""
    local, _ = sharding.local_ids(ids, part.shape[0])
    rows = sharding.sum_over_vocab(part.at[local].get(mode="fill", fill_value=0))
    if not jnp.issubdtype(part.dtype, jnp.floating):
        return rows
    inside = (ids >= 0) & (ids < vocab)
    return jnp.where(inside.reshape(*ids.shape, *(1 for _ in part.shape[1:])), rows, jnp.nan)


def take_sharded(sharding: VocabSharding, table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]`` on all devices, of a split table; NaN (0) where an id is out of range."""
    vocab = table.shape[0]

    def on_device(table, ids):
        return read_sharded(sharding, vocab, table, ids)

    return sharding.run(on_device, (sharding.table_spec, P()), P(), table, ids)
