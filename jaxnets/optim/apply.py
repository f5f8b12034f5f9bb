"""Updates, dense and by rows, added to parameters."""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxnets.kernels.rows.dense import add_rows
from jaxnets.optim.by_rows import is_rows


def apply_updates(tables: Any, updates: Any) -> Any:
    """``tables`` with the rows of ``updates`` added, in place where the tables are donated.

    Updates that are arrays are added as ``optax.apply_updates`` does: in the wider dtype, and
    rounded once.

    Args:
      tables: a pytree of arrays, [vocab, ...] where the update is ``SparseRows``.
      updates: of the same tree, with ``SparseRows`` or arrays.

    Raises:
      TypeError, ValueError: as :func:`jaxnets.kernels.add_rows`; or another tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"table": jnp.ones((3, 1)), "bias": jnp.ones(1)}
      >>> updates = {"table": SparseRows([2], jnp.ones((1, 1))), "bias": jnp.ones(1)}
      >>> parameters = apply_updates(parameters, updates)
      >>> parameters["table"][:, 0].tolist(), parameters["bias"].tolist()
      ([1.0, 1.0, 2.0], [2.0])
    """

    def add(update, table):
        if is_rows(update):
            return add_rows(table, update)
        return optax.apply_updates(table, update)

    return jax.tree.map(add, updates, tables, is_leaf=is_rows)
