"""The norm of gradients, dense and by rows, and gradients scaled to a largest one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.checks import as_option
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.optim.by_rows import is_rows


def global_norm(gradient: Any) -> jax.Array:
    r"""The norm of all leaves together, :math:`\sqrt{\sum g^2}`, of the values of rows.

    In float32 at least, and by the largest entry, so that no square overflows or vanishes:
    :math:`m \sqrt{\sum (g / m)^2}`. It is 0 without leaves, infinite or NaN where an entry is, and
    infinite where its dtype has not the number. Integers do not count.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import SparseRows
      >>> gradient = {"a": jnp.array([3.0]), "table": SparseRows([7], jnp.array([[4.0]]))}
      >>> float(jax.jit(global_norm)(gradient))
      5.0
    """
    largest, root = _norm(gradient)
    return jnp.where(jnp.isfinite(largest), largest * root, largest)


def clip_by_norm(gradient: Any, limit: Any) -> tuple[Any, jax.Array]:
    """``gradient`` scaled to a norm of at most ``limit``, and the norm that it had.

    A leaf may be :class:`jaxnets.kernels.SparseRows`, whose values count. A gradient that is not
    finite is NaN throughout afterwards, as no scale makes it small. One whose norm overflows is
    clipped as any other.

    Args:
      gradient: a pytree of floats, each kept in its dtype; integers in it are left alone.
      limit: above 0 (Pascanu et al. 2013, section 3.2). A traced one that is not makes all NaN.

    Raises:
      ValueError: a limit that is not above 0.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> clipped, norm = jax.jit(clip_by_norm)([jnp.array([3.0, 4.0])], 1.0)
      >>> clipped[0].round(3).tolist(), float(norm)
      ([0.6..., 0.8...], 5.0)
    """
    limit = as_limit(limit)
    largest, root = _norm(gradient)
    limit = jnp.asarray(limit).astype(root.dtype)
    limit = jnp.where(jnp.isfinite(largest), limit, jnp.nan)
    # Of entries by the largest, that no overflow of the norm reaches.
    clips = ~(root <= limit / largest)  # true of NaN
    factor = jnp.where(clips, limit / jnp.where(clips, root, 1), 1)

    def scale(leaf):
        if is_rows(leaf):
            return leaf._replace(values=scale(leaf.values))
        if not is_float(leaf):
            return leaf
        wide = accumulator_dtype(leaf, root)
        return (_over(leaf.astype(wide), jnp.where(clips, largest, 1)) * factor).astype(leaf.dtype)

    clipped = jax.tree.map(scale, gradient, is_leaf=is_rows)
    return clipped, jnp.where(jnp.isfinite(largest), largest * root, largest)


def _norm(gradient: Any) -> tuple[jax.Array, jax.Array]:
    """The largest entry m (1 where all are 0) and :math:`\\sqrt{\\sum (g / m)^2}`."""
    leaves = [
        jnp.asarray(leaf.values if is_rows(leaf) else leaf)
        for leaf in jax.tree.leaves(gradient, is_leaf=is_rows)
    ]
    leaves = [leaf for leaf in leaves if leaf.size and is_float(leaf)]
    if not leaves:
        return jnp.ones((), jnp.float32), jnp.zeros((), jnp.float32)
    dtype = accumulator_dtype(*leaves)
    leaves = [leaf.astype(dtype) for leaf in leaves]
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in leaves]).max()
    largest = jnp.where(largest == 0, 1, largest)
    divisor = jnp.where(jnp.isfinite(largest), largest, 1)
    squares = [jnp.square(_over(leaf, divisor)).sum() for leaf in leaves]
    return largest, jnp.sqrt(jnp.stack(squares).sum())


def _over(array: jax.Array, divisor: jax.Array) -> jax.Array:
    """``array / divisor``, quartered first where the reciprocal that XLA takes would be 0."""
    quarter = jnp.where(divisor > 1, 0.25, 1).astype(divisor.dtype)
    return (array * quarter) / (divisor * quarter)


def as_limit(limit: Any) -> Any:
    """The largest norm, checked: above 0, and NaN if a traced one is not."""
    return as_option("limit", limit, lambda x: x > 0, "above 0")


def is_float(leaf: Any) -> bool:
    """Whether a leaf is floating point."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
