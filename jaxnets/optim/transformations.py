"""optax's transformations that a chain needs, for gradients of which some are rows.

What is dense is treated as optax treats it. Of rows only those that a step touches are: that is
where each may differ from its namesake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxnets.kernels.checks import as_option
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.optim.by_rows import check_given, is_rows, read_touched
from jaxnets.optim.clipping import as_limit, clip_by_norm, is_float


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """:func:`clip_by_norm` as a link of ``optax.chain``: one norm of rows and dense together.

    As ``optax.clip_by_global_norm``, but that a gradient which is not finite is NaN throughout.

    Args:
      limit: the largest norm, above 0.

    Raises:
      ValueError: a limit that is not above 0; NaN where it is traced.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxnets import optim
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"bias": jnp.zeros(1), "table": jnp.zeros((9, 1))}
      >>> gradients = {"bias": jnp.array([3.0]), "table": SparseRows([7], jnp.array([[4.0]]))}
      >>> optimizer = optax.chain(
      ...     clip_by_global_norm(1.0),
      ...     optim.partition(optim.sgd(1.0), optax.sgd(1.0), lambda path: path == ("table",)),
      ... )
      >>> updates, state = jax.jit(optimizer.update)(gradients, optimizer.init(parameters))
      >>> updates["bias"].round(3).tolist(), updates["table"].values.round(3).tolist()
      ([-0.6...], [[-0.8...]])
    """
    limit = as_limit(limit)
    return optax.stateless(lambda gradients, _: clip_by_norm(gradients, limit)[0])


def scale(factor: float) -> optax.GradientTransformation:
    """``factor g``, as ``optax.scale``, of the values of rows too; integers are left alone.

    A learning rate is the optimizer's own argument; this is for what stands before or behind it in
    a chain, as the inverse of a factor that the loss was multiplied by.

    Args:
      factor: any finite number.

    Raises:
      ValueError: a factor that is not finite; NaN where it is traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> halved, _ = scale(0.5).update(SparseRows([7], jnp.array([[4.0]])), optax.EmptyState())
      >>> halved.ids.tolist(), halved.values.tolist()
      ([7], [[2.0]])
    """
    factor = as_option("factor", factor, lambda x: abs(x) < jnp.inf, "a finite number")

    def scaled(leaf):
        if is_rows(leaf):
            return leaf._replace(values=scaled(leaf.values))
        if not is_float(leaf):
            return leaf
        wide = accumulator_dtype(leaf)
        return (leaf.astype(wide) * jnp.asarray(factor).astype(wide)).astype(leaf.dtype)

    return optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, is_leaf=is_rows))


def add_decayed_weights(
    weight_decay: float, mask: Any | Callable[[Any], Any] | None = None
) -> optax.GradientTransformation:
    r""":math:`g_i + \lambda w_i` for each row i that a step touches, and for each dense parameter.

    ``optax.add_decayed_weights`` decays every row of a table at every step. Here a row without a
    gradient stays as it is, so that one that is read in a fraction p of all steps decays by about
    :math:`p \lambda`; where all rows are touched the two are equal. It stands before an optimizer,
    as L2 regularization; decay that is decoupled is an argument of :func:`lazy_adamw`.

    Args:
      weight_decay: :math:`\lambda`, a number of at least 0.
      mask: a tree of bools like the parameters, or its beginning, that says which decay; or a
        function of the parameters that gives it. None: all.

    Raises:
      ValueError: a decay out of its range (NaN where it is traced); by ``update``, no parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> parameters = {"bias": jnp.ones(1), "table": jnp.full((9, 1), 2.0)}
      >>> gradients = {"bias": jnp.ones(1), "table": SparseRows([7, 9], jnp.ones((2, 1)))}
      >>> decay = add_decayed_weights(0.5, mask={"bias": False, "table": True})
      >>> updates, _ = decay.update(gradients, decay.init(parameters), parameters)
      >>> updates["bias"].tolist(), updates["table"].values.tolist()
      ([1.0], [[2.0], [1.0]])
    """
    weight_decay = as_option("weight_decay", weight_decay)

    def decayed(gradient, parameter):
        if is_rows(gradient):
            rows = read_touched(parameter, gradient)
            return gradient._replace(values=decayed(gradient.values, rows))
        if not is_float(gradient):
            return gradient
        dtype = accumulator_dtype(gradient, parameter)
        decay = jnp.asarray(weight_decay).astype(dtype) * parameter.astype(dtype)
        return (gradient.astype(dtype) + decay).astype(gradient.dtype)

    def masked(chosen, gradients, parameters):
        if not chosen:
            return gradients
        return jax.tree.map(decayed, gradients, parameters, is_leaf=is_rows)

    def update(gradients, parameters):
        given = check_given(parameters)
        chosen = mask(given) if callable(mask) else mask
        return jax.tree.map(masked, True if mask is None else chosen, gradients, given)

    return optax.stateless(update)
