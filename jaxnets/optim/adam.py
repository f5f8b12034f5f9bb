"""Adam by rows: with decoupled decay, and with a second moment a row."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.optim.by_rows import Touched, by_rows, decayed, decays


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
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = lazy_adam(0.1)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """
    return _adam(learning_rate, b1, b2, eps)


def lazy_adamw(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 1e-4,
) -> optax.GradientTransformation:
    r""":func:`lazy_adam` with decoupled weight decay of touched rows.

    .. math:: w_i \leftarrow w_i - \eta
        \left(\hat m_i / (\sqrt{\hat v_i} + \epsilon) + \lambda w_i\right)

    Loshchilov and Hutter 2019, algorithm 2. A row that is touched in a fraction p of all steps
    decays by about :math:`p \eta \lambda` a step; under ``optax.adamw`` all do by
    :math:`\eta \lambda`. With every row touched at every step the two are equal.

    Args:
      learning_rate: :math:`\eta`, a number of at least 0, or a schedule.
      b1: decay of the first moment, in [0, 1).
      b2: decay of the second, in [0, 1).
      eps: at least 0.
      weight_decay: :math:`\lambda`, at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`; by ``update``, no parameters, which the decay reads.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.zeros((1, 2)))
      >>> optimizer = lazy_adamw(0.1, weight_decay=0.5)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table), table)
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """
    return _adam(learning_rate, b1, b2, eps, weight_decay=weight_decay)


def rowwise_adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    r""":func:`lazy_adam` with one second moment a row: half the state.

    .. math:: v_i \leftarrow \beta_2 v_i + (1 - \beta_2) \operatorname{mean}_j g_{ij}^2

    The first moment is whole. As in FBGEMM's partial row-wise Adam; Adam-mini (Zhang et al. 2024)
    takes one second moment for each block of a network's parameters. Equal to ``optax.adam`` on a
    table of one feature, where every row is touched at every step. Arguments and errors are those
    of :func:`lazy_adam`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = rowwise_adam(0.1)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
      >>> state.tables[0]["first"].shape, state.tables[0]["second"].shape
      ((3, 2), (3,))
    """
    return _adam(learning_rate, b1, b2, eps, by_row=True)


def _adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float = 0.0,
    by_row: bool = False,
) -> optax.GradientTransformation:
    b1 = as_option("b1", b1, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    b2 = as_option("b2", b2, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    eps, weight_decay = as_option("eps", eps), as_option("weight_decay", weight_decay)

    def rule(at: Touched):
        columns = tuple(range(1, at.gradient.ndim)) if by_row else ()
        first = b1 * at.state["first"] + (1 - b1) * at.gradient
        second = b2 * at.state["second"] + (1 - b2) * (at.gradient**2).mean(columns)
        steps = at.steps.astype(at.gradient.dtype)
        scale = jnp.sqrt(jnp.expand_dims(second, columns) / (1 - b2**steps)) + eps
        update = (first / (1 - b1**steps)) / scale
        return -at.rate * decayed(at, update, weight_decay), {"first": first, "second": second}

    def zero(table, dtype):
        second = jnp.zeros(table.shape[:1], dtype) if by_row else jnp.zeros_like(table, dtype)
        return {"first": jnp.zeros_like(table, dtype), "second": second}

    return by_rows(learning_rate, zero, rule, decays(weight_decay))
