"""Row-sparse optimizers on tables in the host's memory, larger than the device's."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxnets.kernels.rows.offloaded import (
    HOST_KIND,
    check_offloading,
    read_offloaded,
    write_offloaded,
)
from jaxnets.kernels.rows.rows import SparseRows
from jaxnets.optim.apply import apply_updates
from jaxnets.optim.by_rows import RowState, check_all_rows, check_by_rows_alone, is_rows


def offload(tables: Any) -> Any:
    """``tables`` in the memory of their devices' host, for ``gather_rows(..., offloaded=True)``.

    Args:
      tables: arrays [vocab, ...] on devices that have such memory (``pinned_host``). What is larger
        than a device's memory is given as NumPy's arrays, which go to the first device's host.

    Raises:
      NotImplementedError: a JAX before 0.12.

    Example:
      >>> import jax.numpy as jnp
      >>> offload(jnp.ones((4, 2))).sharding.memory_kind
      'pinned_host'
    """
    check_offloading()

    def put(table):
        if isinstance(table, jax.Array):
            return jax.device_put(table, table.sharding.with_memory_kind(HOST_KIND))
        device = jax.config.values["jax_default_device"] or jax.devices()[0]
        return jax.device_put(
            table, jax.sharding.SingleDeviceSharding(device, memory_kind=HOST_KIND)
        )

    return jax.tree.map(put, tables)


def offloaded_init(optimizer: optax.GradientTransformation, tables: Any) -> RowState:
    """The state of an optimizer of this package, in the host's memory as the tables are.

    It is made by JAX's CPU backend, so that no device needs to hold it.

    Args:
      optimizer: by rows, for example :func:`jaxnets.optim.adagrad`. No chain.
      tables: of :func:`offload`.

    Raises:
      NotImplementedError: a JAX before 0.12.
      TypeError: another optimizer, or tables that are not floating point.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets import optim
      >>> state = offloaded_init(optim.adagrad(0.1), offload(jnp.ones((4, 2))))
      >>> state.tables[0]["sum"].sharding.memory_kind
      'pinned_host'
    """
    check_offloading()
    check_by_rows_alone(optimizer, tables, "offloaded_update")
    cpu = jax.local_devices(backend="cpu")[0]
    step, states = jax.jit(optimizer.init)(jax.device_put(jax.tree.map(np.asarray, tables), cpu))
    places = [table.sharding for table in jax.tree.leaves(tables)]
    placed = [
        jax.tree.map(lambda array, place=place: jax.device_put(array, place), arrays)
        for place, arrays in zip(places, states, strict=True)
    ]
    return RowState(jnp.asarray(step.item(), jnp.int32), placed)


def offloaded_update(
    optimizer: optax.GradientTransformation, gradients: Any, state: RowState, tables: Any
) -> tuple[Any, RowState]:
    """``(tables, state)`` after a step; only the touched rows of both go to the device and back.

    A program of its own for each table: call it outside of ``jit``, with the gradients of a jitted
    step. The TPU's compiler refuses several tables of the host in one program that donates them.

    Args:
      optimizer: by rows, as for :func:`offloaded_init`.
      gradients: like ``tables``, with :class:`jaxnets.kernels.SparseRows`.
      state: of :func:`offloaded_init`; it and ``tables`` are donated.
      tables: of :func:`offload`.

    Raises:
      NotImplementedError: a JAX before 0.12.
      TypeError: gradients that are not rows.
      ValueError: gradients of another tree than the tables, or rows of another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows, gather_rows
      >>> optimizer, table = optim.sgd(0.5), optim.offload(jnp.ones((4, 1)))
      >>> state = optim.offloaded_init(optimizer, table)
      >>> row_ids, rows, local_ids = gather_rows(table, jnp.array([3, 1, 3]), offloaded=True)
      >>> gradient = jax.jit(jax.grad(lambda rows: rows[local_ids].sum()))(rows)
      >>> table, state = optim.offloaded_update(
      ...     optimizer, SparseRows(row_ids, gradient), state, table
      ... )
      >>> table[:, 0].tolist(), table.sharding.memory_kind
      ([1.0, 0.5, 1.0, 0.0], 'pinned_host')
    """
    check_offloading()
    leaves, structure = jax.tree.flatten(gradients, is_leaf=is_rows)
    matched = jax.tree.map(lambda _, table: table, gradients, tables, is_leaf=is_rows)
    if len(leaves) != len(state.tables):
        raise ValueError(
            f"gradients must be SparseRows for each of the {len(state.tables)} tables that the "
            f"state was made for, got {len(leaves)} leaves"
        )
    check_all_rows(leaves)
    step, new, states = state.step, [], []
    for rows, table, held in zip(leaves, jax.tree.leaves(matched), state.tables, strict=True):
        table, held, step = _moved(optimizer, rows, state.step, table, held)
        new.append(table)
        states.append(held)
    return jax.tree.unflatten(structure, new), RowState(step, states)


@partial(jax.jit, static_argnums=0, donate_argnums=(3, 4))
def _moved(
    optimizer: optax.GradientTransformation,
    gradient: SparseRows,
    step: jax.Array,
    table: jax.Array,
    held: dict[str, jax.Array],
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
    """A table, its part of the state, and the count after a step."""
    names, arrays, ids = list(held), [table, *held.values()], gradient.ids
    # A table of the touched rows alone, each at its own place; fillers move rows that are dropped.
    small, *states = read_offloaded([(array, ids) for array in arrays])
    every = SparseRows(jnp.arange(ids.size, dtype=jnp.int32), gradient.values)
    before = RowState(step, [dict(zip(names, states, strict=True))])
    updates, (step, (after,)) = optimizer.update(every, before, small)
    rows = [apply_updates(small, updates), *(after[name] for name in names)]
    table, *states = write_offloaded(
        [(array, ids, part) for array, part in zip(arrays, rows, strict=True)]
    )
    return table, dict(zip(names, states, strict=True)), step
