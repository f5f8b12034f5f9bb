"""What the sampled losses leave out leaves no trace: neither in the value nor in any gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    LogUniform,
    Samples,
    Unigram,
    draw_samples,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests.inputs import INTEGER_TYPES, on_device
from tests.sampled_losses import sampled_loss
from tests.with_bias import with_bias

LOSSES = [sampled_softmax_cross_entropy, nce_loss, negative_sampling_loss]
KINDS = {
    sampled_softmax_cross_entropy: ("softmax", {}),
    nce_loss: ("nce", {"remove_accidental_hits": False}),
    negative_sampling_loss: ("nce", {"remove_accidental_hits": False, "subtract_log_q": False}),
}
VOCAB, FEATURES = 50, 4


def arrays(tokens, dtype=jnp.float32):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    shapes = (tokens, FEATURES), (VOCAB, FEATURES), (VOCAB,)
    return tuple(on_device(draw.normal(size=shape), dtype) for shape in shapes)


def drawn(labels, per_token=False):
    """Eight candidates, with counts as a sampler may have them."""
    rng, shape = np.random.default_rng(0), np.shape(labels)
    batch = shape[:1] if per_token else ()
    ids = rng.integers(0, VOCAB, (*batch, 8))
    counts = rng.uniform(-3, 0, ids.shape), rng.uniform(-3, 0, shape)
    return Samples(on_device(ids), *(on_device(c, jnp.float32) for c in counts), jnp.int32(8))


def same(actual, expected, tolerance=2e-6):
    """Equal up to a few roundings of float32 in sums of at most 30 terms."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


@pytest.mark.parametrize(
    ("loss", "per_token"), [(sampled_softmax_cross_entropy, False), (nce_loss, True)]
)
def test_what_is_left_out_is_no_error(loss, per_token):
    """Where the values are known; that it leaves no trace, test_sampled.py shows."""
    hidden, weight, bias = arrays(6)
    labels = np.random.default_rng(1).integers(0, VOCAB, (6, 3))
    samples = drawn(labels, per_token)
    clean = hidden, weight, bias, labels, samples
    hidden, labels, samples = np.array(hidden), labels.copy(), Samples(*map(np.array, samples))
    hidden[1], hidden[3, 0], hidden[4] = np.nan, np.inf, -np.inf
    labels[1], labels[3], labels[4] = -100, VOCAB + 7, -1
    samples.labels_log_expected_count[[1, 3]] = np.nan
    if per_token:
        samples.ids[1], samples.ids[3], samples.log_expected_count[4] = -3, VOCAB, np.nan
    weights = [0.5, 0, 3, 0, 0, 1]
    losses = with_bias(loss)(
        hidden, weight, bias, labels, samples, token_weights=weights, reduction="none"
    )
    kind, own = KINDS[loss]
    wanted, _ = sampled_loss(kind, *clean[:2], *clean[3:], bias, **own)
    same(losses, wanted * weights)


def by_hand(loss, hidden, weight, bias, labels, samples, factors, **options):
    """The sum of the losses, each by a factor, and its gradients, in NumPy."""
    kind, own = KINDS[loss]
    losses, backward = sampled_loss(
        kind, hidden, weight, labels, samples, bias, **{**own, **options}
    )
    return (factors * losses).sum(), backward(factors)


@pytest.mark.parametrize("loss", LOSSES)
def test_labels_to_ignore_are_suggested(loss):
    hidden, weight, bias = arrays(3)
    labels = np.array([[4, 9, -100], [-100, -100, -100], [-100, 7, -100]])
    with pytest.raises(ValueError, match="got -100; say ignore_index=-100"):
        loss(hidden, weight, labels, drawn(labels), bias=bias)


def test_labels_and_samples_of_any_integer_type(x64):
    """-100 ignores no label 156 of uint8, and no comparison wraps: outside of jit and within."""
    counts, hidden = (np.zeros(4, np.float32), np.zeros(3, np.float32), 4), np.ones((3, 2))
    weight = np.cos(np.arange(600.0)).reshape(-1, 2)

    def numbers(dtype):
        last = (99, 98) if dtype == "int8" else (156, 198)
        return np.array([0, 99, last[0]], dtype), np.array([5, 99, 7, last[1] % 100], dtype)

    def value(loss, weight, labels, ids):
        return loss(hidden, weight, labels, (ids, *counts), ignore_index=-100)

    typed = {dtype: numbers(dtype) for dtype in INTEGER_TYPES}
    # Narrower than int32, wider, and of the same width.
    some = {dtype: typed[dtype] for dtype in ("int8", "uint8", "uint32", "int64")}
    every = jax.jit(
        lambda some: {name: value(LOSSES[0], weight, *own) for name, own in some.items()}
    )(some)
    for dtype, (labels, ids) in typed.items():
        # Each type by one loss, and the narrowest, where a label or -100 may wrap, by all.
        for loss in LOSSES if dtype in ("int8", "uint8") else LOSSES[:1]:
            samples = Samples(ids.astype(int), *counts)
            expected, (_, wanted, _) = by_hand(
                loss, hidden, weight, np.zeros(300), labels.astype(int), samples, np.full(3, 1 / 3)
            )
            found = jax.value_and_grad(lambda w, *own, of=loss: value(of, w, *own))(
                weight, labels, ids
            )
            same(found, (expected, wanted))
            if loss is LOSSES[0] and dtype in some:
                same(every[dtype], expected)


def test_lists_are_taken():
    hidden, weight, bias = arrays(2)
    samples = drawn([3, 5])
    expected = sampled_softmax_cross_entropy(
        hidden, weight, jnp.array([3, 5]), samples, bias=bias, token_weights=jnp.array([1.0, 2.0])
    )
    plain = Samples(samples.ids.tolist(), *(np.asarray(x) for x in samples[1:]))
    numpy = (np.asarray(x) for x in (hidden, weight, bias))
    loss = with_bias(sampled_softmax_cross_entropy)
    same(loss(*numpy, [3, 5], plain, token_weights=[1, 2]), expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_samples_out_of_range(loss):
    hidden, weight, bias = arrays(2)
    samples = drawn(jnp.array([3, 5]))
    jitted = jax.jit(loss)
    for wrong in (-1, VOCAB):
        bad = samples._replace(ids=np.where(np.arange(8) == 2, wrong, samples.ids))
        with pytest.raises(ValueError, match=rf"samples.ids must lie in .*got {wrong}"):
            loss(hidden, weight, [3, 5], bad, bias=bias)
        assert np.isnan(jitted(hidden, weight, jnp.array([3, 5]), bad, bias=bias))


def test_a_true_class_that_is_never_drawn_has_a_log_count_of_minus_infinity():
    """Which corrects nothing, as test_sampled.py shows; without repeats, test_sampled_arguments."""
    sampler, labels = Unigram.from_counts(np.arange(VOCAB) % 7), np.array([0, 3, 7])
    samples = draw_samples(sampler, jax.random.key(0), 8, labels, unique=False, per_token=True)
    assert np.isneginf(samples.labels_log_expected_count).tolist() == [True, False, True]


@pytest.mark.parametrize("per_token", [False, True])
def test_no_tokens(per_token):
    labels = jnp.zeros((2, 0), jnp.int32)
    samples = draw_samples(
        LogUniform(VOCAB), jax.random.key(0), 8, labels, unique=per_token, per_token=per_token
    )
    assert samples.ids.shape == ((2, 0, 8) if per_token else (8,))
    _, weight, bias = arrays(1)
    hidden = np.zeros((2, 0, FEATURES), np.float32)
    weights = np.ones((2, 0), np.float32) if per_token else None

    @jax.jit
    def every(*arrays):
        return [
            jax.value_and_grad(
                lambda h, w, b, loss=loss: loss(
                    h, w, labels, samples, bias=b, token_weights=weights
                ),
                (0, 1, 2),
            )(*arrays)
            for loss in LOSSES
        ]

    for value, derived in every(hidden, weight, bias):
        assert value == 0
        assert [d.shape for d in derived] == [(2, 0, FEATURES), weight.shape, bias.shape]
        assert not any(np.asarray(d).any() for d in derived)


def test_no_token_that_counts():
    hidden, weight, bias = arrays(2)
    samples = drawn(jnp.array([3, 5]))

    @jax.jit
    def every(*arrays):
        return [
            jax.value_and_grad(with_bias(loss), (0, 1, 2))(
                *arrays, [3, 5], samples, token_weights=[False, False]
            )
            for loss in LOSSES
        ]

    for value, derived in every(np.full_like(hidden, np.nan), weight, bias):
        assert value == 0
        assert not any(np.asarray(d).any() for d in derived)


def test_strict_modes_of_few_bits(strict_modes):
    """While tracing, where ranks and types show."""
    hidden, weight, bias = arrays(4)
    labels = jnp.array([[1, 9], [2, -1], [-1, -1], [0, 3]])
    options = {"ignore_index": -1, "token_weights": jnp.array([1, 2, 1, 0])}
    for loss, per_token in zip(LOSSES, (True, True, False), strict=True):
        derived = jax.value_and_grad(partial(with_bias(loss), **options), (0, 1, 2))
        samples = drawn(labels, per_token)
        jax.eval_shape(derived, hidden.astype(jnp.bfloat16), weight, bias, labels, samples)
