"""U-Net: an encoder, a decoder, and the encoder's maps brought across."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxnets.kernels import checks
from jaxnets.layers import PointwiseConv, ResizeConv
from jaxnets.models.blocks import ConvPair


class UNet(nnx.Module):
    """Ronneberger et al. 2015, with padding, batch normalization and an output of any size.

    Where the paper's decoder doubles a map, this one is resized to the map that it meets from the
    encoder, so an image may have any size of at least 2 ** (stages - 1); and a last learned
    resizing brings the result to whatever (height, width) is asked for.

    Args:
      in_features: channels of an image.
      out_features: of the result, by a 1x1 convolution: one for each class of a segmentation.
      features: channels of each stage, from the image's size downwards.
      rngs: for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = UNet(1, 1, features=(8, 8), rngs=nnx.Rngs(0))
      >>> segment = nnx.jit(UNet.__call__, static_argnums=2)
      >>> images = jnp.ones((2, 25, 33, 1))
      >>> segment(model, images).shape, segment(model, images, (32, 50)).shape
      ((2, 25, 33, 1), (2, 32, 50, 1))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        features: Sequence[int] = (16, 32, 64),
        rngs: nnx.Rngs,
    ):
        before = (in_features, *features[:-1])
        steps = list(zip(features[1:], features[:-1], strict=True))[::-1]
        self.down = nnx.List(
            [ConvPair(*pair, rngs=rngs) for pair in zip(before, features, strict=True)]
        )
        self.up = nnx.List([ResizeConv(deep, shallow, rngs=rngs) for deep, shallow in steps])
        self.joined = nnx.List([ConvPair(2 * shallow, shallow, rngs=rngs) for _, shallow in steps])
        self.resized = ResizeConv(features[0], features[0], rngs=rngs)
        self.head = PointwiseConv(features[0], out_features, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width in"],
        size: SupportsIndex | Iterable[SupportsIndex] | None = None,
    ) -> Float[Array, "batch new_height new_width out"]:
        """The result at ``size`` (height, width); None: the images' own.

        Raises:
          ValueError: images too small to be halved so often.
        """
        least = 2 ** (len(self.down) - 1)
        if min(images.shape[1:3]) < least:
            raise ValueError(
                f"images must be [batch, height, width, in], at least {least} high and wide, "
                f"got shape {images.shape}"
            )
        maps = images
        across: list[jax.Array] = []
        for stage in self.down:
            maps = stage(nnx.max_pool(maps, (2, 2), strides=(2, 2)) if across else maps)
            across.append(maps)
        for up, joined, skip in zip(self.up, self.joined, across[-2::-1], strict=True):
            maps = joined(jnp.concatenate([skip, up(maps, skip.shape[1:3])], axis=-1))
        wanted = maps.shape[1:3] if size is None else checks.as_sizes("size", size, 2)
        if wanted != maps.shape[1:3]:
            maps = nnx.relu(self.resized(maps, wanted))
        return self.head(maps)
