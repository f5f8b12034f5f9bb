"""Samplers at the door: keys, arguments, comparison; and candidates of the user's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

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
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.samplers import without_replacement
from tests.every_number import every_number
from tests.inputs import INTEGER_TYPES, on_device

FALSE_ALARM = 1e-4  # of each test that draws, were the seed drawn anew
SAMPLERS = [
    Uniform(9),
    LogUniform(9),
    Unigram.from_counts([5, 0, 1, 2, 0, 7, 3, 3, 1]),
    jax.jit(lambda: LearnedUnigram.create(9).update([1, 1, 2]))(),
    Mixture.create([Unigram.from_counts([5, 0, 1, 2, 0, 7, 3, 3, 1]), Uniform(9)], [3, 1]),
]


@pytest.mark.parametrize(("implementation", "per_token"), [("rbg", True), ("unsafe_rbg", False)])
def test_keys_of_any_implementation(implementation, per_token):
    """Unique draws that need the race: the ids follow their probabilities and the tries their mean.

    Of two classes, drawn until both are found, the first is class 0 with probability p, and the
    tries are 1 + geometric: a binomial and a z-test over 4,000 runs, false alarms 1e-4 each.
    Every class that can be drawn is expected once.
    """
    counts, runs = np.array([3, 1, 0]), 4000
    sampler, p = Unigram.from_counts(counts), 0.75
    labels = np.arange(runs) % 4 - 1
    key = jax.random.key(7, impl=implementation)
    if per_token:
        samples = draw_samples(sampler, key, 2, labels, per_token=True)
    else:
        one = lambda key: draw_samples(sampler, key, 2, labels[:4])  # noqa: E731
        samples = jax.jit(lambda key: jax.vmap(one)(jax.random.split(key, runs)))(key)
    ids, tries = np.asarray(samples.ids), np.asarray(samples.tries, np.float64)
    assert not samples.log_expected_count.any()
    of_labels = np.asarray(samples.labels_log_expected_count).reshape(-1, 4)
    assert (of_labels == [-np.inf, 0, 0, -np.inf]).all()
    assert stats.binomtest(int((ids[:, 0] == 0).sum()), runs, p).pvalue > FALSE_ALARM
    # Class 0 first: then 1 / (1 - p) tries until class 1; and the other way round.
    mean = 1 + p / (1 - p) + (1 - p) / p
    variance = p * p / (1 - p) ** 2 + (1 - p) * (1 - p) / p**2
    variance += p * (1 / (1 - p)) ** 2 + (1 - p) * (1 / p) ** 2 - (mean - 1) ** 2
    z = (tries.mean() - mean) / np.sqrt(variance / runs)
    assert abs(z) < stats.norm.isf(FALSE_ALARM / 2)


@pytest.mark.smoke
def test_keys_of_the_old_style():
    keys = [make(0) for make in (jax.random.PRNGKey, jax.random.key)]
    old, new = (draw_samples(Uniform(9), key, 3, [1], unique=False) for key in keys)
    jax.tree.map(np.testing.assert_array_equal, old, new)
    old, new = (jax.eval_shape(lambda key: draw_samples(Uniform(9), key, 3, [1]), k) for k in keys)
    assert old == new


def test_a_class_of_probability_0_never_arrives(monkeypatch):
    """Not even where its exponential is 0, which is one in 2^23 and would make 0 / 0."""
    monkeypatch.setattr(
        jax.random, "exponential", lambda _key, shape, dtype: jnp.zeros(shape, dtype)
    )
    first = without_replacement.race(
        jax.random.key(0), jnp.array([0.0, 0.5, 0.5]), jnp.array([3]), 2
    )
    assert sorted(first.ids.tolist()) == [1, 2]


def test_labels_of_any_integer_type(x64):
    """Outside of jit, and as arguments of one program: in each two samplers for each type."""
    labels = np.array([0, 8, 100])
    samplers = [*SAMPLERS, LogUniform(300)]
    typed = {dtype: labels.astype(dtype) for dtype in INTEGER_TYPES}
    traced_by, outside_by = (
        {dtype: [(n + by) % len(samplers) for by in two] for n, dtype in enumerate(typed)}
        for two in ((0, 3), (1, 4))
    )

    @jax.jit
    def traced(typed):
        wanted = [sampler.log_probability(labels) for sampler in samplers]
        found = {
            dtype: {n: samplers[n].log_probability(own) for n in traced_by[dtype]}
            for dtype, own in typed.items()
        }
        return wanted, found

    expected, found = traced(typed)
    for dtype, own in typed.items():
        outside = {n: samplers[n].log_probability(own) for n in outside_by[dtype]}
        for n, actual in (*outside.items(), *found[dtype].items()):
            assert actual.dtype == jnp.float32
            np.testing.assert_array_equal(actual, expected[n])
            assert np.isneginf(expected[n][2]) == (samplers[n].vocab_size == 9)
        grown = LearnedUnigram.create(200).update(own)
        np.testing.assert_allclose(grown.log_probability([100, 156]), np.log([2 / 203, 1 / 203]))


def test_ids_that_are_no_classes_are_never_drawn():
    ids = np.array([-100, -1, 9, 2**40])
    found = jax.jit(lambda: [sampler.log_probability(ids) for sampler in SAMPLERS])()
    for sampler, log_p in zip(SAMPLERS, found, strict=True):
        assert np.isneginf(log_p).all(), type(sampler).__name__


@pytest.mark.usefixtures("users_checks")
def test_arguments():
    key = jax.random.key(0)
    drawn = draw_samples(Uniform(np.int64(9)), key, np.int32(3), [1], unique=False)
    assert drawn.ids.shape == (3,)
    assert type(Uniform(np.int64(9)).vocab_size) is int
    for number in (2.0, True, "2"):
        with pytest.raises(TypeError, match="num_sampled must be an integer"):
            draw_samples(Uniform(9), key, number, [1])
        for make in (Uniform, LogUniform, LearnedUnigram.create):
            with pytest.raises(TypeError, match="vocab_size must be an integer"):
                make(number)
    with pytest.raises(TypeError, match=r"Unigram\.from_counts\(counts\)"):
        Unigram(jnp.ones(3))
    with pytest.raises(TypeError, match=r"LearnedUnigram\.create\(vocab_size\)"):
        LearnedUnigram(1000)
    with pytest.raises(TypeError, match="sampler must be a sampler"):
        draw_samples(Uniform, key, 3, [1])
    for power in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="power must be finite and at least 0"):
            Unigram.from_counts([1, 2], power)
    with pytest.raises(ValueError, match="counts must be concrete"):
        jax.jit(Unigram.from_counts)(jnp.ones(3))
    assert Unigram.from_counts([1e300, 1e300], 2).support == 2
    with pytest.raises(TypeError, match="samples must be Samples"):
        sampled_softmax_cross_entropy(jnp.ones((1, 2)), jnp.ones((9, 2)), [1], [1, 2])


@pytest.mark.usefixtures("users_checks")
def test_mixtures():
    halves = [Unigram.from_counts([1, 2, 0, 0]), Unigram.from_counts([0, 1, 5, 0])]
    assert Mixture.create(halves).support == 3
    assert Mixture.create([*halves, Uniform(4)]).support == 4
    assert Mixture.create(halves, [1, 3]) == Mixture.create(halves, [2.0, 6.0])
    with pytest.raises(ValueError, match="make the Mixture outside jit"):
        jax.jit(lambda *halves: Mixture.create(halves).support)(*halves)
    with pytest.raises(TypeError, match=r"Mixture\.create\(samplers, shares\)"):
        Mixture(tuple(halves))
    with pytest.raises(TypeError, match="each of samplers must be a sampler"):
        Mixture.create([Uniform])
    for samplers in ([], [Uniform(3), Uniform(4)]):
        with pytest.raises(ValueError, match="samplers must have one vocab_size, got"):
            Mixture.create(samplers)
    for shares in ([1], [1, 0], [1, np.nan]):
        with pytest.raises(ValueError, match="shares must be 2 numbers above 0, got"):
            Mixture.create(halves, shares)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="must have one vocab_size, got 9 and 4"):
        mixed_samples(Uniform(9), key, 2, [1], Uniform(4))
    with pytest.raises(TypeError, match="label_sampler must be a sampler"):
        mixed_samples(Uniform(9), key, 2, [1], Uniform)
    unique = draw_samples(Mixture.create(halves), key, 3, [3, 0])
    assert sorted(unique.ids.tolist()) == [0, 1, 2]
    assert unique.labels_log_expected_count.tolist() == [-np.inf, 0]


@pytest.mark.smoke
def test_samplers_compare_and_hash():
    def make():
        return [
            Unigram.from_counts([1, 2, 3]),
            Unigram.from_counts([1, 2, 4]),
            LearnedUnigram.create(3),
            LearnedUnigram.create(3).update([1]),
            Uniform(3),
            LogUniform(3),
        ]

    samplers = make()
    for n, ours in enumerate(samplers):
        for m, other in enumerate(make()):
            assert (ours == other) is (n == m)
            assert n != m or hash(ours) == hash(other)
    assert len({*samplers, *make()}) == 6
    assert samplers[3] in make()

    @jax.jit(static_argnums=0)
    def probability(sampler, ids):
        return sampler.log_probability(ids)

    first, second = (probability(s, jnp.array([2])) for s in samplers[:2])
    assert first != second
    assert jax.jit(lambda s: s == s and s in {s} and s != make()[0])(samplers[0])


def test_samples_of_each_token_and_strict_modes(strict_modes):
    """Each token has candidates of its own; shapes of all samplers, numbers of one."""
    labels, key = np.array([[1, -100], [3, 5]]), jax.random.key(0)

    def draws(sampler, **options):
        return lambda key: draw_samples(sampler, key, 3, labels, **options)

    for sampler in SAMPLERS:
        jax.eval_shape(draws(sampler), key)  # ranks and types show while tracing
    flat = labels.reshape(-1)
    every_number(lambda: [sampler.log_probability(flat) for sampler in SAMPLERS])
    every_number(lambda: LearnedUnigram.create(9).update(labels).log_probability([1]))
    for unique in (True, False):
        jax.eval_shape(draws(SAMPLERS[1], unique=unique, per_token=True), key)
    samples = draws(SAMPLERS[2], per_token=True)(key)
    assert not any(np.isnan(x).any() for x in samples)
    assert samples.ids.shape == samples.log_expected_count.shape == (2, 2, 3)
    assert samples.tries.shape == samples.labels_log_expected_count.shape == (2, 2)
    assert len({tuple(row) for row in np.asarray(samples.ids).reshape(-1, 3).tolist()}) > 1


def test_candidates_of_the_user():
    draw = np.random.default_rng(0)
    hidden, weight = (draw.normal(size=(size, 4)).astype(np.float32) for size in (2, 10))
    labels = on_device([3, 5])
    ids = np.array([[1, 2, 7], [4, 2**40, -9]])
    samples = Samples.from_candidates(ids, labels, mask=[[1, 1, 1], [1, 0, 0]])
    assert samples.tries.tolist() == [3, 1]
    value, derived = jax.jit(jax.value_and_grad(sampled_softmax_cross_entropy, (0, 1)))(
        hidden, weight, labels, samples
    )

    expected, wanted = 0.0, (np.zeros_like(hidden), np.zeros_like(weight))
    for token, classes in enumerate(([3, 1, 2, 7], [5, 4])):
        probabilities = special.softmax(weight[classes] @ hidden[token])
        expected -= np.log(probabilities[0]) / 2
        slopes = (probabilities - np.eye(len(classes))[0]) / 2
        wanted[0][token] = slopes @ weight[classes]
        wanted[1][classes] += slopes[:, None] * hidden[token]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), derived, wanted)
    drawn = draw_samples(LogUniform(10), jax.random.key(0), 4, labels, unique=False)
    same = Samples.from_candidates(
        drawn.ids,
        labels,
        log_expected_count=drawn.log_expected_count,
        labels_log_expected_count=drawn.labels_log_expected_count,
    )
    jax.tree.map(np.testing.assert_array_equal, same[:3], drawn[:3])


@pytest.mark.parametrize("mask", [[True, False], [1, 0], [0.5, 0.0]])
def test_a_mask_of_any_type_in_strict_modes(strict_modes, mask):
    samples = Samples.from_candidates([1, 2], np.array([2]), mask=mask)
    assert samples.tries.tolist() == 1


@pytest.mark.usefixtures("users_checks")
def test_candidates_of_the_user_must_fit():
    make = Samples.from_candidates
    for ids in ([-1, 2], [2**40]):
        with pytest.raises(ValueError, match="ids must lie in"):
            make(ids, [1])
    with pytest.raises(TypeError, match="ids must be integer class ids"):
        make([0.5], [1])
    with pytest.raises(ValueError, match=r"ids must be \[num_sampled\] or"):
        make(np.zeros((3, 2), int), [1, 2])
    with pytest.raises(ValueError, match="given both or neither"):
        make([1, 2], [1], log_expected_count=jnp.zeros(2))
    with pytest.raises(ValueError, match=r"mask must have shape \(2,\), got \(1,\)"):
        make([1, 2], [1], mask=[True])
    with pytest.raises(ValueError, match=r"labels_log_expected_count must have shape \(1,\)"):
        make([1], [1], log_expected_count=[0.0], labels_log_expected_count=[0.0, 1.0])


def test_in_batch_takes_lists_and_numpy():
    a = in_batch_samples([1, 2, 1], np.array([-1.0, -2.0, -1.0]))
    b = in_batch_samples(jnp.array([1, 2, 1], jnp.uint8), jnp.array([-1.0, -2.0, -1.0]))
    jax.tree.map(np.testing.assert_array_equal, a, b)
