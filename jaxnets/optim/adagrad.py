"""Adagrad by rows, with an accumulator an entry or a row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.optim.by_rows import Touched, by_rows


def adagrad(
    learning_rate: optax.ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """``a = a + g^2; update = -learning_rate g / sqrt(a + eps)`` (Duchi et al. 2011).

    Equal to ``optax.adagrad``: a gradient of 0 changes nothing in either.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      initial_accumulator_value: of a, at least 0.
      eps: at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = adagrad(0.1, initial_accumulator_value=0.0)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """

    initial_accumulator_value = as_option("initial_accumulator_value", initial_accumulator_value)
    eps = as_option("eps", eps)

    def rule(at: Touched):
        total = at.state["sum"] + at.gradient**2
        return -at.rate * at.gradient * _inverse_root(total, eps), {"sum": total}

    def start(table, dtype):
        return {"sum": jnp.full_like(table, initial_accumulator_value, dtype)}

    return by_rows(learning_rate, start, rule)


def rowwise_adagrad(
    learning_rate: optax.ScalarOrSchedule, initial_accumulator_value: float = 0.1, eps: float = 1e-7
) -> optax.GradientTransformation:
    """Adagrad with one accumulator a row, of the mean of g^2 over the row: 1/features the state.

    As in DLRM (Naumov et al. 2019). Equal to :func:`adagrad` on a table of one feature; arguments
    and errors are the same.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = rowwise_adagrad(0.1)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
      >>> state.tables[0]["sum"].shape
      (3,)
    """

    initial_accumulator_value = as_option("initial_accumulator_value", initial_accumulator_value)
    eps = as_option("eps", eps)

    def rule(at: Touched):
        columns = tuple(range(1, at.gradient.ndim))
        total = at.state["sum"] + (at.gradient**2).mean(columns)
        scale = _inverse_root(total, eps).reshape(-1, *(1 for _ in columns))
        return -at.rate * at.gradient * scale, {"sum": total}

    def start(table, dtype):
        return {"sum": jnp.full(table.shape[:1], initial_accumulator_value, dtype)}

    return by_rows(learning_rate, start, rule)


def _inverse_root(total: jax.Array, eps: Any) -> jax.Array:
    """``1 / sqrt(total + eps)``, and 0 where nothing was ever added, as in optax."""
    return jnp.where(total > 0, jax.lax.rsqrt(total + eps), 0)
