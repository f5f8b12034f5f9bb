"""Gradient descent by rows, plain and with momentum."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.optim.by_rows import Touched, by_rows


def sgd(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """``update = -learning_rate g``. Equal to ``optax.sgd``.

    Args:
      learning_rate: a number of at least 0, or a schedule.

    Raises:
      TypeError: tables that are not floating point; by ``update``, a gradient that is not
        ``SparseRows`` of floats.
      ValueError: a number out of its range; by ``update``, gradients of another tree or other
        shapes than ``init`` was given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = sgd(0.1)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.6...]
    """

    def rule(at: Touched):
        return -at.rate * at.gradient, at.state

    return by_rows(learning_rate, lambda table, dtype: {}, rule)


def momentum(
    learning_rate: optax.ScalarOrSchedule, decay: float = 0.9
) -> optax.GradientTransformation:
    """``m = decay m + g; update = -learning_rate m``, on touched rows only.

    A row's velocity neither decays nor moves it while the row is not touched; ``optax.sgd`` with
    momentum would do both.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      decay: in [0, 1].

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = momentum(0.1)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.6...]
    """

    decay = as_option("decay", decay, lambda x: (x >= 0) & (x <= 1), "in [0, 1]")

    def rule(at: Touched):
        velocity = decay * at.state["velocity"] + at.gradient
        return -at.rate * velocity, {"velocity": velocity}

    def zero(table, dtype):
        return {"velocity": jnp.zeros_like(table, dtype)}

    return by_rows(learning_rate, zero, rule)
