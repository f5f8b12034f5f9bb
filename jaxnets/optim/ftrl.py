"""FTRL-Proximal: sparse weights from sparse gradients."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.optim.by_rows import Touched, by_rows


def ftrl(
    learning_rate: float, l1: float = 0.0, l2: float = 0.0, beta: float = 1.0
) -> optax.GradientTransformation:
    r"""FTRL-Proximal with a learning rate for each entry (McMahan et al. 2013, algorithm 1).

    .. math::
        \sigma = \left(\sqrt{n + g^2} - \sqrt{n}\right) / \alpha, \qquad
        z \leftarrow z + g - \sigma w, \qquad n \leftarrow n + g^2, \\
        w \leftarrow \begin{cases} 0 & |z| \le \lambda_1 \\
        -\left(z - \operatorname{sign}(z) \lambda_1\right) /
        \left((\beta + \sqrt{n}) / \alpha + \lambda_2\right) & \text{else} \end{cases}

    An entry is exactly 0 until its gradients add up to more than :math:`\lambda_1`. A gradient of
    0 changes nothing, so updating touched rows is the whole algorithm. The state starts with the z
    at which w is the table's; the algorithm of the paper starts at 0. The w in it is that of z and
    n: a table in bfloat16 is rounded, and no rounding adds up; what else moves a row is lost when
    it is touched again.

    Args:
      learning_rate: :math:`\alpha`, a number above 0. No schedule: it is part of what w minimizes.
      l1: :math:`\lambda_1`, at least 0.
      l2: :math:`\lambda_2`, at least 0.
      beta: above 0.

    Raises:
      TypeError: a schedule; else as :func:`sgd`.
      ValueError: as :func:`sgd`; by ``update``, no parameters.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> table, gradient = jnp.zeros((3, 2)), SparseRows([2], jnp.array([[4.0, 0.5]]))
      >>> optimizer = ftrl(0.5, l1=1.0)
      >>> updates, state = jax.jit(optimizer.update)(gradient, optimizer.init(table), table)
      >>> optim.apply_updates(table, updates).round(3).tolist()
      [[0.0, 0.0], [0.0, 0.0], [-0.3..., 0.0]]
    """
    alpha = as_option(
        "learning_rate", learning_rate, lambda x: (x > 0) & (x < jnp.inf), "a number above 0"
    )
    beta = as_option("beta", beta, lambda x: (x > 0) & (x < jnp.inf), "a number above 0")
    l1, l2 = as_option("l1", l1), as_option("l2", l2)

    def weights(z, n):
        curvature = (beta + jnp.sqrt(n)) / alpha + l2
        return jnp.where(jnp.abs(z) <= l1, 0, -(z - jnp.sign(z) * l1) / curvature)

    def rule(at: Touched):
        z, n = at.state["z"], at.state["n"]
        total = n + at.gradient**2
        sigma = (jnp.sqrt(total) - jnp.sqrt(n)) / at.rate
        z = z + at.gradient - sigma * weights(z, n)
        return weights(z, total) - at.parameters, {"z": z, "n": total}

    def start(table, dtype):
        table = table.astype(dtype)
        z = -table * (beta / alpha + l2) - jnp.sign(table) * l1
        return {"z": z.astype(dtype), "n": jnp.zeros_like(table)}

    return by_rows(alpha, start, rule, reads_parameters=True)
