"""Dtypes to compute and accumulate in, alike under every mode of promotion."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


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
