"""Several distributions of negatives at once: in one sampler, or draws beside a batch's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import placed_like, replicated
from jaxnets.kernels.samplers.by_contents import ByContents
from jaxnets.kernels.samplers.draw import Sampler, check_sampler, draw_samples
from jaxnets.kernels.samplers.in_batch import in_batch_samples, log_count_in_batch
from jaxnets.kernels.samplers.samples import CLASS_IDS, Samples


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Mixture(ByContents):
    """p = the sum of share p of each of several samplers, which are drawn from by their shares.

    For example popular classes, of :class:`Unigram`, with some of every kind, of :class:`Uniform`,
    which popularity alone would hardly ever show. A draw costs that of all samplers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, Unigram
      >>> sampler = Mixture.create([Unigram.from_counts([3, 0, 1, 0]), Uniform(4)], [3, 1])
      >>> jnp.exp(jax.jit(sampler.log_probability)(jnp.arange(4))).round(4).tolist()
      [0.625, 0.0625, 0.25, 0.0625]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its samplers.
    samplers: Any = ()
    shares: tuple[float, ...] = field(default=(), metadata={"static": True})
    support: int = field(default=0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.support:
            raise TypeError("make a Mixture by Mixture.create(samplers, shares)")

    @classmethod
    def create(
        cls, samplers: Sequence[Sampler], shares: Sequence[SupportsFloat] | None = None
    ) -> Mixture:
        """The sampler that draws from each of ``samplers`` in proportion to ``shares``.

        Args:
          samplers: at least one, of the same classes.
          shares: as many numbers above 0; they need not sum to 1. None: equal ones.

        Raises:
          TypeError: what is no sampler, or shares that are no numbers.
          ValueError: samplers of different vocabularies, shares that do not fit, or, in ``jit``,
            samplers of which none has every class (how many they have together is counted here).
        """
        samplers = tuple(samplers)
        for sampler in samplers:
            check_sampler("each of samplers", sampler)
        sizes = [sampler.vocab_size for sampler in samplers]
        if len(set(sizes)) != 1:
            raise ValueError(f"samplers must have one vocab_size, got {sizes}")
        shares = [1] * len(sizes) if shares is None else shares
        numbers = [checks.as_number("each of shares", share) for share in shares]
        if len(numbers) != len(sizes) or not all(0 < share < math.inf for share in numbers):
            raise ValueError(f"shares must be {len(sizes)} numbers above 0, got {numbers}")
        total = math.fsum(numbers)
        return cls(samplers, tuple(share / total for share in numbers), _support(samplers))

    @property
    def vocab_size(self) -> int:
        return self.samplers[0].vocab_size

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        which_key, *keys = jax.random.split(key, len(self.samplers) + 1)
        ends = jnp.asarray(np.cumsum(self.shares)[:-1], jnp.float32)
        which = jnp.searchsorted(ends, jax.random.uniform(which_key, shape, jnp.float32), "right")
        draws = [sampler.draw(k, shape) for sampler, k in zip(self.samplers, keys, strict=True)]
        return jax.lax.select_n(which, *draws)

    def log_probability(self, ids: Any) -> jax.Array:
        pairs = zip(self.samplers, self.shares, strict=True)
        parts = [sampler.log_probability(ids) + math.log(share) for sampler, share in pairs]
        return jax.nn.logsumexp(jnp.stack(parts), 0)


def _support(samplers: tuple[Sampler, ...]) -> int:
    """How many classes one of the samplers has; counted only where none has them all."""
    vocab_size = samplers[0].vocab_size
    if any(sampler.support == vocab_size for sampler in samplers):
        return vocab_size
    every = jnp.arange(vocab_size, dtype=jnp.int32)
    possible = jnp.stack([sampler.log_probability(every) > -jnp.inf for sampler in samplers])
    if not checks.is_known(possible):
        raise ValueError(
            "samplers of which none has every class must be concrete: make the Mixture outside jit"
        )
    return int(np.asarray(possible).any(0).sum())


def mixed_samples(
    sampler: Sampler,
    key: jax.Array,
    num_sampled: SupportsIndex,
    labels: Integer[ArrayLike, "..."] | Sequence,
    label_sampler: Sampler,
    *,
    unique: bool = True,
    mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
) -> Samples:
    """A batch's own labels and drawn classes together: mixed negative sampling.

    A class is expected as often as in the batch and among the draws in sum (Yang et al. 2020,
    "Mixed Negative Sampling for Learning Two-tower Neural Networks in Recommendations", section 4);
    one that is in both is two candidates.

    Args:
      sampler: what is drawn from, for example :class:`Uniform`, for the classes that batches hardly
        ever hold.
      key: as of :func:`draw_samples`, and so are ``num_sampled`` and ``unique``.
      num_sampled: candidates to draw beside the labels.
      labels: [...], integer classes.
      label_sampler: the distribution of the labels, for example a :class:`LearnedUnigram` that is
        shown them. Nothing is drawn from it.
      unique: draw without replacement, and count a class of the batch once.
      mask: [...], bool or 0 and 1: False marks a padded label, as in :func:`in_batch_samples`.

    Returns:
      :class:`Samples` with ids [labels.size + num_sampled].

    Raises:
      TypeError, ValueError: as :func:`draw_samples` and :func:`in_batch_samples` do, or the
        samplers have different vocabularies.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, Unigram
      >>> popularity = Unigram.from_counts([5, 3, 1, 1])
      >>> draw = jax.jit(mixed_samples, static_argnames=("num_sampled", "unique"))
      >>> samples = draw(
      ...     Uniform(4), jax.random.key(0), 4, jnp.array([0, 1]), popularity, unique=False
      ... )
      >>> samples.ids.shape  # of classes 0 and 1: 2 p and 4 / 4
      (6,)
      >>> [round(float(x), 4) for x in jnp.exp(samples.labels_log_expected_count)]
      [2.0, 1.6]
    """
    check_sampler("sampler", sampler)
    check_sampler("label_sampler", label_sampler)
    if sampler.vocab_size != label_sampler.vocab_size:
        raise ValueError(
            "sampler and label_sampler must have one vocab_size, "
            f"got {sampler.vocab_size} and {label_sampler.vocab_size}"
        )
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    drawn = draw_samples(sampler, key, num_sampled, labels, unique=unique)
    own = in_batch_samples(
        labels, label_sampler.log_probability(replicated(labels)), unique=unique, mask=mask
    )
    return _mixed(unique, label_sampler, own, drawn)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("mixed_samples")
def _mixed(unique: bool, label_sampler: Sampler, own: Samples, drawn: Samples) -> Samples:
    placed = own.labels_log_expected_count
    own, drawn = replicated((own, drawn))
    log_p = label_sampler.log_probability(drawn.ids)
    # The ids of a batch's own samples are its labels, but for those that are no candidates.
    counts = [
        jnp.logaddexp(own.log_expected_count, drawn.labels_log_expected_count.reshape(-1)),
        jnp.logaddexp(log_count_in_batch(unique, log_p, own.tries), drawn.log_expected_count),
    ]
    of_labels = jnp.logaddexp(own.labels_log_expected_count, drawn.labels_log_expected_count)
    return Samples(
        jnp.concatenate([own.ids, drawn.ids]),
        jnp.concatenate(counts),
        placed_like(placed, of_labels),
        own.tries + drawn.tries,
    )
