"""Updates, dense and by rows, added to parameters."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnets.kernels.numerics import accumulator_dtype, stochastic_bfloat16
from jaxnets.kernels.rows.dense import add_rows
from jaxnets.optim.by_rows import is_rows


def apply_updates(tables: Any, updates: Any, *, key: jax.Array | None = None) -> Any:
    """``tables`` with the rows of ``updates`` added, in place where the tables are donated.

    Updates that are arrays are added as ``optax.apply_updates`` does: in the wider dtype, and
    rounded once.

    To the nearest number of bfloat16, an update of less than 1/512 of a parameter is lost. With a
    ``key`` sums for bfloat16 are rounded up or down at random, so that they are right on average
    (stochastic rounding, Gupta et al. 2015, section 3.1); every other dtype is as without.

    Args:
      tables: a pytree of arrays, [vocab, ...] where the update is ``SparseRows``.
      updates: of the same tree, with ``SparseRows`` or arrays.
      key: a ``jax.random`` key, another one for each step; None: round to the nearest.

    Raises:
      TypeError, ValueError: as :func:`jaxnets.kernels.add_rows`; or another tree.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"table": jnp.ones((3, 1)), "bias": jnp.ones(1)}
      >>> updates = {"table": SparseRows([2], jnp.ones((1, 1))), "bias": jnp.ones(1)}
      >>> parameters = apply_updates(parameters, updates)
      >>> parameters["table"][:, 0].tolist(), parameters["bias"].tolist()
      ([1.0, 1.0, 2.0], [2.0])

      Of a thousand small updates the nearest number keeps none, and the random one the mean:

      >>> ones, small = jnp.ones(1000, jnp.bfloat16), jnp.full(1000, 1e-3)
      >>> float(np.float32(apply_updates(ones, small)).mean())
      1.0
      >>> rounded = jax.jit(apply_updates)(ones, small, key=jax.random.key(0))
      >>> bool(5e-4 < np.float32(rounded).mean() - 1 < 2e-3)
      True
    """
    leaves, structure = jax.tree.flatten(updates, is_leaf=is_rows)
    keys = [None if key is None else jax.random.fold_in(key, i) for i in range(len(leaves))]

    def add(update, table, key):
        if is_rows(update):
            return add_rows(table, update, key=key)
        if key is None or jnp.result_type(table) != jnp.bfloat16:
            return optax.apply_updates(table, update)
        dtype = accumulator_dtype(table, update)
        return stochastic_bfloat16(table.astype(dtype) + update.astype(dtype), key)

    return jax.tree.map(add, updates, tables, jax.tree.unflatten(structure, keys), is_leaf=is_rows)
