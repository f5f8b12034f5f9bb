"""Frequencies that are learned from a stream and forgotten; statistical tests say their rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxnets.kernels import (
    LearnedUnigram,
    StreamingFrequency,
)
from jaxnets.kernels.samplers.streaming_frequency import _places, _words

FALSE_ALARM = 1e-4


def test_a_learned_unigram_halves_what_it_saw():
    """Against counts in float64, through two levels; each halving loses less than a part of one."""
    vocab, half_life = 300, 50
    draw = np.random.default_rng(0)
    batches = draw.integers(0, vocab, (12, 20))
    batches[:6] %= 7  # the distribution changes
    batches[3, :4] = -1  # padding is not shown
    seen, shown = np.zeros(vocab), 0
    for batch in batches:
        np.add.at(seen, batch[batch >= 0], 1.0)
        shown += (batch >= 0).sum()
        if shown >= half_life:
            seen, shown = seen / 2, 0
    start = LearnedUnigram.create(vocab, half_life=half_life)
    sampler, _ = jax.jit(lambda s, b: jax.lax.scan(lambda s, b: (s.update(b), None), s, b))(
        start, batches
    )
    counts = np.asarray(sampler.levels[0]).reshape(-1)[:vocab] / sampler.unit
    np.testing.assert_allclose(counts, 1 + seen, atol=2 / sampler.unit)
    assert sampler.shown == shown
    assert int(sampler.levels[-1].sum()) == np.asarray(sampler.levels[0]).sum()
    assert sampler.unit == 2**16
    assert LearnedUnigram.create(2**20, half_life=2**27).unit == 2
    for wrong, message in ((0, "half_life must be at least 1"), (2**29, "half_life must be at m")):
        with pytest.raises(ValueError, match=message):
            LearnedUnigram.create(10, half_life=wrong)


@jax.jit
def shown(seen, batches, masks):
    def step(seen, batch):
        return seen.update(batch[0], mask=batch[1]), None

    return jax.lax.scan(step, seen, (batches, masks))[0]


def test_streaming_frequencies_are_those_of_the_algorithm():
    """Step by step in NumPy, with ids that share a place, repeats in a batch and padding."""
    draw = np.random.default_rng(1)
    batches, masks = draw.integers(-9, 9, (40, 6)), draw.uniform(size=(40, 6)) < 0.8
    start = StreamingFrequency.create(5, tables=2, rate=0.2)
    last, interval, hits = np.zeros((3, 2, 5))
    _, places = _places(start, *_words(np.arange(-9, 9)))
    for step, (batch, mask) in enumerate(zip(batches, masks, strict=True), 1):
        for table in range(2):
            for place in {int(places[table, k + 9]) for k in batch[mask]}:
                at = table, place
                hits[at] += 1
                share = max(0.2, 1 / hits[at])
                interval[at] += share * (step - last[at] - interval[at])
                last[at] = step
    seen = shown(start, batches, masks)
    assert seen.step == 40
    np.testing.assert_array_equal(seen.hits, hits)
    np.testing.assert_allclose(seen.interval, interval, rtol=1e-5)
    ids = np.arange(-9, 9)
    longest = interval[np.arange(2)[:, None], np.asarray(places)].max(0)
    np.testing.assert_allclose(seen.log_expected_count(ids), -np.log(longest), rtol=1e-5, atol=1e-6)


def test_streaming_frequencies_are_unbiased():
    """The mean interval of each id against 1 / p by z-tests; false alarms 1e-4 in all.

    An interval is geometric: its variance is (1 - p) / p^2, and the average's that times the sum
    of its squared weights, of some 400 intervals in effect.
    """
    p = np.array([0.5, 0.2, 0.1, 0.05])
    steps, rate = 30_000, 0.005
    masks = np.random.default_rng(2).uniform(size=(steps, 4)) < p
    ids = np.array([3, 1_000_000, -7, 2**31 - 2])
    seen = shown(StreamingFrequency.create(1024, rate=rate), np.tile(ids, (steps, 1)), masks)
    found = np.exp(-np.asarray(seen.log_expected_count(ids), np.float64))
    for interval, share, count in zip(found, p, masks.sum(0), strict=True):
        weights, left = [], 1.0
        for n in range(count, 0, -1):
            weights.append(left * max(rate, 1 / n))
            left -= weights[-1]
        deviation = np.sqrt((1 - share) * np.square(weights).sum()) / share
        assert abs(interval - 1 / share) < stats.norm.isf(FALSE_ALARM / 2 / 4) * deviation


def test_ids_of_64_bits_are_other_ids():
    batch = [5, 5 + 2**32, -5, 2**62]
    seen = StreamingFrequency.create(2**20)
    for _ in range(2):
        seen = seen.update(batch[:1])
    seen = seen.update(np.array(batch)).update(jnp.array([5, -5]))
    found = np.exp(seen.log_expected_count(batch))
    np.testing.assert_allclose(found, [1, 1 / 3, 1 / 2, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(seen.log_expected_count(np.int8([5, -5])), np.log(found[[0, 2]]))
    assert np.isclose(seen.log_expected_count(np.uint64(2**63 + 1)), -np.log(5))


def test_wrong_arguments():
    for options, message in (
        ({"size": 0}, "size must be at least 1"),
        ({"size": 8, "rate": 1.5}, r"rate must lie in \(0, 1\], got 1\.5"),
        ({"size": 8, "tables": 0}, "tables must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            StreamingFrequency.create(**options)
    with pytest.raises(TypeError, match="make a StreamingFrequency by"):
        StreamingFrequency()
