"""The three matmuls of a 1x1 convolution, by layout and groups, and the order that is fastest.

Arrays are [batch, positions, channels], or [batch, channels, positions] when channels are first.
Unless ``as_rows`` there may be several axes of positions, which stay as they are: on TPU the last
two axes are laid out in tiles, so that making one of two is a copy wherever a tile is not full.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.numerics import accumulator_dtype, matmul


def apply_kernel(
    inputs: jax.Array, kernel: jax.Array, *, channels_first: bool, as_rows: bool
) -> jax.Array:
    """``inputs`` times ``kernel [in, out]`` at each position, accumulated in float32 (float64)."""
    dtype = accumulator_dtype(inputs, kernel)
    if not channels_first:
        if not as_rows:
            return matmul(inputs, kernel, (inputs.ndim - 1, 0))
        rows = inputs.reshape(-1, inputs.shape[2])
        outputs = matmul(rows, kernel, (1, 0))
        return outputs.reshape(*inputs.shape[:2], kernel.shape[1])
    # A matmul for each image leaves the channels where they are. The kernel is repeated, for it is
    # small; a matmul over all images at once would transpose the inputs and the outputs instead.
    repeated = jnp.broadcast_to(kernel.T, (inputs.shape[0], *kernel.shape[::-1]))
    dimensions = (((2,), (1,)), ((0,), (0,)))
    return lax.dot_general(repeated, inputs, dimensions, preferred_element_type=dtype)


def kernel_gradient(
    inputs: jax.Array, gradient: jax.Array, *, channels_first: bool, as_rows: bool
) -> jax.Array:
    """The sum over positions of ``inputs`` times ``gradient``, [in, out]."""
    dtype = accumulator_dtype(inputs, gradient)
    if not as_rows:
        positions = tuple(range(inputs.ndim - 1))
        over = ((positions, positions), ((), ()))
        return lax.dot_general(inputs, gradient, over, preferred_element_type=dtype)
    if channels_first:
        dimensions = (((2,), (2,)), ((0,), (0,)))
        each = lax.dot_general(inputs, gradient, dimensions, preferred_element_type=dtype)
        return each.sum(0)
    rows = inputs.reshape(-1, inputs.shape[2])
    gradient = gradient.reshape(-1, gradient.shape[2])
    if rows.shape[1] <= gradient.shape[1]:
        return matmul(rows, gradient, (0, 0))
    # XLA's CPU matmul over the rows of both is up to 1.8 times faster with the fewer columns on
    # the left. The barrier is there because XLA would swap the two back to save the transpose.
    return lax.optimization_barrier(matmul(gradient, rows, (0, 0))).T


# From so many groups on one batched matmul does them all: a matmul for each compiles in time that
# grows with their number (30 s for the gradient of 256), and up to here they run faster.
MANY_GROUPS = 16


def apply_grouped(
    inputs: jax.Array, kernel: jax.Array, groups: int, *, channels_first: bool
) -> jax.Array:
    """As :func:`apply_kernel` with ``kernel [in // groups, out]``, all groups in one matmul."""
    dtype = accumulator_dtype(inputs, kernel)
    x, w = _grouped(inputs, groups, channels_first=channels_first), _by_group(kernel, groups)
    equation = "bgip,igo->bgop" if channels_first else "bpgi,igo->bpgo"
    outputs = jnp.einsum(equation, x, w, preferred_element_type=dtype)
    return _ungrouped(outputs, kernel.shape[1], channels_first=channels_first)


def grouped_gradients(
    inputs: jax.Array, kernel: jax.Array, gradient: jax.Array, groups: int, *, channels_first: bool
) -> tuple[jax.Array, jax.Array]:
    """The gradients of inputs and kernel of :func:`apply_grouped`."""
    dtype = accumulator_dtype(inputs, gradient)
    x, g = (_grouped(a, groups, channels_first=channels_first) for a in (inputs, gradient))
    w = _by_group(kernel, groups)
    back, sums = ("bgop,igo->bgip", "bgip,bgop->igo") if channels_first else (
        "bpgo,igo->bpgi", "bpgi,bpgo->igo")  # fmt: skip
    d_inputs = jnp.einsum(back, g, w, preferred_element_type=dtype)
    d_kernel = jnp.einsum(sums, x, g, preferred_element_type=dtype)
    channels = kernel.shape[0] * groups
    return (
        _ungrouped(d_inputs, channels, channels_first=channels_first),
        d_kernel.reshape(kernel.shape),
    )


def _grouped(array: jax.Array, groups: int, *, channels_first: bool) -> jax.Array:
    batch, first, last = array.shape
    if channels_first:
        return array.reshape(batch, groups, first // groups, last)
    return array.reshape(batch, first, groups, last // groups)


def _by_group(kernel: jax.Array, groups: int) -> jax.Array:
    return kernel.reshape(kernel.shape[0], groups, kernel.shape[1] // groups)


def _ungrouped(array: jax.Array, channels: int, *, channels_first: bool) -> jax.Array:
    if channels_first:
        return array.reshape(array.shape[0], channels, array.shape[3])
    return array.reshape(*array.shape[:2], channels)


# Gradients of the outputs that a tile of the backward takes, and from where on it is worth a loop.
_TILE_BYTES = 3.6 * 2**20
_TILED_BYTES = 8 * 2**20


def wants_tiles(inputs: jax.Array, gradient: jax.Array) -> bool:
    """Whether the backward is faster in tiles of rows on a CPU: each reads its gradient once.

    So where that is larger than the inputs, and than the cache; measured on one CPU.
    """
    return gradient.nbytes > _TILED_BYTES and gradient.shape[2] > inputs.shape[2]


def tiled_gradients(
    inputs: jax.Array, kernel: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of inputs, kernel and bias, a tile of rows at a time; channels last."""
    dtype = accumulator_dtype(inputs, gradient)
    rows, d_rows = inputs.reshape(-1, inputs.shape[2]), gradient.reshape(-1, gradient.shape[2])
    count = max(1, round(gradient.nbytes / _TILE_BYTES))
    size = rows.shape[0] // count
    transposed = lax.optimization_barrier(kernel.T)

    def one(x, g):
        d_inputs = matmul(g, transposed, (1, 0)).astype(inputs.dtype)
        return d_inputs, matmul(x, g, (0, 0)), g.sum(0, dtype=dtype)

    def step(n, state):
        d_inputs, d_kernel, d_bias = state
        # Behind the barrier the slices are copies: matmuls read those faster than slices.
        tile = lax.optimization_barrier(
            tuple(lax.dynamic_slice_in_dim(a, n * size, size) for a in (rows, d_rows))
        )
        part, kernel_part, bias_part = one(*tile)
        d_inputs = lax.dynamic_update_slice_in_dim(d_inputs, part, n * size, 0)
        return d_inputs, d_kernel + kernel_part, d_bias + bias_part

    zeros = jnp.zeros_like(rows), jnp.zeros(kernel.shape, dtype), jnp.zeros(kernel.shape[1], dtype)
    d_inputs, d_kernel, d_bias = lax.fori_loop(0, count, step, zeros)
    if rest := rows.shape[0] - count * size:
        part, kernel_part, bias_part = one(rows[-rest:], d_rows[-rest:])
        d_inputs = lax.dynamic_update_slice_in_dim(d_inputs, part, count * size, 0)
        d_kernel, d_bias = d_kernel + kernel_part, d_bias + bias_part
    return d_inputs.reshape(inputs.shape), d_kernel, d_bias
