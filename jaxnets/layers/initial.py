"""How the layers draw their first parameters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxnets.kernels.numerics import accumulator_dtype


def float_dtype(dtype: DTypeLike) -> jnp.dtype:
    """``dtype`` as one of NumPy's.

    Raises:
      TypeError: parameters cannot have it.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype must be floating point, got {dtype}")
    return jnp.dtype(dtype)


def draw(
    initializer: nnx.Initializer, rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    """Drawn in float32 at least, then cast: there is no QR in half precision, and a coarse normal
    or uniform draw would have another deviation.
    """
    return initializer(rngs.params(), shape, accumulator_dtype(dtype)).astype(dtype)
