"""What the fused update does with the gradient of some rows: it moves them, and keeps a number."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.checks import as_floats, as_option
from jaxnets.kernels.numerics import accumulator_dtype


class SGD(NamedTuple):
    """``row = row - learning_rate g``: what :func:`linear_softmax_update` does with a gradient.

    Attributes:
      learning_rate: a number of at least 0; may be traced.

    Example:
      >>> SGD(0.1)
      SGD(learning_rate=0.1)
    """

    learning_rate: Any


class RowwiseAdagrad(NamedTuple):
    """Adagrad with one number a row: ``a = a + mean(g^2)``, then ``g / sqrt(a + eps)``.

    As in DLRM (Naumov et al. 2019), and equal to :func:`jaxnets.optim.rowwise_adagrad`.

    Attributes:
      learning_rate: a number of at least 0; may be traced.
      accumulator: a of the table, [vocab], of float32 or wider: 0.1 to begin with, say.
      bias_accumulator: a of the bias, [vocab]; None where there is none.
      eps: at least 0.

    Example:
      >>> import jax.numpy as jnp
      >>> RowwiseAdagrad(0.1, jnp.full(1000, 0.1)).accumulator.shape
      (1000,)
    """

    learning_rate: Any
    accumulator: Any
    bias_accumulator: Any = None
    eps: Any = 1e-7


Rule = SGD | RowwiseAdagrad


def check_rule(rule: Any, vocab_size: int, *, has_bias: bool) -> Rule:
    """``rule`` of arrays; its numbers NaN where they are found to be out of range only now."""
    if not isinstance(rule, SGD | RowwiseAdagrad):
        raise TypeError(f"rule must be SGD or RowwiseAdagrad, got {type(rule).__name__}")
    rule = rule._replace(learning_rate=as_option("rule.learning_rate", rule.learning_rate))
    if isinstance(rule, SGD):
        return rule
    rule = rule._replace(eps=as_option("rule.eps", rule.eps))
    names = ["accumulator", "bias_accumulator"] if has_bias else ["accumulator"]
    if not has_bias and rule.bias_accumulator is not None:
        raise ValueError("rule.bias_accumulator must be None without a bias, got one")
    for name in names:
        if getattr(rule, name) is None:
            raise ValueError(f"rule.{name} must be given with a bias, got None")
        array = as_floats(f"rule.{name}", getattr(rule, name))
        if array.shape != (vocab_size,):
            raise ValueError(
                f"rule.{name} must be [vocab] = {(vocab_size,)}, got shape {array.shape}"
            )
        rule = rule._replace(**{name: array})
    return rule


def moved(
    rule: Rule, table: jax.Array, name: str, gradient: jax.Array, start: jax.Array, axis: int
) -> tuple[jax.Array, Rule]:
    """``table`` with the rows from ``start`` on moved by their ``gradient``, and the rule's state.

    ``name``: of the table's accumulator. A gradient of 0 changes nothing.
    """
    dtype, count = accumulator_dtype(gradient, table), gradient.shape[axis]
    gradient = gradient.astype(dtype)
    step = -jnp.asarray(rule.learning_rate, dtype) * gradient
    if isinstance(rule, RowwiseAdagrad):
        accumulator = getattr(rule, name)
        wide = accumulator_dtype(accumulator, gradient)
        total = lax.dynamic_slice_in_dim(accumulator, start, count, 0).astype(wide)
        square = jnp.square(gradient.astype(wide))
        total += square if gradient.ndim == 1 else square.mean(1 - axis)
        # 0 where nothing was ever added, as in optax.
        scale = jnp.where(total > 0, lax.rsqrt(total + jnp.asarray(rule.eps, wide)), 0).astype(
            dtype
        )
        step *= scale if gradient.ndim == 1 else jnp.expand_dims(scale, 1 - axis)
        rule = rule._replace(**{name: _put(accumulator, total, start, 0)})
    old = lax.dynamic_slice_in_dim(table, start, count, axis)
    return _put(table, old.astype(dtype) + step, start, axis), rule


def _put(array: jax.Array, rows: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(array, rows.astype(array.dtype), start, axis)
