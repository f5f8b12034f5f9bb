"""Distinct classes from any sampler: what repeating a draw until k distinct are found would give.

Most of the time a few times k independent draws hold k distinct classes, and their order of first
appearance is the answer. Where they do not, the process is finished exactly and at once: seen in
continuous time, with draws arriving at rate 1, class i first appears after Exp(1) / p_i, so the
classes still missing are those with the earliest of such times, and the draws that repeated a known
class in between are a Poisson number. That costs O(vocab), and is bounded; no loop waits for luck.
It is the only way where k is a large part of the vocabulary, since then O(vocab) is O(k).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.softmax.ordering import sort_ids

_TRIES_PER_CLASS = 3
# From this share of the vocabulary on, the race alone is cheaper than draws that mostly repeat.
_RACE_SHARE = 16


def draw_unique(sampler, key: jax.Array, num_sampled: int) -> tuple[jax.Array, jax.Array]:
    """``num_sampled`` distinct ids [num_sampled] int32, and the tries [] int32 that took.

    Both have the distribution of independent draws that are repeated until ``num_sampled`` distinct
    classes are found. Where that is every class, the ids are 0 to vocab - 1.
    """
    vocab = sampler.vocab
    if num_sampled == vocab:
        return jnp.arange(vocab, dtype=jnp.int32), jnp.int32(vocab)
    race_key, draw_key = jax.random.split(key)
    if vocab <= _RACE_SHARE * num_sampled:
        nothing = jnp.full(num_sampled, vocab, jnp.int32)
        return _finish(sampler, race_key, nothing, jnp.int32(0), jnp.int32(0))

    draws = sampler.draw(draw_key, (_TRIES_PER_CLASS * num_sampled,))
    ids, found, tries = _first_distinct(draws, num_sampled, vocab)
    return lax.cond(
        found < num_sampled,
        lambda: _finish(sampler, race_key, ids, found, tries),
        lambda: (ids, tries),
    )


def _first_distinct(draws, num_sampled, vocab):
    """The first distinct ids of ``draws`` in order (``vocab`` fills up), how many, in how many."""
    order, _, is_first = sort_ids(draws)
    is_new = jnp.zeros(draws.shape, bool).at[order].set(is_first, unique_indices=True)
    rank = jnp.cumsum(is_new, dtype=jnp.int32) - 1
    found = jnp.minimum(rank[-1] + 1, num_sampled)
    slot = jnp.where(is_new, rank, num_sampled)
    ids = jnp.full(num_sampled, vocab, jnp.int32).at[slot].set(draws, mode="drop")
    tries = jnp.where(
        found < num_sampled, draws.size, jnp.searchsorted(rank, num_sampled - 1, side="left") + 1
    )
    return ids, found.astype(jnp.int32), tries.astype(jnp.int32)


def _finish(sampler, key, ids, found, tries):
    """Race the classes not yet among ``ids[:found]`` until all ``num_sampled`` are found."""
    num_sampled, vocab = ids.size, sampler.vocab
    clock_key, repeat_key = jax.random.split(key)
    probability = jnp.exp(sampler.log_probability(jnp.arange(vocab, dtype=jnp.int32)))
    known = jnp.zeros(vocab, bool).at[ids].set(True, mode="drop")
    arrival = jax.random.exponential(clock_key, (vocab,)) / probability
    arrival = jnp.where(known, jnp.inf, arrival)
    times, order = lax.top_k(-arrival, num_sampled)
    times = -times
    missing = num_sampled - found
    end = times[missing - 1]
    slots = jnp.arange(num_sampled)
    ids = jnp.where(slots < found, ids, order[slots - found])
    # A class repeats, at its own rate, from its first appearance (or from now) to the end.
    repeats = (
        jnp.where(slots < missing, probability[order] * jnp.maximum(end - times, 0), 0).sum()
        + end * jnp.where(known, probability, 0).sum()
    )
    repeated = jax.random.poisson(repeat_key, repeats)
    return ids.astype(jnp.int32), (tries + missing + repeated).astype(jnp.int32)
