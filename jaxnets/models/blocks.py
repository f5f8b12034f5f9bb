"""Blocks that several convolutional models are made of."""

from __future__ import annotations

from flax import nnx
from jaxtyping import Array, Float


class ConvPair(nnx.Module):
    """Two 3x3 convolutions, each normalized over the batch (or not) and rectified.

    Args:
      before, after: channels.
      normalize: batch normalization in place of a bias.
      rngs: for the kernels.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> pair = ConvPair(1, 8, rngs=nnx.Rngs(0))
      >>> nnx.jit(ConvPair.__call__)(pair, jnp.ones((2, 25, 33, 1))).shape
      (2, 25, 33, 8)
    """

    def __init__(self, before: int, after: int, *, normalize: bool = True, rngs: nnx.Rngs):
        self.convs = nnx.List([
            nnx.Conv(
                features, after, (3, 3), use_bias=not normalize,
                kernel_init=nnx.initializers.he_normal(), rngs=rngs,
            )
            for features in (before, after)
        ])  # fmt: skip
        self.norms = nnx.List(
            [nnx.BatchNorm(after, momentum=0.95, rngs=rngs) for _ in range(2) if normalize]
        )

    def __call__(
        self, maps: Float[Array, "batch height width before"]
    ) -> Float[Array, "batch height width after"]:
        """Maps of the same size."""
        for number, conv in enumerate(self.convs):
            maps = conv(maps)
            maps = nnx.relu(self.norms[number](maps) if self.norms else maps)
        return maps
