"""Lion by rows."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.optim.by_rows import Touched, by_rows, decayed, decays


def lazy_lion(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 1e-3,
) -> optax.GradientTransformation:
    r"""Lion (Chen et al. 2023, algorithm 2) whose momentum and rows change where they are touched.

    .. math:: w_i \leftarrow w_i - \eta \left(\operatorname{sign}(\beta_1 m_i + (1 - \beta_1) g_i)
        + \lambda w_i\right), \qquad m_i \leftarrow \beta_2 m_i + (1 - \beta_2) g_i

    A row that is not touched keeps its momentum and stays. With every row touched at every step it
    equals ``optax.lion``. Every entry of a row moves by the whole rate, however small its gradient.

    Args:
      learning_rate: :math:`\eta`, a number of at least 0, or a schedule; a third to a tenth of
        Adam's (section 5 of the paper).
      b1: of the momentum in the direction, in [0, 1).
      b2: decay of the momentum, in [0, 1).
      weight_decay: :math:`\lambda`, decoupled, at least 0.

    Raises:
      TypeError, ValueError: as :func:`sgd`; by ``update``, no parameters, unless ``weight_decay``
        is 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.ones((3, 2)), SparseRows([2], jnp.full((1, 2), 4.0))
      >>> optimizer = lazy_lion(0.1, weight_decay=0.0)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table))
      >>> optim.apply_updates(table, updates)[:, 0].round(3).tolist()
      [1.0, 1.0, 0.9...]
    """
    b1 = as_option("b1", b1, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    b2 = as_option("b2", b2, lambda x: (x >= 0) & (x < 1), "in [0, 1)")
    weight_decay = as_option("weight_decay", weight_decay)

    def rule(at: Touched):
        momentum = at.state["momentum"]
        update = jnp.sign(b1 * momentum + (1 - b1) * at.gradient)
        momentum = b2 * momentum + (1 - b2) * at.gradient
        return -at.rate * decayed(at, update, weight_decay), {"momentum": momentum}

    def zero(table, dtype):
        return {"momentum": jnp.zeros_like(table, dtype)}

    return by_rows(learning_rate, zero, rule, decays(weight_decay))
