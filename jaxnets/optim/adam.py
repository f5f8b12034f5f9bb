"""Adam by rows."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxnets.optim.by_rows import Touched, by_rows
from jaxnets.optim.options import as_option


def lazy_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015) whose moments and parameters change on touched rows only.

    The bias correction uses the number of all steps, as Adam's does. It differs from Adam in that a
    row that is not touched keeps its moments and stays; under Adam the moments decay and the row
    goes on moving. With every row touched at every step it equals ``optax.adam``.

    Args:
      learning_rate: a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second, in [0, 1).
      eps: at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = lazy_adam(0.1)
      >>> updates, state = optimizer.update(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """

    b1 = as_option("b1", b1, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    b2 = as_option("b2", b2, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    eps = as_option("eps", eps)

    def rule(at: Touched):
        first = b1 * at.state["first"] + (1 - b1) * at.gradient
        second = b2 * at.state["second"] + (1 - b2) * at.gradient**2
        steps = at.count.astype(at.gradient.dtype)
        scale = jnp.sqrt(second / (1 - b2**steps)) + eps
        update = -at.rate * (first / (1 - b1**steps)) / scale
        return update, {"first": first, "second": second}

    def zero(table, dtype):
        return {"first": jnp.zeros_like(table, dtype), "second": jnp.zeros_like(table, dtype)}

    return by_rows(learning_rate, zero, rule)
