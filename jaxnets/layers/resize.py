"""Learned upsampling (and downsampling) to any size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxnets.kernels.checks import as_int, as_sizes


class ResizeConv(nnx.Module):
    """Maps resized to any height and width, then a convolution that is learned.

    Odena et al. 2016: it has none of the checkerboards of a transposed convolution, whose stride
    would also tie the output's size to the input's.

    Args:
      in_features, out_features: channels.
      kernel_size: of the convolution, an integer or a height and a width.
      rngs: for its kernel.

    Raises:
      TypeError, ValueError: sizes that are not positive integers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = ResizeConv(3, 8, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 5, 7, 3)), (11, 4)).shape
      (2, 11, 4, 8)

      In linen:

      >>> linen = nnx.bridge.to_linen(ResizeConv, 3, out_features=8)
      >>> variables = linen.init(jax.random.key(0), jnp.ones((2, 5, 7, 3)), (11, 4))
      >>> linen.apply(variables, jnp.ones((2, 5, 7, 3)), (11, 4)).shape
      (2, 11, 4, 8)
    """

    def __init__(
        self,
        in_features: SupportsIndex,
        out_features: SupportsIndex,
        *,
        kernel_size: SupportsIndex | Iterable[SupportsIndex] = (3, 3),
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            as_int("in_features", in_features, 1),
            as_int("out_features", out_features, 1),
            as_sizes("kernel_size", kernel_size, 2),
            rngs=rngs,
        )

    def __call__(
        self,
        maps: Float[Array, "batch height width in"],
        size: SupportsIndex | Iterable[SupportsIndex],
    ) -> Float[Array, "batch new_height new_width out"]:
        """Maps of ``size`` (height, width)."""
        return self.conv(resize(maps, size))


def resize(
    maps: Float[Array, "batch height width features"],
    size: SupportsIndex | Iterable[SupportsIndex],
) -> Float[Array, "batch new_height new_width features"]:
    """``maps`` at ``size`` (height, width), bilinear; smoothed first where they shrink.

    Args:
      maps: [batch, height, width, features].
      size: the new height and width; one integer is both.

    Raises:
      TypeError: a size that is not of integers.
      ValueError: not two, or not positive ones.

    Example:
      >>> import jax.numpy as jnp
      >>> resize(jnp.ones((2, 5, 7, 3)), (11, 4)).shape
      (2, 11, 4, 3)
    """
    sizes = as_sizes("size", size, 2)
    if maps.shape[1:3] == sizes:
        return maps
    return jax.image.resize(maps, (maps.shape[0], *sizes, maps.shape[3]), "linear")
