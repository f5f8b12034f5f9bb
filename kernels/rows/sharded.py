"""Rows of tables that are split over devices."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.distinct import distinct_ids, spoil_last
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.kernels.vocab_sharding import VocabSharding

READ_SPLIT_ROWS = "read_split_rows"


@partial(jax.jit, static_argnums=0)
def gather_split_rows(sharding: VocabSharding, tables: Any, ids: Any) -> tuple[jax.Array, Any, Any]:
    """What ``gather_rows`` returns, of split tables, on all devices."""
    vocab_size = jax.tree.leaves(tables)[0].shape[0]

    def distinct(ids):
        return distinct_ids(ids, vocab_size)

    def spoil(rows, row_ids, local_ids):
        return spoil_last(rows, row_ids, local_ids)

    row_ids, local_ids = sharding.run(distinct, (P(),), P(), ids)
    rows = jax.tree.map(lambda table: read_split_rows(sharding, table, row_ids), tables)
    rows = sharding.run(spoil, (P(), P(), P()), P(), rows, row_ids, local_ids)
    return row_ids, rows, local_ids


@partial(jax.jit, static_argnums=0)
def read_split_rows(sharding: VocabSharding, table: jax.Array, row_ids: jax.Array) -> jax.Array:
    """``table[row_ids]`` on all devices, of a split table; 0 where an id is out of range.

    ``jaxnets.rows`` knows it by its name, ``READ_SPLIT_ROWS``, for a read of rows.
    """

    def on_device(table, row_ids):
        local, _ = sharding.local_ids(row_ids, table.shape[0])
        return sharding.sum_over_vocab(table.at[local].get(mode="fill", fill_value=0))

    return sharding.run(on_device, (sharding.table_spec, P()), P(), table, row_ids)


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


def dense_gradient(
    sharding: VocabSharding,
    table: jax.Array,
    vocab_axis: int,
    reads: list[tuple[jax.Array, jax.Array]],
) -> jax.Array:
    """That of a device's share of ``table``, of pairs: ids [...], and what came for each of them.

    Only in a ``shard_map``: ids of other devices' classes are dropped.
    """
    dense = jnp.zeros(table.shape, accumulator_dtype(table))
    for ids, values in reads:
        local, _ = sharding.local_ids(ids, table.shape[vocab_axis])
        values = values.astype(dense.dtype)
        if vocab_axis:
            dense = dense.at[:, local].add(jnp.moveaxis(values, -1, 0), mode="drop")
        else:
            dense = dense.at[local].add(values, mode="drop")
    return dense.astype(table.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def whole_rows(
    sharding: VocabSharding, features_first: bool, table: jax.Array, ids: jax.Array
) -> jax.Array:
    """``read_rows`` of a table or a bias that is split, on all devices, by ids that all have.

    Its gradient is as dense as the table and split alike: each device adds up its own classes, and
    nothing is sent.
    """
    return _whole_rows_forward(sharding, features_first, table, ids)[0]


def _whole_rows_forward(
    sharding: VocabSharding, features_first: bool, table: jax.Array, ids: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    columns = features_first and table.ndim > 1
    vocab_size = table.shape[1 if columns else 0]

    def on_device(table, ids):
        return read_sharded(sharding, vocab_size, table, ids, features_first)

    in_specs = sharding.weight_spec(columns), P()
    return sharding.run(on_device, in_specs, P(), table, ids), (table, ids)


def _whole_rows_backward(
    sharding: VocabSharding, features_first: bool, residuals: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, None]:  # fmt: skip
    table, ids = residuals
    columns = features_first and table.ndim > 1

    def on_device(table, ids, rows):
        return dense_gradient(sharding, table, 1 if columns else 0, [(ids, rows)])

    split = sharding.weight_spec(columns)
    return sharding.run(on_device, (split, P(), P()), split, table, ids, cotangent), None


whole_rows.defvjp(_whole_rows_forward, _whole_rows_backward)
