"""gBCE, BPR and BPR-max against their equations; what is left out; what gBCE is calibrated to."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from jaxnets.kernels import (
    Samples,
    bpr_loss,
    bpr_max_loss,
    gather_rows,
    gbce_loss,
    negative_sampling_loss,
)
from jaxnets.kernels.sampled_softmax.xla_ranking import bpr_max, ranking
from tests.fixed_samples import fixed_samples
from tests.kernels.sampled_softmax.test_sampled_left_out import arrays, drawn
from tests.sampled_losses import sampled_loss, token_by_token

LOSSES = [gbce_loss, bpr_loss, bpr_max_loss]
KINDS = {
    "gbce": (gbce_loss, {"calibration": 0.4}),
    "bpr": (bpr_loss, {}),
    "bpr-max": (bpr_max_loss, {"score_regularization": 0.3}),
}


# Each value of an argument meets each of every other. One program is for any arrays of a case.
@pytest.mark.parametrize(
    ("kind", "num_true", "per_token", "remove_accidental_hits"),
    [
        ("gbce", 1, False, True),
        ("gbce", 3, True, False),
        ("bpr", 1, True, True),
        ("bpr", 3, False, False),
        ("bpr-max", 1, True, False),
        ("bpr-max", 3, False, True),
    ],
)
def test_losses_equal_the_equation(
    x64, strict_modes, kind, num_true, per_token, remove_accidental_hits
):
    """Value and gradients, of hidden, weight, bias and the tokens' weights.

    Tokens of weight 0, ignored labels and absent candidates leave no trace.
    """
    draw = np.random.default_rng(0)
    hidden, weight, bias = (draw.normal(size=shape) for shape in ((7, 5), (30, 5), (30,)))
    labels, weights = draw.integers(0, 30, (7, num_true)), draw.uniform(size=7)
    ids = draw.integers(0, 30, (7, 8) if per_token else (8,))
    ids[..., 0] = labels[:, 0] if per_token else labels[0, 0]  # hits
    loss, options = KINDS[kind]
    options = {**options, "remove_accidental_hits": remove_accidental_hits}

    @jax.jit
    def program(hidden, weight, bias, weights, labels, mask):
        own = labels if num_true > 1 else labels[:, 0]
        samples = Samples.from_candidates(ids, own, mask=mask)

        def value(hidden, weight, bias, weights):
            return loss(
                hidden, weight, own, samples, bias=bias, token_weights=weights, ignore_index=-1,
                **options,
            )  # fmt: skip

        derivative = jax.value_and_grad(value, (0, 1, 2, 3))
        return samples, derivative(hidden, weight, bias, weights)

    def check(hidden, weights, labels, mask, bad_hidden):
        mask = np.broadcast_to(mask, ids.shape)
        samples, (value, found) = program(bad_hidden, weight, bias, weights, labels, mask)
        wanted, expected, kept = token_by_token(
            kind, hidden, weight, labels, samples, bias, weights, ignored=-1, **options
        )
        found, expected = ((*g[:3], np.where(kept, g[3], 0)) for g in (found, expected))
        # A few roundings of float64 in sums of tens of terms of size 1.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13),
            (value, found), (wanted, expected),
        )  # fmt: skip

    check(hidden, weights, labels, np.ones(8, bool), hidden)
    weights, labels = weights.copy(), labels.copy()
    weights[[1, 3]] = 0
    labels[0, 1:] = labels[5] = -1
    spoiled = hidden.copy()
    spoiled[[1, 3, 5]] = np.nan
    check(hidden, weights, labels, np.arange(8) != 2, spoiled)


def test_without_calibration_gbce_is_the_mean_of_negative_sampling(x64):
    hidden, weight, bias = arrays(4)
    labels = np.array([3, 9, 9, 41])
    options = {"bias": bias, "remove_accidental_hits": False}
    bce = gbce_loss(hidden, weight, labels, drawn(labels), calibration=0, **options)
    expected = negative_sampling_loss(hidden, weight, labels, drawn(labels), **options)
    np.testing.assert_allclose(bce, expected / 9, rtol=1e-6)


SHARE = np.array([0.5, 0.25, 0.15, 0.07, 0.03])  # of five classes


def expected_gradients(cases):
    """Of two uniform samples, by the biases, over all draws; in one program.

    ``cases``: probabilities that are the biases' sigmoids, a calibration, and whether draws that
    hit the label are kept.
    """

    def gradient(bias, calibration, keep_hits):
        draws = [
            (label, pair)
            for label in range(5)
            for pair in itertools.product(range(5), repeat=2)
            if keep_hits or label not in pair
        ]
        labels, pairs = (np.array(column) for column in zip(*draws, strict=True))
        return jax.grad(
            lambda bias: gbce_loss(
                jnp.zeros((len(draws), 1)), jnp.zeros((5, 1)), labels,
                Samples.from_candidates(pairs, labels), bias=bias, calibration=calibration,
                token_weights=SHARE[labels],
            )
        )(bias)  # fmt: skip

    biases = [np.log(p / (1 - p)) for p, *_ in cases]
    return jax.jit(
        lambda biases: [
            gradient(bias, *case) for bias, (_, *case) in zip(biases, cases, strict=True)
        ]
    )(biases)


def test_what_gbce_learns(x64):
    """The loss is convex in the scores, so it is where the expected gradient, an exact sum, is 0.

    With t = 1 that is the true distribution, and with less, more than it.
    """
    alpha = 2 / 4
    powers = {calibration: 1 - calibration * (1 - alpha) for calibration in (0.0, 0.6, 1.0)}
    learned = {t: p * SHARE / (p * SHARE + alpha * (1 - SHARE)) for t, p in powers.items()}
    # Samples of which hits are left out: a token's k is what is left of them.
    cases = [*((p, t, False) for t, p in learned.items()), (SHARE, 1.0, True)]
    for gradient in expected_gradients(cases):
        assert np.abs(gradient).max() < 1e-15
    np.testing.assert_allclose(learned[1.0], SHARE)
    assert all((learned[t] > 1.1 * SHARE).all() for t in (0.0, 0.6))


def test_a_token_without_candidates():
    """None at all, or hits alone: only gBCE has something to say of its true class."""
    hidden, weight, bias = arrays(2)
    labels = np.array([3, 3])

    @jax.jit
    def every(*arrays):
        return [
            [
                jax.value_and_grad(
                    lambda h, w, b, loss=loss, ids=ids: loss(
                        h, w, labels, Samples.from_candidates(np.array(ids, int), labels), bias=b
                    ),
                    (0, 1, 2),
                )(*arrays)
                for ids in ([3], [])
            ]
            for loss in LOSSES
        ]

    for loss, found in zip(LOSSES, every(hidden, weight, bias), strict=True):
        for value, derived in found:
            assert (value > 0) == (loss is gbce_loss)
            assert all(np.isfinite(d).all() for d in derived)
            assert derived[1].any() == (loss is gbce_loss)


def plainly(loss, true, sampled):
    """The default loss of one token in NumPy's float64, by sums of logarithms."""
    wrong = np.logaddexp(0, sampled - true)
    if loss is bpr_loss:
        return wrong.mean()
    if loss is gbce_loss:
        power = 1 - 0.75 * (1 - 3 / 49)
        return (power * np.logaddexp(0, -true) + np.logaddexp(0, sampled).sum()) / 4
    log_softmax = sampled - special.logsumexp(sampled)
    return (np.exp(log_softmax) * sampled**2).sum() - special.logsumexp(log_softmax - wrong)


@pytest.mark.parametrize("loss", LOSSES)
def test_scores_of_any_size(loss):
    """Differences of thousands, and bfloat16, which is accumulated in float32."""
    hidden = jnp.array([[1.0], [-1.0], [32.0]], jnp.bfloat16)
    weight = (jnp.arange(50.0)[:, None] - 25).astype(jnp.bfloat16) * 128
    ids, labels = np.array([1, 49, 24]), np.array([3, 40, 9])
    samples = Samples.from_candidates(ids, labels)
    derivative = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, derived = derivative(hidden, weight, labels, samples)
    scores = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    each = [plainly(loss, row[y], row[ids]) for row, y in zip(scores, labels, strict=True)]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, np.mean(each), rtol=1e-6)
    assert [d.dtype for d in derived] == [jnp.bfloat16, jnp.bfloat16]
    assert all(np.isfinite(d.astype(np.float32)).all() for d in derived)


def test_gathered_rows():
    """The gradient is rows, and gBCE is told how many classes there are."""
    hidden, weight, _ = arrays(4)
    labels = np.array([3, 9, 9, 41])
    samples = fixed_samples(50, labels, np.arange(6) ** 2)

    @jax.jit
    def small(hidden, weight, labels):
        _, rows, (own, ids) = gather_rows(weight, (labels, samples.ids))
        assert len(rows) < 50
        return gbce_loss(hidden, rows, own, samples._replace(ids=ids), vocab_size=50)

    losses, _ = sampled_loss("gbce", hidden, weight, labels, samples)
    np.testing.assert_allclose(small(hidden, weight, labels), losses.mean(), rtol=1e-6)


def test_equal_options_have_one_program():
    assert ranking(bpr_max, 0.25) is ranking(bpr_max, np.float64(0.25))
    assert ranking(bpr_max, 0.25) is not ranking(bpr_max, 0.5)


@pytest.mark.usefixtures("users_checks")
def test_options_out_of_range():
    inputs = *arrays(2)[:2], [3, 5], drawn(np.array([3, 5]))
    for wrong in (-0.1, 1.5, np.nan):
        with pytest.raises(ValueError, match=r"calibration must lie in \[0, 1\], got"):
            gbce_loss(*inputs, calibration=wrong)
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(ValueError, match="score_regularization must be at least 0, got"):
            bpr_max_loss(*inputs, score_regularization=wrong)
    with pytest.raises(TypeError, match="calibration must be a number known at trace time"):
        jax.jit(lambda t: gbce_loss(*inputs, calibration=t))(0.5)
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        gbce_loss(*inputs, vocab_size=0)
    with pytest.raises(ValueError, match=r"weight must be \[vocab, features\], got shape"):
        gbce_loss(inputs[0], jnp.ones(4), *inputs[2:])


def test_strict_modes_of_few_bits(strict_modes):
    """While tracing, where ranks and types show."""
    hidden, weight, bias = arrays(4)
    labels = np.array([[1, 9], [2, -1], [-1, -1], [0, 3]])
    samples = Samples.from_candidates([[9, 1], [4, 5], [6, 7], [8, 0]], labels)
    options = {"bias": bias, "ignore_index": -1, "token_weights": np.array([1, 2, 1, 0])}
    for loss in LOSSES:
        each = jax.value_and_grad(partial(loss, **options), (0, 1))
        jax.eval_shape(each, hidden.astype(jnp.bfloat16), weight, labels, samples)
