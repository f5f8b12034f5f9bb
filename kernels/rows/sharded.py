"""Rows of tables that are split over devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.rows.distinct import distinct_ids, spoil_fillers
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.jit, static_argnums=0)
def gather_split_rows(sharding: VocabSharding, tables: Any, ids: Any) -> tuple[jax.Array, Any, Any]:
    """What ``gather_rows`` returns, of split tables, on all devices."""
    vocab_size = jax.tree.leaves(tables)[0].shape[0]

    def on_device(tables, ids):
        row_ids, local_ids = distinct_ids(ids, vocab_size)

        def read(table):
            local, _ = sharding.local_ids(row_ids, table.shape[0])
            return table.at[local].get(mode="fill", fill_value=0)

        rows = sharding.sum_over_vocab(jax.tree.map(read, tables))
        return row_ids, spoil_fillers(rows, row_ids, local_ids, vocab_size), local_ids

    return sharding.run(on_device, (sharding.table_spec, P()), P(), tables, ids)


def local_rows(sharding: VocabSharding, rows: SparseRows, size: int) -> SparseRows:
    """Inside ``run``: the rows of ``rows`` that are among this device's ``size`` classes.

    Others' ids become ones out of bounds, so that shapes stay; ids are sorted and distinct again.
    """
    local, own = sharding.local_ids(rows.ids, size)
    key = jnp.where(own, local, size + jnp.arange(rows.ids.size, dtype=jnp.int32))
    order = jnp.argsort(key)
    return SparseRows(key[order], rows.values[order])


def read_sharded(
    sharding: VocabSharding,
    vocab_size: int,
    part: jax.Array,
    ids: jax.Array,
    features_first: bool = False,
) -> jax.Array:
    """Inside ``run``: ``table[ids]`` on all devices, NaN (0) where an id is out of range.

    The rows of a table [features, vocab] are its columns.
    """
    columns = features_first and part.ndim > 1
    local, _ = sharding.local_ids(ids, part.shape[1 if columns else 0])
    rows = part.at[(slice(None), local) if columns else local].get(mode="fill", fill_value=0)
    rows = sharding.sum_over_vocab(jnp.moveaxis(rows, 0, -1) if columns else rows)
    if not jnp.issubdtype(part.dtype, jnp.floating):
        return rows
    inside = in_range(ids, vocab_size)
    return jnp.where(jnp.expand_dims(inside, range(ids.ndim, rows.ndim)), rows, jnp.nan)


@partial(jax.jit, static_argnums=0)
def take_sharded(sharding: VocabSharding, table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]`` on all devices, of a split table; NaN (0) where an id is out of range."""
    vocab_size = table.shape[0]

    def on_device(table, ids):
        return read_sharded(sharding, vocab_size, table, ids)

    return sharding.run(on_device, (sharding.table_spec, P()), P(), table, ids)
