"""A sampler of which each device has a part: it draws what a whole one draws."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxnets.kernels import ShardedUnigram, Unigram, draw_samples
from jaxnets.kernels.samplers import without_replacement
from tests.sharding.split import SHARDINGS, VOCAB, make_mesh

COUNTS = np.arange(1, VOCAB + 1) % 97


def sharded_unigram(counts=COUNTS):
    return ShardedUnigram.split(SHARDINGS["vocab only"](make_mesh()), Unigram.from_counts(counts))


def test_a_split_unigram_draws_as_a_whole_one(monkeypatch):
    # How often a class repeats is one number on every device, and most of what is compiled.
    monkeypatch.setattr(without_replacement, "_poisson", lambda _key, mean: mean.astype(int))
    whole, split = Unigram.from_counts(COUNTS), sharded_unigram()
    labels = np.array([3, 500, 1599])

    @jax.jit
    def drawn(whole, split, key):
        return [
            [draw_samples(each, key, 50, labels, unique=unique) for each in (split, whole)]
            for unique in (False, True)
        ]

    for got, wanted in drawn(whole, split, jax.random.key(1)):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    with jax.debug_nans(True):  # which op by op would meet the NaN of an id out of range
        got = split.log_probability(labels)
    np.testing.assert_allclose(got, np.log(COUNTS[labels] / COUNTS.sum()), rtol=1e-6)


RACE = np.array([1, 2, 3, 4, 5, 6, 7, 12])


@cache
def race_of_4():
    split = sharded_unigram(RACE)
    return jax.jit(jax.vmap(lambda key: draw_samples(split, key, 4, jnp.array([0]))))


def races(seed):
    """The ids and the tries of 4,000 draws of 4 of 8."""
    found = race_of_4()(jax.random.split(jax.random.key(seed), 4000))
    return found.ids, found.tries


def test_the_split_race_has_the_distribution_of_repeated_draws():
    """Inclusion of each class among 4 of 8, by chi-squared: a false alarm in 10^4 runs."""
    drawn, _ = races(0)
    assert all(len(set(row)) == 4 for row in np.asarray(drawn).tolist())
    included = np.bincount(np.asarray(drawn).reshape(-1), minlength=8)
    # Exact inclusion probabilities, over all orders of successive draws without replacement.
    probability = RACE / RACE.sum()
    exact = np.zeros(8)

    def follow(chosen, mass, chance):
        if len(chosen) == 4:
            exact[list(chosen)] += chance
            return
        for k in set(range(8)) - set(chosen):
            follow((*chosen, k), mass + probability[k], chance * probability[k] / (1 - mass))

    follow((), 0.0, 1.0)
    variance = len(drawn) * exact * (1 - exact)
    z = (included - len(drawn) * exact) / np.sqrt(variance)
    # The counts are negatively correlated, so their largest is bounded by that of 8 independent.
    assert np.abs(z).max() < stats.norm.isf(1e-4 / 2 / 8)


def test_tries_of_the_split_race_are_those_of_repeated_draws():
    """Mean tries until 4 of 8 are found, within 4.5 standard errors: 7 false alarms in 10^6."""
    tries = np.asarray(races(1)[1], float)
    generator = np.random.default_rng(0)
    direct = []
    for row in generator.choice(8, (4000, 400), p=RACE / RACE.sum()):
        firsts = np.sort(np.unique(row, return_index=True)[1])
        direct.append(firsts[3] + 1)
    error = np.sqrt((tries.var() + np.var(direct)) / 4000)
    assert abs(tries.mean() - np.mean(direct)) < 4.5 * error
