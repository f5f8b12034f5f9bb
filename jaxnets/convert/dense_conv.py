"""A dense layer as a convolution and back: the same numbers in another shape.

A dense layer over a flattened [height, width, channels] map is a convolution whose window is the
whole map; a dense layer applied to each position is a 1x1 convolution. As convolutions they slide
over maps of any size (Long et al. 2015, section 3.1).

An activation is not part of a kernel. What PyTorch and Keras call "gelu" is "gelu_exact" of
:class:`jaxnets.layers.PointwiseConv`, whose "gelu" is the tanh form.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, SupportsIndex

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxnets.convert.arrays import as_array, check_matrix
from jaxnets.kernels.checks import as_int

ORDERS = ("channels_last", "channels_first")


def dense_to_conv(
    kernel: Any,
    window: Iterable[SupportsIndex],
    *,
    flattened: str = "channels_last",
) -> Float[Array, "*window_and_in out"]:
    """The convolution kernel [..., channels, out] of a dense kernel [window * channels, out].

    Convolve without padding ("VALID"): on a map of the window's size the one output is the dense
    layer's.

    Args:
      kernel: [in, out], an array or what holds one.
      window: the spatial size of the map that was flattened; (1, 1) for a dense layer applied at
        each position.
      flattened: "channels_last" where the map was [..., channels], "channels_first" where it
        was [channels, ...] (PyTorch). From the shape alone the two cannot be told apart.

    Raises:
      TypeError: a kernel that is not floating point, a window that is not of integers.
      ValueError: a kernel without two axes, a window that does not divide ``in``, or an unknown
        order.

    Example:
      >>> import jax.numpy as jnp
      >>> dense_to_conv(jnp.ones((7 * 7 * 64, 10)), (7, 7)).shape
      (7, 7, 64, 10)
    """
    window = _checked(window, flattened)
    kernel = as_array("kernel", kernel)
    check_matrix("kernel", kernel, "[in, out]")
    features, out = kernel.shape
    if features % math.prod(window):
        raise ValueError(
            f"window must divide the kernel's in = {features} (positions times channels), "
            f"got {window}"
        )
    if flattened == "channels_last":
        return kernel.reshape(*window, -1, out)
    axes = range(1, len(window) + 1)
    return kernel.reshape(-1, *window, out).transpose(*axes, 0, len(window) + 1)


def conv_to_dense(kernel: Any, *, flattened: str = "channels_last") -> Float[Array, "in out"]:
    """The dense kernel [window * channels, out] of a convolution's [..., channels, out].

    Args:
      kernel: [..., channels, out] with the axes of the window first, an array or what holds one.
      flattened: as in :func:`dense_to_conv`.

    Raises:
      TypeError, ValueError: as :func:`dense_to_conv`; or a kernel of fewer than three axes.

    Example:
      >>> import jax.numpy as jnp
      >>> conv_to_dense(jnp.ones((7, 7, 64, 10))).shape
      (3136, 10)
    """
    kernel = as_array("kernel", kernel)
    if kernel.ndim < 3 or not kernel.size:
        raise ValueError(f"kernel must be [*window, channels, out], got shape {kernel.shape}")
    window = _checked(kernel.shape[:-2], flattened)
    if flattened == "channels_first":
        kernel = kernel.transpose(len(window), *range(len(window)), len(window) + 1)
    return kernel.reshape(-1, kernel.shape[-1])


def convolutionalize(
    dense: nnx.Linear, window: Iterable[SupportsIndex], *, flattened: str = "channels_last"
) -> nnx.Conv:
    """The convolution that slides a trained dense head over maps larger than the head's own.

    Args:
      dense: trained on maps of ``window`` by channels, flattened.
      window, flattened: as in :func:`dense_to_conv`.

    Raises:
      TypeError, ValueError: as :func:`dense_to_conv`; or a layer that is no ``nnx.Linear``.

    Returns:
      A convolution without padding, from [batch, ..., channels] to one output for each place of
      the window, [batch, ..., out], each axis by ``window - 1`` smaller.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> head = convolutionalize(nnx.Linear(4 * 4 * 3, 10, rngs=nnx.Rngs(0)), (4, 4))
      >>> head(jnp.ones((1, 4, 4, 3))).shape, head(jnp.ones((1, 9, 6, 3))).shape
      ((1, 1, 1, 10), (1, 6, 3, 10))
    """
    if not isinstance(dense, nnx.Linear):
        raise TypeError(f"dense must be an nnx.Linear, got {type(dense).__name__}")
    kernel = dense_to_conv(dense.kernel, window, flattened=flattened)
    conv = nnx.Conv(
        kernel.shape[-2], kernel.shape[-1], kernel.shape[:-2], padding="VALID",
        use_bias=dense.bias is not None, dtype=dense.dtype, param_dtype=kernel.dtype,
        precision=dense.precision, promote_dtype=dense.promote_dtype, rngs=nnx.Rngs(0),
    )  # fmt: skip
    # Copies: a step that is given one of the two layers' buffers must leave the other its own.
    conv.kernel = nnx.Param(jnp.array(kernel))
    if dense.bias is not None:
        conv.bias = nnx.Param(jnp.array(dense.bias[...]))
    return conv


def _checked(window: Iterable[SupportsIndex], flattened: str) -> tuple[int, ...]:
    if flattened not in ORDERS:
        raise ValueError(f"flattened must be one of {ORDERS}, got {flattened!r}")
    if not isinstance(window, Iterable):
        raise TypeError(f"window must hold a size for each spatial axis, got {window!r}")
    sizes = tuple(as_int("window", size) for size in window)
    if not sizes or min(sizes) < 1:
        raise ValueError(f"window must have positive sizes, got {sizes}")
    return sizes
