"""Distinct classes from any sampler: what repeating a draw until k distinct are found would give.

Most of the time a few times k independent draws hold k distinct classes, and their order of first
appearance is the answer. Where they do not, more are drawn, if no class is so likely that the
others are rare. Of any other sampler the process is finished exactly and at once: seen in
continuous time, with draws arriving at rate 1, class i first appears after Exp(1) / p_i, so the
classes still missing are those with the earliest of such times, and the draws that repeated a known
class in between are a Poisson number. That costs O(vocab), and is bounded; no loop waits for luck.
It is the only way where k is a large part of the vocabulary, since then O(vocab) is O(k). A sampler
whose vocabulary is split over devices runs its part of the race on each (:class:`Racing`).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels import meshes
from jaxnets.kernels.numerics import running_count
from jaxnets.kernels.rows.distinct import first_of_each
from jaxnets.kernels.samplers.log_uniform import LogUniform
from jaxnets.kernels.samplers.uniform import Uniform

_TRIES_PER_CLASS = 3
# No class of these is so likely that the others are rare: up to the share below it takes 4.5 draws
# a class that is wanted of 2**31, on average, 2.9 of a million. They race from that share on only,
# which spares a TPU's compiler the sort of a whole vocabulary: half a minute of its time.
_SPREAD = (LogUniform, Uniform)
_TRIES_A_ROUND = 2
# From this share of the vocabulary on, the race alone is cheaper than draws that mostly repeat.
_RACE_SHARE = 16
_MOST_REPEATS = 2.0**30  # where the count of tries, an int32, stops


class Arrivals(NamedTuple):
    """The classes of a race that come first, in order: [count] each; and the mass of the known."""

    times: jax.Array
    ids: jax.Array
    probability: jax.Array
    known: jax.Array  # [], the probability of the classes that do not race


@runtime_checkable
class Racing(Protocol):
    """A sampler with a race of its own."""

    def race(self, key: jax.Array, known_ids: jax.Array) -> Arrivals:
        """The first ``known_ids.size`` classes to arrive that are not among ``known_ids``."""


def race(key: jax.Array, probability: jax.Array, known_ids: jax.Array, count: int) -> Arrivals:
    """The first ``count`` of the classes of ``probability [vocab]`` to arrive.

    ``known_ids`` do not race; ids out of range are none.
    """
    known = jnp.zeros(probability.shape, bool).at[known_ids].set(True, mode="drop")
    out = known | (probability == 0)  # 0 / 0 where the exponential is 0, too, and NaN comes first
    wait = jax.random.exponential(key, probability.shape, jnp.float32)
    arrival = jnp.where(out, jnp.inf, wait / jnp.where(out, 1, probability))
    times, ids = lax.top_k(-arrival, count)
    mass = jnp.where(known, probability, 0).sum()
    return Arrivals(-times, ids, probability[ids], mass)


def draw_unique(sampler: Any, key: jax.Array, num_sampled: int) -> tuple[jax.Array, jax.Array]:
    """``num_sampled`` distinct ids [num_sampled] int32, and the tries [] int32 that took.

    Both have the distribution of independent draws that are repeated until ``num_sampled`` distinct
    classes are found. Where that is every class, the ids are 0 to vocab - 1.
    """
    vocab_size = sampler.vocab_size
    if num_sampled == vocab_size:
        return jnp.arange(vocab_size, dtype=jnp.int32), jnp.int32(vocab_size)
    race_key, draw_key = jax.random.split(key)
    if vocab_size <= _RACE_SHARE * num_sampled:
        nothing = jnp.full(num_sampled, vocab_size, jnp.int32)
        return _finish(sampler, race_key, nothing, jnp.int32(0), jnp.int32(0))

    if type(sampler) in _SPREAD:
        return _draw_until_found(sampler, draw_key, num_sampled)
    nothing = jnp.full(num_sampled, vocab_size, jnp.int32)
    draws = sampler.draw(draw_key, (_TRIES_PER_CLASS * num_sampled,))
    ids, found, tries = _add_distinct(nothing, jnp.int32(0), jnp.int32(0), draws)
    return lax.cond(
        found < num_sampled,
        lambda: _finish(sampler, race_key, ids, found, tries),
        lambda: (ids, tries),
    )


def _draw_until_found(
    sampler: Any, key: jax.Array, num_sampled: int
) -> tuple[jax.Array, jax.Array]:
    """As :func:`draw_unique`, by what that says it equals."""

    def more(state):
        key, ids, found, tries = state
        key, draw_key = jax.random.split(key)
        draws = sampler.draw(draw_key, (_TRIES_A_ROUND * num_sampled,))
        return key, *_add_distinct(ids, found, tries, draws)

    nothing = jnp.full(num_sampled, sampler.vocab_size, jnp.int32)
    start = meshes.vary_like(key, (nothing, jnp.int32(0), jnp.int32(0)))
    _, ids, _, tries = lax.while_loop(lambda state: state[2] < num_sampled, more, (key, *start))
    return ids, tries


def _add_distinct(
    ids: jax.Array, found: jax.Array, tries: jax.Array, draws: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``ids``, of which ``found`` are found in ``tries``, after ``draws`` until they are full."""
    wanted = ids.size
    is_new = first_of_each(jnp.concatenate([ids, draws]))[wanted:]
    rank = found + running_count(is_new) - 1
    ids = ids.at[jnp.where(is_new, rank, wanted)].set(draws, mode="drop")
    used = jnp.minimum((rank < wanted - 1).sum(dtype=jnp.int32) + 1, draws.size)
    return ids, jnp.minimum(rank[-1] + 1, wanted), tries + used


def _finish(
    sampler: Any, key: jax.Array, ids: jax.Array, found: jax.Array, tries: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Race the classes not yet among ``ids[:found]`` until all ``num_sampled`` are found."""
    num_sampled, vocab_size = ids.size, sampler.vocab_size
    clock_key, repeat_key = jax.random.split(key)
    if isinstance(sampler, Racing):
        first = sampler.race(clock_key, ids)
    else:
        everyone = jnp.exp(sampler.log_probability(jnp.arange(vocab_size, dtype=jnp.int32)))
        first = race(clock_key, everyone, ids, num_sampled)
    times, order, probability, known = first
    missing = num_sampled - found
    end = times[missing - 1]
    slots = jnp.arange(num_sampled, dtype=jnp.int32)
    ids = jnp.where(slots < found, ids, order[slots - found])
    # A class repeats, at its own rate, from its first appearance (or from now) to the end.
    repeats = (
        jnp.where(slots < missing, probability * jnp.maximum(end - times, 0), 0).sum() + end * known
    )
    repeated = _poisson(repeat_key, jnp.minimum(repeats, _MOST_REPEATS))
    return ids.astype(jnp.int32), (tries + missing + repeated).astype(jnp.int32)


def _poisson(key: jax.Array, mean: jax.Array) -> jax.Array:
    """A Poisson number, int32. JAX draws it from threefry keys only, so any other seeds one."""
    if jax.random.key_impl(key) != "threefry2x32":
        seed = jax.random.bits(key, (2,), jnp.uint32)
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
    return jax.random.poisson(key, mean, dtype=jnp.int32)
