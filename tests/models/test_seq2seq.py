import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

from examples.text import small_parallel
from jaxnets import optim
from jaxnets.kernels import LogUniform, Samples
from jaxnets.models import (
    TENSORFLOW_TUTORIAL,
    Seq2Seq,
    Seq2SeqConfig,
    beam_search,
    greedy_search,
    seq2seq,
)
from jaxnets.models.seq2seq import END, START, is_table, sampled_gradients
from jaxnets.sequences import Batch, BatchSource, bucket_plan
from jaxnets.training import fit
from tests.every_number import every_number
from tests.inputs import INTEGER_TYPES, changed, summed_rows
from tests.traced import traced

pytestmark = pytest.mark.usefixtures("cheap_parameters")

SMALL = Seq2SeqConfig(30, 40, features=8, dropout=0.0, num_sampled=16)


def batch(seed=0):
    """Of prime times above 8: shorter loops are written out, and compile for longer."""
    rng = np.random.default_rng(seed)
    source = rng.integers(3, 30, (3, 13)).astype(np.int32)
    target = rng.integers(3, 40, (3, 14)).astype(np.int32)
    target[:, 0] = START
    lengths = np.array([13, 11, 0], np.int32), np.array([14, 12, 0], np.int32)
    return Batch(tuple(map(jnp.asarray, (source, target))), tuple(map(jnp.asarray, lengths)))


def model_of(config=SMALL, seed=0):
    model = Seq2Seq(config, rngs=nnx.Rngs(seed))
    model.eval()
    return model


loss_of = nnx.jit(
    lambda model, *arrays, **options: model.loss(*arrays, **options), static_argnames="reduction"
)


@nnx.jit
def loss_and_words(model, source, sources, target, targets):
    loss = model.loss(source, sources, target, targets, reduction="sum")
    return loss, greedy_search(model, source, sources, max_time=4)


@pytest.mark.parametrize("reverse", [False, True])
def test_padding_and_absent_rows_change_nothing(reverse):
    backward = Seq2SeqConfig(30, 40, features=8, bidirectional=False, reverse_source=True, layers=2)
    model = model_of(backward if reverse else SMALL)
    (source, target), (sources, targets) = batch()[:2]
    whole, words = loss_and_words(model, source, sources, target, targets)
    present = np.array([1, 0, 0], np.int32)
    first, _ = loss_and_words(model, source, sources * present, target, targets * present)
    read, written = (np.asarray(side)[1:2, :n] for side, n in ((source, 11), (target, 12)))
    second, own = loss_and_words(model, read, np.array([11]), written, np.array([12]))
    # 24 tokens' losses of about 4 in float32.
    np.testing.assert_allclose(whole, np.add(first, second), rtol=24 * 4 * 6e-8 * 10)
    np.testing.assert_array_equal(words[1:2], own)


def test_a_reversed_source_is_read_from_its_own_end():
    config = Seq2SeqConfig(30, 40, features=8, bidirectional=False, reverse_source=True)
    vectors = np.random.default_rng(0).normal(size=(2, 13, 8)).astype(np.float32)

    @nnx.jit
    def carries(model, vectors, reversed_first):
        memory = model.encode(vectors, jnp.array([11, 13]))
        return memory.carries[0][0][1][0], model.encoder(reversed_first)[1][0][0][1][0]

    found, wanted = carries(model_of(config), vectors, vectors[:1, 10::-1])
    np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.fixture
def cheap_draws(monkeypatch):
    """Of the loss, whose own compile for as long as all else: the key decides about them."""
    monkeypatch.setattr(seq2seq, "draw_samples", drawn)


def drawn(sampler, key, number, labels):
    assert (sampler, number) == (LogUniform(40), 16)
    ids = (jax.random.key_data(key)[1].astype(jnp.int32) + 3 * np.arange(16) ** 2) % 40
    wrong = (labels < 0) | (labels >= 40)
    return Samples(ids, jnp.log1p(ids), jnp.where(wrong, 0, jnp.log1p(labels)), jnp.int32(16))


@nnx.jit
def losses(model, key, *arrays):
    """Sampled, its gradients, and as dense ones are: value, gradients."""
    source, sources, target, targets = arrays
    data = Batch((source, target), (sources, targets))
    (sampled, _), gradients = sampled_gradients(model, data, key)

    def dense(model):
        labels = target[:, 1:]
        samples = drawn(LogUniform(40), key, 16, labels)
        hidden = model.hidden(
            model.source_embedding[source], sources, model.target_embedding[target[:, :-1]]
        )
        weights = (jnp.arange(1, 14)[None] < targets[:, None]).astype(jnp.float32)
        return model.projection.loss(hidden, labels, samples=samples, token_weights=weights)

    # Part of it is what the rows' gradients are made of too, and compiled once.
    return sampled, gradients, nnx.value_and_grad(dense)(model)


def all_finite(*tree):
    floats = [leaf for leaf in jax.tree.leaves(tree) if leaf.dtype == jnp.float32]
    return bool(floats) and all(np.isfinite(leaf).all() for leaf in floats)


def test_sampled_gradients_are_the_dense_ones(cheap_draws):
    model, key = model_of(), jax.random.key(1)
    (source, target), (sources, targets) = batch()[:2]
    loss, gradients, (value, expected) = losses(model, key, source, sources, target, targets)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert all_finite(loss, gradients)
    expected, gradients = nnx.to_pure_dict(expected), nnx.to_pure_dict(gradients)
    for name in ("source_embedding", "target_embedding"):
        gradients[name] = summed_rows(gradients[name], len(expected[name]))
    for name in ("weight", "bias"):
        gradients["projection"][name] = summed_rows(gradients["projection"][name], 40)
    assert jax.tree.structure(gradients) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def wrong_batches():
    """Batches that each have one thing that is out of range, and its name."""
    (source, target), (sources, targets) = batch()[:2]
    yield "source", changed(source, (0, 2), 30), sources, target, targets
    yield "source", changed(source, (1, 0), -1), sources, target, targets
    yield "target", source, sources, changed(target, (0, 1), 5000), targets
    yield "target", source, sources, changed(target, (1, 1), -3), targets
    yield "target_lengths", source, sources, target, changed(targets, 0, 15)
    yield "target_lengths", source, sources, target, changed(targets, 0, -1)
    yield "source_lengths", source, changed(sources, 0, 14), target, targets


def test_what_is_out_of_range_is_an_error_or_nan(users_checks, cheap_draws):
    model, key = model_of(), jax.random.key(1)
    for name, *arrays in wrong_batches():
        source, sources, target, targets = arrays
        with pytest.raises(ValueError, match=rf"{name} must lie in|lengths must lie in"):
            model.loss(*arrays)
        with pytest.raises(ValueError, match=rf"{name} must lie in|lengths must lie in"):
            sampled_gradients(model, Batch((source, target), (sources, targets)), key)
        exact, _ = loss_and_words(model, *arrays)
        sampled, *_ = losses(model, key, *arrays)
        assert np.isnan(exact), name
        assert np.isnan(sampled), name


def test_integers_of_any_type():
    (source, target), (sources, targets) = batch()[:2]

    def computed(dtype):
        cast = [np.asarray(a).astype(dtype) for a in (source, sources, target, targets)]

        def loss_and_words(model):
            return model.loss(*cast), greedy_search(model, cast[0], cast[1], max_time=4)

        return traced(loss_and_words, model_of())

    wanted = computed("int32")
    for dtype in INTEGER_TYPES:
        assert computed(dtype) == wanted


def test_strict_modes(strict_modes):
    """Of the exact loss and its gradient every number on the way is looked at.

    The others pass when they are traced; what their program gives is finite, as another test sees.
    """
    model, key = model_of(), jax.random.key(1)
    (source, target), (sources, targets) = batch()[:2]
    exact = every_number(
        nnx.grad(lambda model: model.loss(source, sources, target, targets)), model
    )
    assert all_finite(exact)
    data = Batch((source, target), (sources, targets))
    nnx.eval_shape(lambda model: sampled_gradients(model, data, key), model)
    found = nnx.eval_shape(
        lambda model: beam_search(model, source, sources, max_time=3, beam=2), model
    )
    assert found.words.shape == (3, 2, 3)


def test_no_rows():
    model = model_of()
    nothing = jnp.zeros((0, 6), jnp.int32), jnp.zeros(0, jnp.int32)
    assert float(loss_of(model, *nothing, *nothing)) == 0
    words = nnx.eval_shape(lambda model: greedy_search(model, *nothing, max_time=3), model)
    assert words.shape == (0, 3)
    found = nnx.eval_shape(lambda model: beam_search(model, *nothing, max_time=3, beam=2), model)
    assert found.words.shape == (0, 2, 3)


def log_probability(model, source, lengths, words):
    """Of each row of ``words``, up to its END."""
    target = np.concatenate([np.full((len(words), 1), START), words], axis=1)
    is_end = words == END
    ends = np.where(is_end.any(1), is_end.argmax(1) + 1, words.shape[1])
    sources = np.repeat(source, len(words), axis=0), np.repeat(lengths, len(words))
    return -np.asarray(loss_of(model, *sources, target, ends + 1, reduction="none")).sum(1)


def test_beam_search_finds_the_best_of_all():
    config = Seq2SeqConfig(30, 6, features=8, dropout=0.0)
    model = model_of(config)
    # Sharper than at the start, so that ENDs come at several places.
    model.projection.weight[...] *= 8
    source, lengths = batch().sequences[0][:1], jnp.array([13])
    everything = {
        tuple(itertools.chain(itertools.takewhile(lambda w: w != END, words), [END] * 3))[:3]
        for words in itertools.product(range(6), repeat=3)
    }
    candidates = np.array(sorted(everything), np.int32)
    scores = log_probability(model, source, lengths, candidates)
    words, found = beam_search(model, source, lengths, max_time=3, beam=6, length_penalty=0.0)
    # 6 beams keep every prefix of one word; of two words they keep the best, as a beam does.
    best = np.argsort(-scores)
    assert words[0, 0].tolist() == candidates[best[0]].tolist()
    np.testing.assert_allclose(found[0, 0], scores[best[0]], rtol=1e-5)
    penalized = beam_search(model, source, lengths, max_time=3, beam=6, length_penalty=1.0)
    assert bool((penalized[1][:, :-1] >= penalized[1][:, 1:]).all())


def test_searches_under_jit_mark_what_is_wrong(users_checks):
    """And a beam of one is greedy."""
    model, (source, _), (lengths, _) = model_of(), *batch()[:2]
    bad = changed(source, (1, 0), 99)
    with pytest.raises(
        ValueError, match=r"source must lie in \[0, vocab_size\) = \[0, 30\), got 99"
    ):
        greedy_search(model, bad, lengths, max_time=3)

    @nnx.jit
    def search(model, source):
        words = greedy_search(model, source, lengths, max_time=4)
        return words, beam_search(model, source, lengths, max_time=4, beam=1)

    words, found = search(model, source)
    np.testing.assert_array_equal(found.words[:, 0], words)
    assert np.isfinite(found.scores).all()
    words, found = search(model, bad)
    assert (words[1] == -1).all()
    assert (words[0] >= 0).all()
    assert np.isnan(found.scores).any(1).tolist() == [False, True, False]


def test_searches_refuse_bad_options():
    model, (source, _), (lengths, _) = model_of(), *batch()[:2]
    with pytest.raises(ValueError, match="max_time must be at least 1"):
        greedy_search(model, source, lengths, max_time=0)
    with pytest.raises(ValueError, match="beam must lie in"):
        beam_search(model, source, lengths, max_time=3, beam=0)


def test_the_tutorials_setup():
    config = TENSORFLOW_TUTORIAL
    assert (config.features, config.layers, config.target_vocab_size) == (1024, 3, 40_000)
    assert config.buckets == ((5, 10), (10, 15), (20, 25), (40, 50))


@pytest.mark.slow
def test_learns_real_verses(loops):
    """Two short English verses with their Spanish: it writes them down, greedily and by beam."""
    english, spanish = small_parallel()
    pairs = [
        (s, t) for s, t in zip(english.training, spanish.training, strict=True) if len(s) <= 12
    ][:2]
    sides = [[pair[i] for pair in pairs] for i in range(2)]
    lengths = np.array([[len(side) for side in pair] for pair in pairs])
    plan = bucket_plan(lengths, [tuple(int(n) for n in lengths.max(0))], batch=2)
    steps = 100  # to rates of 0, where what was learned settles
    source = BatchSource(plan, sides, epochs=steps)
    config = Seq2SeqConfig(
        len(english.words), len(spanish.words), features=32, bidirectional=False,
        reverse_source=True, dropout=0.0, num_sampled=512,
    )  # fmt: skip
    assert config.target_vocab_size > 20_000
    model = Seq2Seq(config, rngs=nnx.Rngs(0))
    by_rows, dense = (optax.linear_schedule(rate, 0, steps) for rate in (0.1, 2e-2))
    optimizer = optim.partition(
        optim.lazy_adam(by_rows), optax.flatten(optax.adam(dense)), is_table
    )
    fit(
        model, None, source.__getitem__, len(source), clip_norm=5.0,
        optimizer=optimizer, key=jax.random.key(0), gradients=sampled_gradients,
        console=Console(quiet=True),
    )  # fmt: skip
    model.eval()
    one = source[0]
    (sources, targets), (source_lengths, target_lengths) = one.sequences, one.lengths
    time = targets.shape[1] - 1

    @nnx.jit
    def written(model, *arrays):
        found = beam_search(model, *arrays, max_time=time, beam=2)
        return greedy_search(model, *arrays, max_time=time), found.words[:, 0]

    for found in written(model, sources, source_lengths):
        mask = np.arange(time) < target_lengths[:, None] - 1
        right = (np.asarray(found) == targets[:, 1:])[mask].mean()
        assert right > 0.9
