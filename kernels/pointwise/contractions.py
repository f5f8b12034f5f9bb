"""The three matmuls of a 1x1 convolution, by layout and groups, and the order that is fastest.

Arrays are [batch, positions, channels], or [batch, channels, positions] when channels are first.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def apply_kernel(inputs: jax.Array, kernel: jax.Array, *, channels_first: bool) -> jax.Array:
    """``inputs`` times ``kernel [in, out]`` at each position, accumulated in float32 (float64)."""
    dtype = jnp.promote_types(jnp.result_type(inputs, kernel), jnp.float32)
    if not channels_first:
        rows = inputs.reshape(-1, inputs.shape[2])
        outputs = _dot(rows, kernel, (1, 0), dtype)
        return outputs.reshape(*inputs.shape[:2], -1)
    # A matmul for each image leaves the channels where they are. The kernel is repeated, for it is
    # small; a matmul over all images at once would transpose the inputs and the outputs instead.
    repeated = jnp.broadcast_to(kernel.T, (inputs.shape[0], *kernel.shape[::-1]))
    dimensions = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(repeated, inputs, dimensions, preferred_element_type=dtype)


def kernel_gradient(inputs: jax.Array, gradient: jax.Array, *, channels_first: bool) -> jax.Array:
    """The sum over positions of ``inputs`` times ``gradient``, [in, out]."""
    dtype = jnp.promote_types(jnp.result_type(inputs, gradient), jnp.float32)
    if channels_first:
        dimensions = (((2,), (2,)), ((0,), (0,)))
        each = lax.dot_general(inputs, gradient, dimensions, preferred_element_type=dtype)
        return each.sum(0)
    rows = inputs.reshape(-1, inputs.shape[2])
    gradient = gradient.reshape(-1, gradient.shape[2])
    if rows.shape[1] <= gradient.shape[1]:
        return _dot(rows, gradient, (0, 0), dtype)
    # XLA's CPU matmul over the rows of both is up to 1.8 times faster with the fewer columns on
    # the left. The barrier is there because XLA would swap the two back to save the transpose.
    return lax.optimization_barrier(_dot(gradient, rows, (0, 0), dtype)).T


def _dot(a, b, contract, dtype):
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, dimensions, preferred_element_type=dtype)
