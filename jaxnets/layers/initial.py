"""How the layers draw their first parameters, and the dtypes of parameters and arithmetic."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxnets.kernels.numerics import accumulator_dtype


def float_dtype(name: str, dtype: DTypeLike) -> jnp.dtype:
    """``dtype`` as one of NumPy's.

    Raises:
      TypeError: it is not floating point.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {dtype}")
    return jnp.dtype(dtype)


def computing_dtype(dtype: DTypeLike | None) -> jnp.dtype | None:
    """The dtype that a layer computes in; None: that of its inputs and parameters."""
    return None if dtype is None else float_dtype("dtype", dtype)


def as_computed(dtype: jnp.dtype | None, arrays: Any) -> Any:
    """The floats of ``arrays``, any pytree, in ``dtype``, where that is given."""
    if dtype is None:
        return arrays

    def cast(array):
        array = jnp.asarray(array)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, arrays)


def draw(
    initializer: nnx.Initializer, rngs: nnx.Rngs, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.Array:
    """Drawn in float32 at least, then cast: there is no QR in half precision, and a coarse normal
    or uniform draw would have another deviation.
    """
    return initializer(rngs.params(), shape, accumulator_dtype(dtype)).astype(dtype)
