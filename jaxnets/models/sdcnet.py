"""S-DCNet: counting by dividing an image until each part holds no more than was seen in training.

Xiong et al. 2019, "From open set to closed set: counting objects by spatial divide-and-conquer".
A count is open-ended; but a region can be divided into quarters until each has a count that a
classifier of intervals knows. The same classifier serves every level.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int32

from jaxnets.kernels import checks
from jaxnets.layers import PointwiseConv, ResizeConv
from jaxnets.models.blocks import ConvPair


class Intervals(NamedTuple):
    """Classes of counts: class i is of counts in (bounds[i-1], bounds[i]], the last is beyond."""

    bounds: tuple[float, ...]

    def classes(self, counts: Float[Array, "..."]) -> Int32[Array, "..."]:
        """The class of each count.

        Example:
          >>> import jax.numpy as jnp
          >>> Intervals((0, 1, 2, 4)).classes(jnp.array([0.0, 1.0, 3.0, 4.0, 9.0])).tolist()
          [0, 1, 3, 3, 4]
        """
        return jnp.searchsorted(jnp.asarray(self.bounds), counts, side="left").astype(jnp.int32)

    def values(self) -> np.ndarray:
        """The count that each class stands for: the mean of its integers, the last its bound.

        Example:
          >>> Intervals((0, 1, 2, 4)).values().tolist()
          [0.0, 1.0, 2.0, 3.5, 4.0]
        """
        low = np.array((-1, *self.bounds[:-1]))
        high = np.array(self.bounds)
        return np.append((low + 1 + high) / 2, high[-1]).astype(np.float32)


# One class for each integer to 10, then of two together to 20 (a "two-linear" partition, 4.2).
DOTS = Intervals((*map(float, range(11)), 12.0, 14.0, 16.0, 18.0, 20.0))


class SDCNet(nnx.Module):
    """A U-shaped encoder, an interval classifier and a division decider at each level, merging.

    The classifier is a dense head over a [4, 4, features] map written as a convolution whose window
    is the map and whose stride is the window: one output a region, on images of any size.

    Args:
      intervals: classes of counts.
      divisions: how often a region may be divided.
      channels: of an image.
      features: channels of each stage; the image is halved after each but the last, so the largest
        region, 4 by 4 of the last map, has a side of 64 with five stages.
      hidden_features: of the heads.
      rngs: for the parameters.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = SDCNet(features=(8, 8, 8), hidden_features=8, rngs=nnx.Rngs(0))
      >>> levels = nnx.jit(SDCNet.__call__)(model, jnp.ones((1, 32, 48, 1)))
      >>> [counts.shape for counts in levels.counts]
      [(1, 2, 3), (1, 4, 6), (1, 8, 12)]
    """

    def __init__(
        self,
        *,
        intervals: Intervals = DOTS,
        divisions: int = 2,
        channels: int = 1,
        features: Sequence[int] = (16, 24, 32, 48, 48),
        hidden_features: int = 64,
        rngs: nnx.Rngs,
    ):
        self.intervals, self.divisions = intervals, divisions
        self.region = WINDOW * 2 ** (len(features) - 1)
        if not 0 <= divisions < len(features):
            raise ValueError(f"divisions must lie in [0, {len(features)}), got {divisions}")
        self.encoder = Encoder(channels, features, normalize=True, rngs=rngs)
        deep = features[-1]
        skips = features[-2 : -2 - divisions : -1]
        self.up = nnx.List([ResizeConv(deep, deep, rngs=rngs) for _ in skips])
        self.joined = nnx.List([ConvPair(deep + skip, deep, rngs=rngs) for skip in skips])
        self.counter = RegionHead(deep, hidden_features, len(intervals.bounds) + 1, rngs=rngs)
        self.decider = RegionHead(deep, hidden_features, 1, rngs=rngs)

    def __call__(self, images: Float[Array, "batch height width channels"]) -> Levels:
        """What each level finds, from whole regions to the smallest.

        Raises:
          ValueError: height or width is not a multiple of the region's side.
        """
        if images.shape[1] % self.region or images.shape[2] % self.region:
            raise ValueError(
                f"images must be [batch, height, width, channels] with both sides multiples of "
                f"{self.region}, got shape {images.shape}"
            )
        across = self.encoder(images)
        maps = across[-1]
        logits, decisions = [self.counter(maps)], []
        for up, joined, skip in zip(self.up, self.joined, across[-2::-1], strict=False):
            maps = joined(jnp.concatenate([skip, up(maps, skip.shape[1:3])], axis=-1))
            logits.append(self.counter(maps))
            decisions.append(nnx.sigmoid(self.decider(maps)[..., 0]))
        values = jnp.asarray(self.intervals.values())
        counts = [values[each.argmax(-1)] for each in logits]
        merged = [counts[0]]
        for decision, count in zip(decisions, counts[1:], strict=True):
            # A region that is not divided leaves each of its quarters a quarter of its count.
            undivided = jnp.repeat(jnp.repeat(merged[-1], 2, axis=1), 2, axis=2) / 4
            merged.append((1 - decision) * undivided + decision * count)
        return Levels(logits, counts, decisions, merged)

    def loss(
        self,
        images: Float[Array, "batch height width channels"],
        dots: Float[Array, "batch height width"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Cross-entropy of each level's classes, and the absolute error of the merged counts.

        Args:
          images: as for the call.
          dots: how many objects have their centre at each pixel.

        Counts are picked by argmax, so only the deciders learn by the second part (section 4.3).
        """
        levels = self(images)
        classes = jnp.zeros(())
        for logits in levels.logits:
            wanted = self.intervals.classes(count_regions(dots, logits.shape[1:3]))
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
            classes += losses.mean()
        smallest = levels.merged[-1]
        merging = jnp.abs(smallest - count_regions(dots, smallest.shape[1:3])).mean()
        return classes + merging, {"classes": classes, "merging": merging}

    def total(self, images: Float[Array, "batch height width channels"]) -> Float[Array, " batch"]:
        """The count of each image."""
        return self(images).merged[-1].sum((1, 2))


class Levels(NamedTuple):
    """By level: logits [batch, rows, columns, classes], counts, decisions to divide, merged."""

    logits: list[jax.Array]
    counts: list[jax.Array]
    decisions: list[jax.Array]  # one fewer: of the regions that the level made
    merged: list[jax.Array]


class CountRegressor(nnx.Module):
    """What S-DCNet is compared with: the same encoder, and a head that regresses each region.

    Without batch normalization, which takes away how much there is in all of a batch: with it a
    regressor is several times worse, while the classifier of intervals is better.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = CountRegressor(features=(8, 8, 8), hidden_features=8, rngs=nnx.Rngs(0))
      >>> nnx.jit(CountRegressor.total)(model, jnp.ones((1, 32, 48, 1))).shape
      (1,)
    """

    def __init__(
        self,
        *,
        channels: int = 1,
        features: Sequence[int] = (16, 24, 32, 48, 48),
        hidden_features: int = 64,
        rngs: nnx.Rngs,
    ):
        self.encoder = Encoder(channels, features, normalize=False, rngs=rngs)
        self.head = RegionHead(features[-1], hidden_features, 1, rngs=rngs)

    def loss(
        self,
        images: Float[Array, "batch height width channels"],
        dots: Float[Array, "batch height width"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The absolute error of the regions' counts."""
        counts = self.head(self.encoder(images)[-1])[..., 0]
        return jnp.abs(counts - count_regions(dots, counts.shape[1:3])).mean(), {}

    def total(self, images: Float[Array, "batch height width channels"]) -> Float[Array, " batch"]:
        """The count of each image."""
        return self.head(self.encoder(images)[-1])[..., 0].sum((1, 2))


WINDOW = 4  # of the heads: a region is a map of 4 by 4 at its level


class Encoder(nnx.Module):
    """Pairs of convolutions as in VGG, the image halved between them; the maps of every stage."""

    def __init__(self, channels: int, features: Sequence[int], *, normalize: bool, rngs: nnx.Rngs):
        pairs = zip((channels, *features[:-1]), features, strict=True)
        self.stages = nnx.List([ConvPair(*pair, normalize=normalize, rngs=rngs) for pair in pairs])

    def __call__(self, images: Float[Array, "batch height width channels"]) -> list[jax.Array]:
        """Maps from the image's size downwards."""
        found = [self.stages[0](images)]
        for stage in self.stages[1:]:
            found.append(stage(nnx.max_pool(found[-1], (2, 2), strides=(2, 2))))
        return found


class RegionHead(nnx.Module):
    """A dense head over each 4 by 4 part of a map, as a convolution of that window and stride."""

    def __init__(
        self, in_features: int, hidden_features: int, out_features: int, *, rngs: nnx.Rngs
    ):
        window = WINDOW, WINDOW
        self.window = nnx.Conv(
            in_features, hidden_features, window, strides=window, padding="VALID", rngs=rngs
        )
        self.last = PointwiseConv(hidden_features, out_features, rngs=rngs)

    def __call__(
        self, maps: Float[Array, "batch height width features"]
    ) -> Float[Array, "batch rows columns out"]:
        """One output a region."""
        return self.last(nnx.relu(self.window(maps)))


def count_regions(
    dots: Float[Array, "batch height width"], grid: SupportsIndex | Iterable[SupportsIndex]
) -> Float[Array, "batch rows columns"]:
    """How many dots lie in each region of a ``grid`` (rows, columns).

    Example:
      >>> import jax.numpy as jnp
      >>> count_regions(jnp.ones((1, 8, 8)), (2, 4)).tolist()
      [[[8.0, 8.0, 8.0, 8.0], [8.0, 8.0, 8.0, 8.0]]]
    """
    batch, height, width = dots.shape
    rows, columns = checks.as_sizes("grid", grid, 2)
    if height % rows or width % columns:
        raise ValueError(f"grid must divide the image {(height, width)}, got {grid}")
    return dots.reshape(batch, rows, height // rows, columns, width // columns).sum((2, 4))
