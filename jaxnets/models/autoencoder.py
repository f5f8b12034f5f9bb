"""A convolutional autoencoder whose output may have another size than its input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

from flax import nnx
from jaxtyping import Array, Float

from jaxnets.kernels import checks
from jaxnets.layers import ResizeConv


class Autoencoder(nnx.Module):
    """Strided convolutions to a short code, and learned resizing from it (Masci et al. 2011).

    Args:
      image: (height, width) of what is encoded.
      output: (height, width) of what is decoded.
      channels: of both.
      code: numbers in the code.
      features: channels of each stage of the encoder; each halves the image.
      rngs: for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = Autoencoder((28, 28), (42, 42), code=16, features=(8,), rngs=nnx.Rngs(0))
      >>> codes = nnx.jit(Autoencoder.encode)(model, jnp.ones((5, 28, 28, 1)))
      >>> codes.shape, nnx.jit(Autoencoder.decode)(model, codes).shape
      ((5, 16), (5, 42, 42, 1))
    """

    def __init__(
        self,
        image: SupportsIndex | Iterable[SupportsIndex],
        output: SupportsIndex | Iterable[SupportsIndex],
        *,
        channels: int = 1,
        code: int = 16,
        features: Sequence[int] = (16, 32),
        rngs: nnx.Rngs,
    ):
        self.image = image = checks.as_sizes("image", image, 2)
        self.output = output = checks.as_sizes("output", output, 2)
        stages = len(features)
        sizes = [tuple(-(-size // 2**stage) for size in image) for stage in range(stages + 1)]
        self.smallest = (*sizes[-1], features[-1])
        flat = sizes[-1][0] * sizes[-1][1] * features[-1]
        before = (channels, *features[:-1])
        self.down = nnx.List([
            nnx.Conv(a, b, (3, 3), strides=2, rngs=rngs)
            for a, b in zip(before, features, strict=True)
        ])  # fmt: skip
        self.to_code = nnx.Linear(flat, code, rngs=rngs)
        self.from_code = nnx.Linear(code, flat, rngs=rngs)
        # From the smallest map to the output the sizes grow by equal steps.
        self.sizes = [
            tuple(
                round(small + (large - small) * (step + 1) / stages)
                for small, large in zip(sizes[-1], output, strict=True)
            )
            for step in range(stages)
        ]
        after = features[::-1]
        self.up = nnx.List([
            ResizeConv(a, b, rngs=rngs) for a, b in zip(after, (*after[1:], after[-1]), strict=True)
        ])  # fmt: skip
        self.last = nnx.Conv(after[-1], channels, (3, 3), rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Decoded codes of the images."""
        return self.decode(self.encode(images))

    def encode(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch code"]:
        """Codes.

        Raises:
          ValueError: images of another size than the encoder's.
        """
        if images.shape[1:3] != self.image:
            raise ValueError(
                f"images must be [batch, {self.image[0]}, {self.image[1]}, channels], "
                f"got shape {images.shape}"
            )
        maps = images
        for conv in self.down:
            maps = nnx.relu(conv(maps))
        return self.to_code(maps.reshape(maps.shape[0], math.prod(maps.shape[1:])))

    def decode(
        self, codes: Float[Array, "batch code"]
    ) -> Float[Array, "batch new_height new_width channels"]:
        """Images of the output's size; values are as the images were, no activation at the end."""
        maps = nnx.relu(self.from_code(codes)).reshape(codes.shape[0], *self.smallest)
        for layer, size in zip(self.up, self.sizes, strict=True):
            maps = nnx.relu(layer(maps, size))
        return self.last(maps)
