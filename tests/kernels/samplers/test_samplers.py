"""Samplers: each statistical test states its false-alarm rate; the seeds are fixed."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats

from jaxnets.kernels import (
    LearnedUnigram,
    LogUniform,
    Mixture,
    Samples,
    Uniform,
    Unigram,
    draw_samples,
    in_batch_samples,
    mixed_samples,
)
from jaxnets.kernels.samplers.without_replacement import draw_unique
from tests.inputs import on_device

FALSE_ALARM = 1e-4  # of each chi-squared or z-test below, were the seed drawn anew

COUNTS = np.array([50, 1, 7, 0, 19, 3, 0, 120, 11, 5])


def samplers():
    seen = np.arange(300) % 7 * 31
    learned = jax.jit(lambda seen: LearnedUnigram.create(300).update(seen))(seen)
    every, some = jax.jit(lambda: [Unigram.from_counts(c) for c in (COUNTS, COUNTS % 2)])()
    return [
        Uniform(10),
        LogUniform(10),
        LogUniform(1000),
        every,
        Unigram.from_counts(COUNTS, power=0.75),
        learned,
        Mixture.create([every, LogUniform(10), Uniform(10)], [5, 2, 1]),
        Mixture.create([every, some]),
    ]


@functools.partial(jax.jit, static_argnums=2)
def drawn(sampler, key, draws):
    """Ids, and the log-probability of each class."""
    log_p = sampler.log_probability(np.arange(min(sampler.vocab_size, 1000)))
    return sampler.draw(key, (draws,)), log_p


def test_jit_can_tell_samplers_apart():
    """Their tree structures are what it looks a program up by; JAX compares fields, not classes."""
    structures = [jax.tree.structure(s) for s in [*samplers(), Uniform(1000)]]
    distinct = [s for n, s in enumerate(structures) if s not in structures[:n]]
    # The unigrams of one support differ by their arrays only, as they should.
    assert len(distinct) == len(structures) - 1


@pytest.mark.parametrize("sampler", samplers(), ids=lambda s: f"{type(s).__name__}{s.vocab_size}")
def test_frequencies_follow_the_probabilities(sampler):
    """Chi-squared over all classes; false alarms 1e-4 each."""
    draws = 150_000
    ids, log_p = drawn(sampler, jax.random.key(1), draws)
    p = np.exp(np.asarray(log_p, np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    seen = np.bincount(ids, minlength=sampler.vocab_size)
    assert seen[p == 0].sum() == 0
    possible = p > 0
    expected = p[possible] / p.sum() * draws
    assert stats.chisquare(seen[possible], expected).pvalue > FALSE_ALARM


def test_the_tail_of_ten_million_classes_is_drawn_right():
    """64 equal slices of the last fifth of the ids, and the ids' parity; false alarms 2e-4."""
    vocab_size, draws = 10_000_000, 2_000_000
    ids = np.asarray(drawn(LogUniform(vocab_size), jax.random.key(2), draws)[0], np.int64)
    assert ids.min() == 0
    assert ids.max() < vocab_size
    edges = np.linspace(8_000_000, vocab_size, 65)
    p = np.diff(np.log1p(edges)) / np.log1p(vocab_size)
    seen = np.histogram(ids, edges)[0]
    assert (
        stats.chisquare([*seen, draws - seen.sum()], [*(p * draws), draws * (1 - p.sum())])[1]
        > FALSE_ALARM
    )
    tail = ids[ids >= 1_000_000]
    assert stats.binomtest(int((tail % 2).sum()), tail.size).pvalue > FALSE_ALARM


@functools.cache
def plain_runs(k, runs):
    """Draw until k distinct classes are found, as in the textbook: the ids and the tries."""
    p = np.exp(np.asarray(LogUniform(12).log_probability(np.arange(12)), np.float64))
    draws = iter(np.random.default_rng(0).choice(12, 1_000_000, p=p / p.sum()).tolist())
    every = []
    for _ in range(runs):
        found, tries = [], 0
        while len(found) < k:
            tries += 1
            draw = next(draws)
            if draw not in found:
                found.append(draw)
        every.append((found, tries))
    return np.array([found for found, _ in every]), np.array([tries for _, tries in every])


@pytest.mark.parametrize(("way", "k"), [("rejection", 3), ("rounds", 6), ("both", 6)])
def test_unique_sampling_equals_drawing_until_enough(monkeypatch, way, k):
    """Inclusion of each class, and the tries, against plain rejection; false alarms 1e-4 each.

    Two-sample z-tests on the share of draws that hold a class, and on the mean number of tries.
    The race alone is that of ``test_keys_of_any_implementation``; of both, it is in most draws.
    """
    from jaxnets.kernels.samplers import without_replacement

    share, tries_per_class = {
        "rejection": (0, 20), "rounds": (0, 1), "both": (0, 1)
    }[way]  # fmt: skip
    monkeypatch.setattr(without_replacement, "_RACE_SHARE", share)
    monkeypatch.setattr(without_replacement, "_TRIES_PER_CLASS", tries_per_class)
    monkeypatch.setattr(without_replacement, "_TRIES_A_ROUND", tries_per_class)
    if way == "both":
        monkeypatch.setattr(without_replacement, "_SPREAD", ())
    sampler, runs = LogUniform(12), 4000
    keys = jax.random.split(jax.random.key(3), runs)
    ids, tries = jax.jit(jax.vmap(lambda key: draw_unique(sampler, key, k)))(keys)
    assert all(len(set(row)) == k for row in np.asarray(ids).tolist())
    found, plain_tries = plain_runs(k, runs)
    threshold = stats.norm.isf(FALSE_ALARM / 2 / 12)  # Bonferroni over the classes
    ours = np.bincount(np.asarray(ids).ravel(), minlength=12) / runs
    theirs = np.bincount(found.ravel(), minlength=12) / runs
    pooled = (ours + theirs) / 2
    deviation = np.sqrt(pooled * (1 - pooled) * 2 / runs) + 1e-12
    assert (np.abs(ours - theirs) / deviation).max() < threshold
    assert stats.ttest_ind(np.asarray(tries), plain_tries, equal_var=False)[1] > FALSE_ALARM


@pytest.mark.parametrize("unique", [True, False])
def test_expected_counts_are_their_formula_and_what_is_drawn(unique):
    """Mean of the expected count over draws against the share of draws; z-test, 1e-4 in all.

    With replacement that is exact. Without, the stated count is conditional on the tries, and its
    mean differs from the share by a bias of order 1/num_sampled: 2 % is allowed for it here.
    """
    sampler, runs, k = LogUniform(2000), 3000, 50
    labels = np.array([0, 1, 5, 20, 100])
    keys = jax.random.split(jax.random.key(4), runs)
    samples = jax.jit(jax.vmap(lambda key: draw_samples(sampler, key, k, labels, unique=unique)))(
        keys
    )
    logs, tries = np.asarray(samples.labels_log_expected_count), np.asarray(samples.tries)
    p = np.exp(np.asarray(sampler.log_probability(labels), np.float64))
    formula = np.log(1 - (1 - p) ** tries[:, None].astype(float)) if unique else np.log(k * p)
    # float32 near a log of 0 keeps an absolute error of eps
    np.testing.assert_allclose(logs, np.broadcast_to(formula, logs.shape), rtol=1e-5, atol=1.2e-7)
    assert unique or (tries == k).all()
    stated = np.exp(logs).mean(0)
    counts = (np.asarray(samples.ids)[:, :, None] == np.asarray(labels)).sum(1)
    error = counts.std(0) / np.sqrt(runs)
    threshold = stats.norm.isf(FALSE_ALARM / 2 / labels.size)
    allowed = threshold * error + (0.02 * stated if unique else 1e-6)
    assert (np.abs(counts.mean(0) - stated) <= allowed).all()


def test_every_class_is_expected_once_when_all_are_drawn():
    samples = draw_samples(LogUniform(50), jax.random.key(0), 50, [3])
    assert sorted(samples.ids.tolist()) == list(range(50))
    assert not np.asarray(samples.log_expected_count).any()
    assert not np.asarray(samples.labels_log_expected_count).any()


def test_a_distribution_that_hardly_repeats_still_ends():
    counts = np.ones(1000)
    counts[7] = 1e9
    samples = draw_samples(Unigram.from_counts(counts), jax.random.key(0), 20, [7])
    assert len(set(samples.ids.tolist())) == 20
    assert samples.tries > 1e6  # what plain rejection would have taken


@pytest.mark.smoke
def test_learned_unigram_counts_what_it_sees():
    sampler = jax.jit(lambda: LearnedUnigram.create(20_000))()
    assert len(sampler.levels) == 3
    shown = on_device([[5, 5, 19_999], [5, -1, 20_000]])
    sampler = jax.jit(LearnedUnigram.update, donate_argnums=0)(sampler, shown)
    p = np.exp(jax.jit(LearnedUnigram.log_probability)(sampler, np.array([5, 19_999, 0])))
    np.testing.assert_allclose(p * 20_004, [4, 2, 1], rtol=1e-5)
    assert np.asarray(sampler.levels[-1]).sum() == 20_004


def test_learned_unigram_stops_before_int32_overflows():
    full = np.zeros((1, 128), np.int32)
    full[0, :2] = 2**31 - 3, 1
    sampler = LearnedUnigram((on_device(full),), 2)
    update = jax.jit(LearnedUnigram.update)
    once = update(sampler, np.array([1]))
    for found in (once, update(once, np.array([1]))):
        assert np.asarray(found.levels[0])[0, :2].tolist() == [2**31 - 3, 2]


@pytest.mark.smoke
def test_in_batch_samples_count_a_class_once():
    labels = on_device([[4, 2], [4, 4]])
    p = np.array([[0.3, 0.1], [0.3, 0.3]])
    unique = in_batch_samples(labels, np.log(p))
    np.testing.assert_allclose(
        np.exp(unique.log_expected_count), [1 - 0.7**4, 1 - 0.9**4, np.inf, np.inf], rtol=1e-5
    )
    repeated = in_batch_samples(labels, np.log(p), unique=False)
    np.testing.assert_allclose(np.exp(repeated.log_expected_count), [1.2, 0.4, 1.2, 1.2], rtol=1e-5)


def test_mixed_samples_are_expected_as_often_as_they_come():
    """A class comes Q times: the mean of how often, over the draws of batches, by z-tests.

    Twelve classes, false alarms 1e-4 in all; with replacement, where Q is exact.
    """
    runs, size, drawn = 4000, 9, 5
    popularity, tail = Unigram.from_counts(2 ** np.arange(12)), Uniform(12)

    def one(key):
        label_key, key = jax.random.split(key)
        labels = popularity.draw(label_key, (3, 3))
        samples = mixed_samples(tail, key, drawn, labels, popularity, unique=False)
        return samples, labels

    samples, labels = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(8), runs))
    counts = (np.asarray(samples.ids)[:, :, None] == np.arange(12)).sum(1)
    p = 2.0 ** np.arange(12) / (2**12 - 1)
    stated = size * p + drawn / 12
    error = np.sqrt((size * p * (1 - p) + drawn / 12 * 11 / 12) / runs)
    threshold = stats.norm.isf(FALSE_ALARM / 2 / 12)
    assert (np.abs(counts.mean(0) - stated) < threshold * error).all()
    for ids, logs in (
        (samples.ids, samples.log_expected_count),
        (labels, samples.labels_log_expected_count),
    ):
        np.testing.assert_allclose(np.exp(logs), stated[np.asarray(ids)], rtol=1e-5)


def test_mixed_samples_without_replacement_and_with_padding():
    """1 - (1 - p)^n of the batch and of the draws; repeats and padding are no candidates."""
    popularity = Unigram.from_counts([4, 3, 2, 1])
    labels, mask = np.array([1, 1, -100, 3]), [1, 1, 0, 1]
    draw = jax.jit(lambda key: mixed_samples(Uniform(4), key, 2, labels, popularity, mask=mask))
    samples = Samples(*map(np.asarray, draw(jax.random.key(0))))
    tries = int(samples.tries) - 3
    p = np.array([0.4, 0.3, 0.2, 0.1])
    total = 1 - (1 - p) ** 3 + 1 - 0.75**tries
    expected = [total[1], np.inf, np.inf, total[3], *total[samples.ids[4:]]]
    np.testing.assert_allclose(np.exp(samples.log_expected_count), expected, rtol=1e-5)
    own = np.exp(samples.labels_log_expected_count)
    np.testing.assert_allclose(own[np.array([0, 1, 3])], total[np.array([1, 1, 3])], rtol=1e-5)


@pytest.mark.smoke
def test_a_draw_does_not_cost_the_vocabulary():
    """XLA's own count of bytes for a draw from ten million classes: below 1 MB."""
    key = jax.random.key(0)
    drawn = jax.jit(lambda key: LogUniform(10_000_000).draw(key, (1024,))).lower(key).compile()
    assert drawn.cost_analysis()["bytes accessed"] < 1e6
