"""A convolutional classifier of small images, whose dense head can slide over larger ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxnets.convert import convolutionalize
from jaxnets.kernels import checks
from jaxnets.models.blocks import ConvPair


class DigitsCNN(nnx.Module):
    """Pairs of 3x3 convolutions with batch normalization and pooling, then a dense head.

    The plan of LeNet-5 (LeCun et al. 1998) in today's parts: Simonyan and Zisserman's (2015) pairs
    of small windows, Ioffe and Szegedy's (2015) batch normalization.

    Args:
      image: height and width; each stage halves them.
      classes: how many.
      features: channels of each stage.
      hidden_features: of the head.
      dropout: before the last layer.
      rngs: for parameters and dropout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = DigitsCNN((28, 28), 10, features=(8, 16), hidden_features=32, rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> images = jnp.ones((2, 28, 28, 1))
      >>> nnx.jit(DigitsCNN.__call__)(model, images).shape
      (2, 10)
      >>> [maps.shape for maps in nnx.jit(DigitsCNN.activations)(model, images)]
      [(2, 28, 28, 8), (2, 14, 14, 16)]
    """

    def __init__(
        self,
        image: SupportsIndex | Iterable[SupportsIndex],
        classes: int,
        *,
        features: Sequence[int] = (32, 64),
        hidden_features: int = 128,
        dropout: float = 0.4,
        rngs: nnx.Rngs,
    ):
        self.image = checks.as_sizes("image", image, 2)
        self.window = _after_pooling(self.image, len(features))
        sizes = zip((1, *features[:-1]), features, strict=True)
        self.stages = nnx.List([ConvPair(before, after, rngs=rngs) for before, after in sizes])
        positions = self.window[0] * self.window[1]
        self.flat = nnx.Linear(positions * features[-1], hidden_features, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(hidden_features, classes, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Raises:
          ValueError: images of another size than the head's: :meth:`slide` takes those.
        """
        if images.shape[1:] != (*self.image, 1):
            raise ValueError(
                f"images must be [batch, {self.image[0]}, {self.image[1]}, 1], got {images.shape}; "
                "for larger ones there is slide()"
            )
        maps = self._maps(images)
        hidden = nnx.relu(self.flat(maps.reshape(maps.shape[0], math.prod(maps.shape[1:]))))
        return self.last(self.dropout(hidden))

    def slide(
        self, images: Float[Array, "batch height width 1"]
    ) -> Float[Array, "batch rows columns classes"]:
        """The classifier at each place of larger images: its dense head as a convolution.

        One place of the result is one window of the image, as the classifier's own size; the next
        lies two pixels on for each stage of pooling. Batch statistics must be fixed (``eval()``).
        Windows see beyond their edge, where the classifier alone sees zeros.
        """
        hidden = nnx.relu(convolutionalize(self.flat, self.window)(self._maps(images)))
        return self.last(self.dropout(hidden))

    def activations(
        self, images: Float[Array, "batch height width 1"]
    ) -> list[Float[Array, "batch height_ width_ features"]]:
        """What each stage gives before its pooling."""
        maps, found = images, []
        for stage in self.stages:
            maps = stage(maps)
            found.append(maps)
            maps = _pool(maps)
        return found

    def filters(self) -> Float[Array, "3 3 features"]:
        """The windows of the first convolution."""
        return self.stages[0].convs[0].kernel[...][:, :, 0]

    def _maps(self, images):
        return _pool(self.activations(images)[-1])


def _pool(maps):
    return nnx.max_pool(maps, (2, 2), strides=(2, 2))


def _after_pooling(image: tuple[int, ...], stages: int) -> tuple[int, int]:
    height, width = (size >> stages for size in image)
    if not height or not width:
        raise ValueError(f"image must be at least {2**stages} wide and high, got {image}")
    return height, width


def random_shift(
    images: Float[Array, "batch height width channels"], key: jax.Array, most: int
) -> Float[Array, "batch height width channels"]:
    """Each image moved by up to ``most`` pixels in both directions, zeros coming in.

    Raises:
      TypeError, ValueError: ``most`` is not an integer of at least 0.
    """
    most = checks.as_int("most", most, 0)
    shifts = jax.random.randint(key, (images.shape[0], 2), 0, 2 * most + 1)
    around = jnp.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))

    def cut(image, shift):
        return jax.lax.dynamic_slice(image, (shift[0], shift[1], 0), images.shape[1:])

    return jax.vmap(cut)(around, shifts)
