"""Samplers of negative classes, and how often each class is expected among what they draw.

A sampler is a pytree with three things: ``vocab``, ``draw(key, shape)`` (independent draws) and
``log_probability(ids)``. :func:`sample` draws candidates from any of them, with replacement or
without. A draw costs the number of candidates, not the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer

from jaxnets.kernels.softmax import arguments, log_uniform
from jaxnets.kernels.softmax.ordering import sort_ids
from jaxnets.kernels.softmax.unique import draw_unique


@runtime_checkable
class Sampler(Protocol):
    """What :func:`sample` needs of a distribution over classes."""

    @property
    def vocab(self) -> int:
        """How many classes there are."""

    @property
    def support(self) -> int:
        """How many of them have a probability above 0."""

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Independent draws, int32 of ``shape``."""

    def log_probability(self, ids: jax.Array) -> jax.Array:
        """Log-probability of each id, float32 of its shape."""


class Samples(NamedTuple):
    """Candidates and how often each class was to be expected among them.

    ids: [num_sampled] int32, shared by all tokens, or [..., num_sampled], each token's own.
    log_expected_count: as ``ids``, float32: log of the expected number of times it is drawn.
    labels_log_expected_count: as ``labels``, float32: the same for the true classes.
    tries: [] or [...] int32: independent draws made; ``num_sampled`` with replacement, and at least
      that without.
    """

    ids: jax.Array
    log_expected_count: jax.Array
    labels_log_expected_count: jax.Array
    tries: jax.Array


def sample(
    sampler: Sampler,
    key: jax.Array,
    num_sampled: int,
    labels: Integer[Array, "..."],
    *,
    unique: bool = True,
    per_token: bool = False,
) -> Samples:
    r"""Draw ``num_sampled`` candidate classes.

    With replacement a class of probability p is expected ``num_sampled * p`` times. Without
    (``unique``), draws repeat until ``num_sampled`` distinct classes are found, which takes n
    tries, and a class is among them with probability

    .. math:: 1 - (1 - p)^{n}

    given n (as TensorFlow's candidate samplers have it). Where every class is drawn
    (``num_sampled == vocab``), that is 1.

    Args:
      sampler: for example :class:`LogUniform`.
      key: a ``jax.random`` key.
      num_sampled: candidates to draw; at least 1 and, when unique, at most the classes with a
        probability above 0.
      labels: [...], integer true classes, for their expected counts.
      unique: draw without replacement.
      per_token: draw for each token of ``labels [...]`` alone; ids are [..., num_sampled].

    Returns:
      :class:`Samples`.

    Raises:
      TypeError: float labels.
      ValueError: ``num_sampled`` out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> samples = sample(LogUniform(1000), jax.random.key(0), 64, jnp.array([3, 5]))
      >>> samples.ids.shape, len(set(samples.ids.tolist())), bool(samples.tries >= 64)
      ((64,), 64, True)
    """
    arguments.check_integers("labels", labels)
    if num_sampled < 1:
        raise ValueError(f"num_sampled must be at least 1, got {num_sampled}")
    if unique and num_sampled > sampler.support:
        raise ValueError(
            f"num_sampled must be at most {sampler.support}, the classes that can be drawn, when "
            f"unique; got {num_sampled}. Draw fewer, or with replacement (unique=False)."
        )
    if per_token and not labels.size:
        raise ValueError(f"labels must hold at least one token, got the empty shape {labels.shape}")
    return _sample(num_sampled, unique, per_token, sampler, key, jnp.asarray(labels))


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("sample")
def _sample(num_sampled, unique, per_token, sampler, key, labels):
    def one(key):
        if unique:
            return draw_unique(sampler, key, num_sampled)
        return sampler.draw(key, (num_sampled,)), jnp.int32(num_sampled)

    if per_token:
        keys = jax.random.split(key, labels.shape)
        draw = one
        for _ in labels.shape:
            draw = jax.vmap(draw)
        ids, tries = draw(keys)
        all_tries = tries[..., None]
    else:
        ids, tries = one(key)
        all_tries = tries

    def log_expected_count(ids, tries):
        if unique and num_sampled == sampler.vocab:
            return jnp.zeros(ids.shape, jnp.float32)
        log_p = sampler.log_probability(ids)
        if not unique:
            return log_p + jnp.log(tries.astype(jnp.float32))
        return _log_inclusion(log_p, tries)

    labels_log_expected_count = log_expected_count(labels, tries)
    return Samples(ids, log_expected_count(ids, all_tries), labels_log_expected_count, tries)


def _log_inclusion(log_p, tries):
    """log(1 - (1-p)^tries), without losing a small p: (1-p)^n = exp(n log1p(-p))."""
    return jnp.log(-jnp.expm1(tries * jnp.log1p(-jnp.exp(log_p))))


def _static(**options):
    return field(metadata={"static": True}, **options)


def _check_vocab(vocab: int) -> None:
    if not 1 <= vocab <= arguments.INT32_MAX:
        raise ValueError(f"vocab must lie in [1, {arguments.INT32_MAX}] (int32 ids), got {vocab}")


# JAX 0.10 takes two dataclasses without arrays for one if their static fields are equal, and may
# then run the other's program (PyTreeDef compares fields, not classes). So the next two are
# registered as static themselves.
@jax.tree_util.register_static
@dataclass(frozen=True)
class Uniform:
    """Every class alike: p = 1 / vocab."""

    vocab: int

    def __post_init__(self):
        _check_vocab(self.vocab)

    @property
    def support(self) -> int:
        return self.vocab

    def draw(self, key, shape):
        return jax.random.randint(key, shape, 0, self.vocab, jnp.int32)

    def log_probability(self, ids):
        return jnp.full(ids.shape, -np.log(self.vocab), jnp.float32)


@jax.tree_util.register_static
@dataclass(frozen=True)
class LogUniform:
    """Zipf's law for ids sorted by falling frequency: p(k) = log((k + 2) / (k + 1)) / log(V + 1).

    The "log-uniform" or Zipfian candidate sampler of TensorFlow.
    """

    vocab: int

    def __post_init__(self):
        _check_vocab(self.vocab)

    @property
    def support(self) -> int:
        return self.vocab

    def draw(self, key, shape):
        return log_uniform.draw(key, shape, self.vocab)

    def log_probability(self, ids):
        return jnp.log(jnp.log1p(1 / (ids + 1.0)) / np.log1p(self.vocab)).astype(jnp.float32)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unigram:
    """p = counts / total, drawn in O(1) by the alias method (Walker 1977; Vose 1991)."""

    # Any: JAX rebuilds a pytree around whatever stands for its arrays, [vocab] each.
    threshold: Any
    alias: Any
    log_p: Any
    support: int = _static()

    @classmethod
    def from_counts(cls, counts, power: float = 1.0) -> Unigram:
        """The sampler with p proportional to ``counts ** power``.

        Args:
          counts: [vocab], at least 0, concrete; a class counted 0 is never drawn.
          power: 0.75 is word2vec's (Mikolov et al. 2013).
        """
        mass = np.asarray(counts, np.float64)
        if mass.ndim != 1 or not mass.size:
            raise ValueError(f"counts must be [vocab], got shape {mass.shape}")
        if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
            raise ValueError("counts must be finite, at least 0, and not all 0")
        mass = np.where(mass > 0, mass**power, 0)
        probability = mass / mass.sum()
        threshold, alias = _alias_table(probability)
        with np.errstate(divide="ignore"):
            log_p = np.log(probability)
        return cls(
            jnp.asarray(threshold, jnp.float32),
            jnp.asarray(alias, jnp.int32),
            jnp.asarray(log_p, jnp.float32),
            int((probability > 0).sum()),
        )

    @property
    def vocab(self) -> int:
        return self.log_p.shape[0]

    def draw(self, key, shape):
        slot_key, side_key = jax.random.split(key)
        slot = jax.random.randint(slot_key, shape, 0, self.vocab, jnp.int32)
        stay = jax.random.uniform(side_key, shape, jnp.float32) < self.threshold[slot]
        return jnp.where(stay, slot, self.alias[slot])

    def log_probability(self, ids):
        return self.log_p.at[arguments.safe_ids(ids, self.vocab)].get(
            mode="fill", fill_value=jnp.nan
        )


def _alias_table(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vose's table: slot k keeps its own class with probability threshold[k], else alias[k]."""
    vocab = probability.size
    scaled = (probability * vocab).tolist()
    threshold, alias = [1.0] * vocab, list(range(vocab))
    small = [k for k, mass in enumerate(scaled) if mass < 1]
    large = [k for k, mass in enumerate(scaled) if mass >= 1]
    while small and large:
        under, over = small.pop(), large[-1]
        threshold[under], alias[under] = scaled[under], over
        scaled[over] -= 1 - scaled[under]
        if scaled[over] < 1:
            small.append(large.pop())
    # What is left holds 1 up to rounding, unless its class is impossible.
    for under in small:
        if probability[under] == 0:
            threshold[under], alias[under] = 0.0, int(probability.argmax())
    return np.array(threshold), np.array(alias)


@jax.named_scope("in_batch")
def in_batch(labels, log_probability, *, unique: bool = True) -> Samples:
    """The labels of a batch as its candidates: nothing is drawn, no other row is read.

    A label is in the batch as often as its class occurs, so the expected counts are those of
    ``labels.size`` draws from the distribution of the labels.

    Args:
      labels: [...], integer classes.
      log_probability: [...], float: log of each label's share of the data.
      unique: count a class once; its repeats stay in ``ids`` (shapes are static) with an expected
        count of infinity, so that ``subtract_log_q`` gives them no weight at all.

    Returns:
      :class:`Samples` with ids [labels.size].

    Example:
      >>> import jax.numpy as jnp
      >>> samples = in_batch(jnp.array([7, 2, 7]), jnp.log(jnp.array([0.5, 0.1, 0.5])))
      >>> samples.ids.tolist(), [round(float(x), 3) for x in jnp.exp(samples.log_expected_count)]
      ([7, 2, 7], [0.875, 0.271, inf])
    """
    arguments.check_integers("labels", labels)
    if log_probability.shape != labels.shape:
        raise ValueError(
            f"log_probability must have the shape of labels, {labels.shape}, "
            f"got {log_probability.shape}"
        )
    ids, log_p = labels.reshape(-1).astype(jnp.int32), log_probability.reshape(-1)
    tries = jnp.int32(ids.size)
    if not unique:
        counts = log_p + jnp.log(ids.size)
        return Samples(ids, counts, counts.reshape(labels.shape), tries)
    counts = _log_inclusion(log_p, tries)
    order, _, is_first = sort_ids(ids)
    counted = jnp.zeros(ids.shape, bool).at[order].set(is_first, unique_indices=True)
    return Samples(ids, jnp.where(counted, counts, jnp.inf), counts.reshape(labels.shape), tries)
