"""Blocks that several convolutional models are made of."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float


class ConvPair(nnx.Module):
    """Two 3x3 convolutions, each normalised and rectified.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> ConvPair(1, 4, rngs=nnx.Rngs(0))(jnp.ones((2, 6, 5, 1))).shape
      (2, 6, 5, 4)
    """

    def __init__(self, before: int, after: int, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(before, after, (3, 3), use_bias=False, rngs=rngs)
        self.first_norm = nnx.BatchNorm(after, momentum=0.95, rngs=rngs)
        self.second = nnx.Conv(after, after, (3, 3), use_bias=False, rngs=rngs)
        self.second_norm = nnx.BatchNorm(after, momentum=0.95, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "batch height width before"]
    ) -> Float[Array, "batch height width after"]:
        """Maps of the same size."""
        maps = nnx.relu(self.first_norm(self.first(maps)))
        return nnx.relu(self.second_norm(self.second(maps)))
