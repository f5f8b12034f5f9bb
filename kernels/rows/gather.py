"""The gradient of a table as the rows that a step touched, not as an array of the table's size.

A step that reads a few thousand rows of a table [vocab, features] pays for the whole vocabulary all
the same, if its gradient is dense and its optimiser goes over every row. Here a step

1. gathers the rows it needs, each once (:func:`gather_rows`): a small table, with ids into it;
2. runs any loss on the small table and differentiates that, so its gradient is one row an id;
3. updates those rows (``jaxnets.optim``) in the donated tables.

Each costs the number of rows. The tables must be donated to the jitted step
(``jax.jit(step, donate_argnums=...)``); otherwise JAX copies them, and the step is O(vocab) again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.kernels import meshes
from jaxnets.kernels.rows.distinct import as_ids, check_tables, distinct_ids, spoil_last
from jaxnets.kernels.rows.offloaded import check_offloading, read_offloaded
from jaxnets.kernels.rows.sharded import gather_split_rows
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


class GatheredRows(NamedTuple):
    """What :func:`gather_rows` returns.

    Attributes:
      row_ids: [rows] int32, sorted and distinct, filled up with ids of vocab_size and above to the
        number of ids.
      rows: like the tables, with [rows, ...]; what fills up is anything.
      local_ids: like the ids, with ``rows[local_ids]`` equal to ``tables[ids]``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> table = jnp.arange(20.0).reshape(10, 2)
      >>> gathered = jax.jit(gather_rows)(table, jnp.array([7, 3, 7]))
      >>> gathered.rows[gathered.local_ids].tolist()
      [[14.0, 15.0], [6.0, 7.0], [14.0, 15.0]]
    """

    row_ids: jax.Array
    rows: Any
    local_ids: Any


@jax.named_scope("gather_rows")
def gather_rows(
    tables: Any, ids: Any, *, sharding: VocabSharding | None = None, offloaded: bool = False
) -> GatheredRows:
    """The rows of ``tables`` that ``ids`` name, each once, and ids into them.

    Args:
      tables: an array [vocab, ...] or a pytree of such with one vocab, as {"weight": [vocab,
        features], "bias": [vocab]}.
      ids: an array of integers of any width, a list of numbers, or a pytree of such, of any
        shapes; in [0, vocab_size).
      sharding: over which axes of a mesh the tables' first axis is split; None: it is not. The
        result is on all devices.
      offloaded: the tables lie in the host's memory (:func:`jaxnets.optim.offload`), and only the
        rows come to the device. Not with a sharding, and from jax 0.12 on.

    Returns:
      :class:`GatheredRows`. An id outside [0, vocab_size) gives a local id outside [0, rows): the
      losses make it NaN, and so does ``rows[local_ids]``, as the last row is NaN then. Without an
      id all of them are empty.

    Raises:
      NotImplementedError: ``offloaded`` with a JAX before 0.12.
      TypeError: float ids.
      ValueError: ``offloaded`` with a sharding, no table, tables with different first axes, one so
        long that the ids behind the last do not fit int32, or that the sharding does not divide.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> table = jnp.arange(20.0).reshape(10, 2)
      >>> row_ids, rows, local_ids = jax.jit(gather_rows)(table, jnp.array([7, 3, 7]))
      >>> row_ids.tolist(), rows.tolist()[:2], local_ids.tolist()
      ([3, 7, 12], [[6.0, 7.0], [14.0, 15.0]], [1, 0, 1])
    """
    ids = as_ids(ids)
    vocab_size = check_tables(tables, ids)
    sharding = as_sharding(sharding)
    if offloaded:
        if sharding.is_split:
            raise ValueError("offloaded must be False with a sharding, got True")
        check_offloading()
        return GatheredRows(*_gather_offloaded(tables, ids))
    if sharding.is_split:
        sharding.check(vocab_size, (sharding.mesh.size,))
        return GatheredRows(*gather_split_rows(sharding, tables, ids))
    given, (tables, ids) = ids, meshes.replicated((jax.tree.map(jnp.asarray, tables), ids))
    row_ids, local_ids = distinct_ids(ids, vocab_size)

    def read(table):
        return table.at[row_ids].get(mode="clip") if row_ids.size else table[:0]

    rows = jax.tree.map(read, tables)
    rows = spoil_last(rows, row_ids, local_ids)
    return GatheredRows(row_ids, rows, meshes.placed_like(given, local_ids))


@jax.jit
def _gather_offloaded(tables: Any, ids: Any) -> tuple[jax.Array, Any, Any]:
    vocab_size = jax.tree.leaves(tables)[0].shape[0]
    row_ids, local_ids = distinct_ids(ids, vocab_size)

    leaves, structure = jax.tree.flatten(tables)
    if row_ids.size:
        rows = read_offloaded([(table, row_ids) for table in leaves])
    else:
        rows = [jnp.zeros((0, *table.shape[1:]), table.dtype) for table in leaves]
    rows = jax.tree.unflatten(structure, rows)
    return row_ids, spoil_last(rows, row_ids, local_ids), local_ids
