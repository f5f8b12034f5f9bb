"""Samplers of negative classes, and how often each class is expected among what they draw.

A sampler is a pytree with three things: ``vocab_size``, ``draw(key, shape)`` (independent draws)
and ``log_probability(ids)``, -inf of an id that is no class. :func:`draw_samples` draws candidates
from any of them, with replacement or without. A draw costs the number of candidates, not the
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Integer

from jaxnets.kernels import checks, meshes
from jaxnets.kernels.samplers.samples import CLASS_IDS, Samples, log_inclusion
from jaxnets.kernels.samplers.without_replacement import draw_unique


@runtime_checkable
class Sampler(Protocol):
    """What :func:`draw_samples` needs of a distribution over classes."""

    @property
    def vocab_size(self) -> int:
        """How many classes there are."""

    @property
    def support(self) -> int:
        """How many of them have a probability above 0."""

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Independent draws, int32 of ``shape``."""

    def log_probability(self, ids: jax.Array) -> jax.Array:
        """Log-probability of each id, float32 of its shape."""


def check_sampler(name: str, sampler: Any) -> None:
    """Raise ``TypeError`` unless ``sampler`` is one, and no class of them."""
    if isinstance(sampler, type) or not hasattr(sampler, "draw"):
        raise TypeError(
            f"{name} must be a sampler, for example LogUniform(vocab_size), got {sampler}"
        )


def draw_samples(
    sampler: Sampler,
    key: jax.Array,
    num_sampled: SupportsIndex,
    labels: Integer[ArrayLike, "..."] | Sequence,
    *,
    unique: bool = True,
    per_token: bool = False,
) -> Samples:
    r"""Draw ``num_sampled`` candidate classes.

    With replacement a class of probability p is expected ``num_sampled * p`` times. Without
    (``unique``), draws repeat until ``num_sampled`` distinct classes are found, which takes n
    tries, and a class is among them with probability

    .. math:: 1 - (1 - p)^{n}

    given n (as TensorFlow's candidate samplers have it). Where every class that can be is drawn
    (``num_sampled == support``), that is 1.

    Args:
      sampler: for example :class:`LogUniform`.
      key: a ``jax.random`` key of any implementation.
      num_sampled: candidates to draw; at least 1 and, when unique, at most the classes with a
        probability above 0.
      labels: [...], integer true classes, for their expected counts; that of a label which the
        sampler never draws, such as one out of range, is -infinity.
      unique: draw without replacement.
      per_token: draw for each token of ``labels [...]`` alone; ids are [..., num_sampled].

    Returns:
      :class:`Samples`.

    Raises:
      TypeError: float labels, or a ``num_sampled`` that is no integer.
      ValueError: ``num_sampled`` out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import LogUniform
      >>> labels = jnp.zeros((2, 3), jnp.int32)  # [batch, time]
      >>> samples = draw_samples(LogUniform(1000), jax.random.key(0), 64, labels)
      >>> samples.ids.shape, len(set(samples.ids.tolist())), bool(samples.tries >= 64)
      ((64,), 64, True)
    """
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    num_sampled = checks.as_int("num_sampled", num_sampled, 1)
    check_sampler("sampler", sampler)
    if unique and num_sampled > sampler.support:
        raise ValueError(
            f"num_sampled must be at most {sampler.support}, the classes that can be drawn, when "
            f"unique; got {num_sampled}. Draw fewer, or with replacement (unique=False)."
        )
    return _draw_samples(num_sampled, unique, per_token, sampler, key, labels)


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("draw_samples")
def _draw_samples(
    num_sampled: int,
    unique: bool,
    per_token: bool,
    sampler: Sampler,
    key: jax.Array,
    labels: jax.Array,
) -> Samples:
    given, labels = labels, meshes.replicated(labels)

    def one(key):
        if unique:
            return draw_unique(sampler, key, num_sampled)
        return sampler.draw(key, (num_sampled,)), jnp.int32(num_sampled)

    if per_token and not labels.size:  # not every kind of key can be split in none
        ids = jnp.zeros((*labels.shape, num_sampled), jnp.int32)
        tries, all_tries = jnp.zeros(labels.shape, jnp.int32), jnp.zeros(ids.shape, jnp.int32)
    elif per_token:
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
        log_p = sampler.log_probability(ids)
        if unique and num_sampled == sampler.support:
            return jnp.where(jnp.isneginf(log_p), log_p, 0)
        if not unique:
            return log_p + math.log(num_sampled)
        return log_inclusion(log_p, tries)

    labels_log_expected_count = meshes.placed_like(given, log_expected_count(labels, tries))
    return Samples(ids, log_expected_count(ids, all_tries), labels_log_expected_count, tries)
