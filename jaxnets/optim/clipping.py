"""The norm of gradients, dense and by rows, and gradients scaled to a largest one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.checks import as_number, is_known
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.optim.rows import is_rows


def global_norm(gradient: Any) -> jax.Array:
    r"""The norm of all leaves together, :math:`\sqrt{\sum g^2}`, of Rows' values and not their ids.

    In float32 at least, and by the largest entry, so that no square overflows or vanishes:
    :math:`m \sqrt{\sum (g / m)^2}`. It is 0 without leaves, infinite or NaN where an entry is.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import Rows
      >>> gradient = {"a": jnp.array([3.0]), "table": Rows([7], jnp.array([[4.0]]))}
      >>> float(global_norm(gradient))
      5.0
    """
    leaves = [
        jnp.asarray(leaf.values if is_rows(leaf) else leaf)
        for leaf in jax.tree.leaves(gradient, is_leaf=is_rows)
    ]
    leaves = [leaf.astype(accumulator_dtype(leaf)) for leaf in leaves if leaf.size]
    if not leaves:
        return jnp.zeros((), jnp.float32)
    dtype = accumulator_dtype(*leaves)
    largest = jnp.stack([jnp.abs(leaf).max().astype(dtype) for leaf in leaves]).max()
    # A divisor that is neither 0 nor infinite; NaN and infinity come back by the product.
    fine = (largest > 0) & (largest < jnp.inf)
    divisor = jnp.where(fine, largest, 1)
    squares = [((leaf.astype(dtype) / divisor) ** 2).sum() for leaf in leaves]
    return jnp.where(fine, divisor * jnp.sqrt(jnp.stack(squares).sum()), largest)


def clip_by_norm(gradient: Any, limit: Any) -> tuple[Any, jax.Array]:
    """``gradient`` scaled to a norm of at most ``limit``, and the norm that it had.

    A leaf may be :class:`jaxnets.kernels.Rows`, whose values count. A gradient that is not finite
    is NaN throughout afterwards, as no scale makes it small.

    Args:
      gradient: a pytree of floats.
      limit: above 0 (Pascanu et al. 2013, section 3.2).

    Raises:
      ValueError: a limit that is not above 0.

    Example:
      >>> import jax.numpy as jnp
      >>> clipped, norm = clip_by_norm([jnp.array([3.0, 4.0])], 1.0)
      >>> clipped[0].round(3).tolist(), float(norm)
      ([0.6..., 0.8...], 5.0)
    """
    if is_known(limit) and not as_number("limit", limit) > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    norm = global_norm(gradient)
    factor = jnp.where(norm <= limit, 1, limit / jnp.where(norm > limit, norm, 1))
    factor = jnp.where(jnp.isfinite(norm), factor, jnp.nan)

    def scale(leaf):
        if is_rows(leaf):
            return leaf._replace(values=scale(leaf.values))
        wide = accumulator_dtype(leaf)
        return (leaf.astype(wide) * factor.astype(wide)).astype(leaf.dtype)

    return jax.tree.map(scale, gradient, is_leaf=is_rows), norm
