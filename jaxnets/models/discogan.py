"""DiscoGAN: two generators and two discriminators that relate two domains without pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from jaxnets.layers import PointwiseConv, ResizeConv


class Generator(nnx.Module):
    """Strided convolutions down, learned resizing up; images in [0, 1] to images in [0, 1].

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> generator = Generator(3, (8,), rngs=nnx.Rngs(0))
      >>> nnx.jit(Generator.__call__)(generator, jnp.ones((4, 16, 16, 3))).shape
      (4, 16, 16, 3)
    """

    def __init__(self, channels: int, features: Sequence[int], *, rngs: nnx.Rngs):
        pairs = list(zip((channels, *features[:-1]), features, strict=True))
        self.down = nnx.List([nnx.Conv(a, b, (4, 4), strides=2, rngs=rngs) for a, b in pairs])
        self.down_norms = nnx.List([_norm(b, rngs) for _, b in pairs])
        back = [(b, max(a, features[0])) for a, b in pairs[::-1]]
        self.up = nnx.List([ResizeConv(b, a, rngs=rngs) for b, a in back])
        self.up_norms = nnx.List([_norm(a, rngs) for _, a in back])
        self.last = PointwiseConv(features[0], channels, activation="sigmoid", rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width channels"]:
        """The images' counterparts in the other domain."""
        maps = images
        sizes: list[tuple[int, ...]] = []
        for conv, norm in zip(self.down, self.down_norms, strict=True):
            sizes.append(maps.shape[1:3])
            maps = nnx.leaky_relu(norm(conv(maps)), 0.2)
        for layer, norm, size in zip(self.up, self.up_norms, sizes[::-1], strict=True):
            maps = nnx.relu(norm(layer(maps, size)))
        return self.last(maps)


class Discriminator(nnx.Module):
    """Strided convolutions to one logit for each patch: positive where it looks real.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> judge = Discriminator(3, (8,), rngs=nnx.Rngs(0))
      >>> nnx.jit(Discriminator.__call__)(judge, jnp.ones((4, 16, 16, 3))).shape
      (4, 8, 8, 1)
    """

    def __init__(self, channels: int, features: Sequence[int], *, rngs: nnx.Rngs):
        pairs = list(zip((channels, *features[:-1]), features, strict=True))
        self.convs = nnx.List([nnx.Conv(a, b, (4, 4), strides=2, rngs=rngs) for a, b in pairs])
        self.last = PointwiseConv(features[-1], 1, rngs=rngs)

    def __call__(
        self, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch rows columns 1"]:
        """Logits of "real"."""
        maps = images
        for conv in self.convs:
            maps = nnx.leaky_relu(conv(maps), 0.2)
        return self.last(maps)


class DiscoGAN(nnx.Module):
    r"""Kim et al. 2017: a generator each way, and what goes there and back must be the same.

    .. math::
        L_G &= d(G_{BA}(G_{AB}(a)), a) + d(G_{AB}(G_{BA}(b)), b)
               - \log D_B(G_{AB}(a)) - \log D_A(G_{BA}(b)) \\
        L_D &= -\log D_A(a) - \log(1 - D_A(G_{BA}(b))) - \log D_B(b) - \log(1 - D_B(G_{AB}(a)))

    (equations 5 to 8, d being the mean absolute difference times ``reconstruction``.)

    Args:
      channels: of the images, whose values are in [0, 1].
      features: channels of each stage of the generators: the fewer stages, the more detail they
        keep.
      judge_features: of the discriminators.
      reconstruction: the weight of d.
      rngs: for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = DiscoGAN(3, (8,), judge_features=(8,), rngs=nnx.Rngs(0))
      >>> a, b = jnp.zeros((4, 16, 16, 3)), jnp.ones((4, 16, 16, 3))
      >>> loss, parts = nnx.jit(DiscoGAN.loss)(model, a, b)
      >>> sorted(parts)
      ['discriminators', 'generators', 'reconstruction']
    """

    def __init__(
        self,
        channels: int,
        features: Sequence[int] = (32, 64),
        *,
        judge_features: Sequence[int] = (32, 64, 128),
        reconstruction: float = 10.0,
        rngs: nnx.Rngs,
    ):
        self.reconstruction = reconstruction
        self.a_to_b, self.b_to_a = (Generator(channels, features, rngs=rngs) for _ in range(2))
        self.judge_a, self.judge_b = (
            Discriminator(channels, judge_features, rngs=rngs) for _ in range(2)
        )

    def loss(
        self,
        a: Float[Array, "batch height width channels"],
        b: Float[Array, "batch height width channels"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """One loss for both sides of the game, and its parts.

        The generators' part holds the discriminators fixed and the discriminators' part the
        images, so one gradient has each player's own, and any optimizer serves both.
        """
        fake_b, fake_a = self.a_to_b(a), self.b_to_a(b)
        back = jnp.abs(self.b_to_a(fake_b) - a).mean() + jnp.abs(self.a_to_b(fake_a) - b).mean()
        fooled = _cross_entropy(_frozen(self.judge_b)(fake_b), 1) + _cross_entropy(
            _frozen(self.judge_a)(fake_a), 1
        )
        seen = sum(
            _cross_entropy(judge(real), 1) + _cross_entropy(judge(jax.lax.stop_gradient(fake)), 0)
            for judge, real, fake in ((self.judge_a, a, fake_a), (self.judge_b, b, fake_b))
        )
        parts = {"reconstruction": back, "generators": fooled, "discriminators": seen}
        return self.reconstruction * back + fooled + seen, parts


def _frozen(module: Any) -> Any:
    """The module with parameters that get no gradient."""
    graph, state = nnx.split(module)
    return nnx.merge(graph, jax.tree.map(jax.lax.stop_gradient, state))


def _cross_entropy(logits, label: int):
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label)).mean()


def _norm(features: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, momentum=0.9, rngs=rngs)
