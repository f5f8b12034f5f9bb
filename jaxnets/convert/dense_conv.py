"""A dense layer as a convolution and back: the same numbers in another shape.

A dense layer over a flattened [height, width, channels] map is a convolution whose window is the
whole map; a dense layer applied to each position is a 1x1 convolution. As convolutions they slide
over maps of any size (Long et al. 2015, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from flax import nnx
from jaxtyping import Array, Float

ORDERS = ("channels_last", "channels_first")


def dense_to_conv(
    kernel: Float[Array, "in out"],
    window: Sequence[int],
    *,
    flattened: str = "channels_last",
) -> Float[Array, "*window_and_in out"]:
    """The convolution kernel [*window, channels, out] of a dense kernel [window * channels, out].

    Convolve without padding ("VALID"): on a map of the window's size the one output is the dense
    layer's.

    Args:
      kernel: [in, out].
      window: the spatial size of the map that was flattened; (1, 1) for a dense layer applied at
        each position.
      flattened: "channels_last" where the map was [*window, channels], "channels_first" where it
        was [channels, *window] (PyTorch). From the shape alone the two cannot be told apart.

    Raises:
      ValueError: the window does not divide ``in``, or an unknown order.

    Example:
      >>> import jax.numpy as jnp
      >>> dense_to_conv(jnp.ones((7 * 7 * 64, 10)), (7, 7)).shape
      (7, 7, 64, 10)
    """
    window = _checked(window, flattened)
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


def conv_to_dense(
    kernel: Float[Array, "*window_and_in out"], *, flattened: str = "channels_last"
) -> Float[Array, "in out"]:
    """The dense kernel [window * channels, out] of a convolution's [*window, channels, out].

    Example:
      >>> import jax.numpy as jnp
      >>> conv_to_dense(jnp.ones((7, 7, 64, 10))).shape
      (3136, 10)
    """
    window = _checked(kernel.shape[:-2], flattened)
    if flattened == "channels_first":
        kernel = kernel.transpose(len(window), *range(len(window)), len(window) + 1)
    return kernel.reshape(-1, kernel.shape[-1])


def convolutionalise(
    dense: nnx.Linear, window: Sequence[int], *, flattened: str = "channels_last"
) -> nnx.Conv:
    """The convolution that slides a trained dense head over maps larger than the head's own.

    Args:
      dense: trained on maps of ``window`` by channels, flattened.
      window, flattened: as in :func:`dense_to_conv`.

    Returns:
      A convolution without padding: from [batch, *map, channels] to one output for each place of
      the window, [batch, *(map - window + 1), out].

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> head = convolutionalise(nnx.Linear(4 * 4 * 3, 10, rngs=nnx.Rngs(0)), (4, 4))
      >>> head(jnp.ones((1, 4, 4, 3))).shape, head(jnp.ones((1, 9, 6, 3))).shape
      ((1, 1, 1, 10), (1, 6, 3, 10))
    """
    kernel = dense_to_conv(dense.kernel[...], window, flattened=flattened)
    conv = nnx.Conv(
        kernel.shape[-2], kernel.shape[-1], tuple(window), padding="VALID",
        use_bias=dense.bias is not None, rngs=nnx.Rngs(0),
    )  # fmt: skip
    conv.kernel = nnx.Param(kernel)
    if dense.bias is not None:
        conv.bias = nnx.Param(dense.bias[...])
    return conv


def _checked(window: Sequence[int], flattened: str) -> tuple[int, ...]:
    if flattened not in ORDERS:
        raise ValueError(f"flattened must be one of {ORDERS}, got {flattened!r}")
    if not window or any(size < 1 for size in window):
        raise ValueError(f"window must have positive sizes, got {tuple(window)}")
    return tuple(window)
