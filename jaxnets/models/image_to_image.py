"""A residual network from images to images of another size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import SupportsIndex

from flax import nnx
from jaxtyping import Array, Float

from jaxnets.kernels import checks
from jaxnets.layers import PointwiseConv, ResizeConv, resize


class ResidualBlock(nnx.Module):
    """``relu(maps + F(maps))`` (He et al. 2016, figure 5, right): 1x1, 3x3 and 1x1 convolutions.

    The second 1x1 convolution adds the block's input and rectifies in its own epilogue.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> block = ResidualBlock(8, rngs=nnx.Rngs(0))
      >>> nnx.jit(ResidualBlock.__call__)(block, jnp.ones((1, 10, 12, 8))).shape
      (1, 10, 12, 8)
    """

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        narrow = features // 2
        self.reduce = PointwiseConv(features, narrow, activation="relu", rngs=rngs)
        self.conv = nnx.Conv(narrow, narrow, (3, 3), rngs=rngs)
        self.expand = PointwiseConv(narrow, features, activation="relu", rngs=rngs)

    def __call__(
        self, maps: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch height width features"]:
        """Maps of the same size."""
        return self.expand(nnx.relu(self.conv(self.reduce(maps))), maps)


class ImageToImage(nnx.Module):
    """Residual blocks at the input's size, learned resizing, and the image resized added.

    The network finds what is to be added to the resized image (Kim et al. 2016, section 3.1), at
    any (height, width).

    Args:
      in_features, out_features: channels; where they are equal the resized image is added.
      features: of the blocks.
      blocks: how many.
      rngs: for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ImageToImage(3, 3, features=8, blocks=1, rngs=nnx.Rngs(0))
      >>> enlarge = nnx.jit(ImageToImage.__call__, static_argnums=2)
      >>> enlarge(model, jnp.ones((1, 10, 12, 3)), (23, 31)).shape
      (1, 23, 31, 3)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        features: int = 32,
        blocks: int = 4,
        rngs: nnx.Rngs,
    ):
        self.adds_image = in_features == out_features
        self.first = nnx.Conv(in_features, features, (5, 5), rngs=rngs)
        self.blocks = nnx.List([ResidualBlock(features, rngs=rngs) for _ in range(blocks)])
        self.resized = ResizeConv(features, features, rngs=rngs)
        self.last = nnx.Conv(
            features, out_features, (3, 3), kernel_init=nnx.initializers.normal(1e-3), rngs=rngs
        )

    def __call__(
        self,
        images: Float[Array, "batch height width in"],
        size: SupportsIndex | Iterable[SupportsIndex],
    ) -> Float[Array, "batch new_height new_width out"]:
        """The result at ``size`` (height, width)."""
        size = checks.as_sizes("size", size, 2)
        maps = nnx.relu(self.first(images))
        for block in self.blocks:
            maps = block(maps)
        # Leaky: what is to be added is small at first, and all of a relu's units may die of it.
        found = self.last(nnx.leaky_relu(self.resized(maps, size), 0.2))
        return found + resize(images, size) if self.adds_image else found
