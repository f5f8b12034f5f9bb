"""Learned upsampling (and downsampling) to any size."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float


class ResizeConv(nnx.Module):
    """Maps resized to any height and width, then a convolution that is learned.

    Odena et al. 2016: it has none of the checkerboards of a transposed convolution, whose stride
    would also tie the output's size to the input's.

    Args:
      in_features, out_features: channels.
      kernel_size: of the convolution.
      rngs: for its kernel.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = ResizeConv(3, 8, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 5, 7, 3)), (11, 4)).shape
      (2, 11, 4, 8)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: tuple[int, int] = (3, 3),
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(in_features, out_features, kernel_size, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "batch height width in"], size: Sequence[int]
    ) -> Float[Array, "batch new_height new_width out"]:
        """Maps of ``size`` (height, width)."""
        return self.conv(resize(maps, size))


def resize(
    maps: Float[Array, "batch height width features"], size: Sequence[int]
) -> Float[Array, "batch new_height new_width features"]:
    """``maps`` at ``size`` (height, width), bilinear; smoothed first where they shrink.

    Raises:
      ValueError: a size that is not two positive integers.
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be a positive height and width, got {size}")
    if maps.shape[1:3] == tuple(size):
        return maps
    return jax.image.resize(maps, (maps.shape[0], *size, maps.shape[3]), "linear")
