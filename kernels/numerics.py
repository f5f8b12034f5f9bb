"""Dtypes to compute and accumulate in, alike under every mode of promotion; sums that keep them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def result_dtype(*arrays: Any) -> jnp.dtype:
    """The dtype that holds all of ``arrays``, by JAX's standard promotion.

    Parameters and inputs may differ in dtype by design, so this must not fail where a user asks JAX
    to refuse promotion by accident (``jax_numpy_dtype_promotion="strict"``).
    """
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*arrays)


def accumulator_dtype(*arrays: Any) -> jnp.dtype:
    """float32 for what is narrower, else the dtype of ``arrays``: what a sum is kept in."""
    dtype = result_dtype(*arrays)
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def stochastic_bfloat16(array: jax.Array, key: jax.Array) -> jax.Array:
    """``array`` as bfloat16, up or down at random, so that the mean is ``array``.

    Gupta et al. 2015, section 3.1. bfloat16 is the upper half of float32: random bits are added to
    the lower half, which carry over with the chance that it says, and it is cut off.
    """
    bits = lax.bitcast_convert_type(array.astype(jnp.float32), jnp.uint32)
    noise = jax.random.bits(key, array.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(array), rounded, array.astype(jnp.bfloat16))


def matmul(
    a: jax.Array,
    b: jax.Array,
    contract: tuple[int, int] | tuple[tuple[int, ...], tuple[int, ...]],
    precision: lax.Precision | None = None,
) -> jax.Array:
    """``a`` and ``b`` contracted over an axis each, or some, accumulated in float32 (float64).

    ``precision``: None is ``jax_default_matmul_precision``.
    """
    dtype = result_dtype(a, b)
    axes = tuple((axis,) if isinstance(axis, int) else axis for axis in contract)
    dimensions = ((axes[0], axes[1]), ((), ()))
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        dimensions,
        precision,
        preferred_element_type=accumulator_dtype(a, b),
    )


def log_of_sum(largest: jax.Array, total: jax.Array) -> jax.Array:
    """The log-sum-exp from a maximum and the sum of exponentials above it.

    Of a logit that has overflowed it is infinite; the sum, of exp(inf - inf), would make it NaN.
    """
    return jnp.where(jnp.isposinf(largest), largest, largest + jnp.log(total))


_BLOCK = 64
_EXACT = 2**24  # whole numbers below it are float32's


def running_count(flags: jax.Array) -> jax.Array:
    """How many of ``flags [n]`` are True up to each place, its own included, int32 [n].

    By matmuls with a triangle of ones: of ``cumsum`` XLA for TPU takes half a second to compile
    each, and on CPU the matmuls are faster.
    """
    if flags.size >= _EXACT:
        return jnp.cumsum(flags, dtype=jnp.int32)
    return _running_sum(flags.astype(jnp.float32)).astype(jnp.int32)


def _running_sum(numbers: jax.Array) -> jax.Array:
    blocks = jnp.pad(numbers, (0, -numbers.size % _BLOCK)).reshape(-1, _BLOCK)
    triangle = jnp.triu(jnp.ones((_BLOCK, _BLOCK), jnp.float32))
    sums = matmul(blocks, triangle, (1, 0), lax.Precision.HIGHEST)
    if len(sums) > 1:
        totals = sums[:, -1]
        sums += (_running_sum(totals) - totals)[:, None]
    return sums.reshape(-1)[: numbers.size]
