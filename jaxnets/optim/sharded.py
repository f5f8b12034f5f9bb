"""Row-sparse optimizers on tables that are split over devices: each updates its own rows."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import optax
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.rows.sharded import local_rows
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding
from jaxnets.optim.apply import apply_updates
from jaxnets.optim.by_rows import RowState, check_all_rows, check_by_rows_alone, is_rows


def sharded_init(
    sharding: VocabSharding, optimizer: optax.GradientTransformation, tables: Any
) -> RowState:
    """The state of an optimizer of this package, split as the tables are.

    Args:
      sharding: over which axes the tables' first axis is split.
      optimizer: by rows, for example :func:`jaxnets.optim.adagrad`. No chain and no
        :func:`accumulate`: a device would see the norm and the rows of its own part alone.
      tables: of arrays [vocab, ...].

    Raises:
      TypeError: ``sharding`` is none, another optimizer, or tables that are not floating point.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
      >>> state = sharded_init(sharding, optim.adagrad(0.1), {"weight": jnp.ones((4, 2))})
      >>> state.tables[0]["sum"].shape, state.step.item()
      ((4, 2), 0)
    """
    sharding = as_sharding(sharding)
    check_by_rows_alone(optimizer, tables, "sharded_update")
    return sharding.run(optimizer.init, (sharding.table_spec,), _split(sharding), tables)


def _split(sharding: VocabSharding) -> Any:
    """How a state is laid out: its tables as the tables are, its count everywhere."""
    step: Any = P()
    return RowState(step, sharding.table_spec)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def sharded_update(
    sharding: VocabSharding,
    optimizer: optax.GradientTransformation,
    gradients: Any,
    state: RowState,
    tables: Any,
) -> tuple[Any, RowState]:
    """``(tables, state)`` after a step; nothing is sent, and no table is gone over.

    Args:
      sharding: over which axes the tables' first axis is split.
      optimizer: by rows, as for :func:`sharded_init`.
      gradients: like ``tables`` with :class:`jaxnets.kernels.SparseRows`, on all devices.
      state: of :func:`sharded_init`; it and ``tables`` are donated.
      tables: of arrays [vocab, ...].

    Raises:
      TypeError: gradients that are not rows.
      ValueError: gradients of another tree than the tables, or rows of another shape.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
      >>> optimizer, table = optim.sgd(0.5), jnp.ones((4, 1))
      >>> state = sharded_init(sharding, optimizer, table)
      >>> gradient = SparseRows(jnp.array([1, 3]), jnp.ones((2, 1)))
      >>> table, state = sharded_update(sharding, optimizer, gradient, state, table)
      >>> table[:, 0].tolist()
      [1.0, 0.5, 1.0, 0.5]
    """
    check_all_rows(jax.tree.leaves(gradients, is_leaf=is_rows))

    def on_device(gradients, state, tables):
        local = jax.tree.map(
            lambda rows, table: local_rows(sharding, rows, table.shape[0]),
            gradients,
            tables,
            is_leaf=is_rows,
        )
        updates, state = optimizer.update(local, state, tables)
        return apply_updates(tables, updates), state

    split = _split(sharding)
    return sharding.run(
        on_device, (P(), split, sharding.table_spec), (sharding.table_spec, split),
        gradients, state, tables,
    )  # fmt: skip
