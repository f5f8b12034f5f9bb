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
from tests.inputs import changed
from tests.kernels.sampled_softmax.test_sampled_left_out import arrays, drawn, gradients, same
from tests.sampled_losses import sampled_loss

LOSSES = [gbce_loss, bpr_loss, bpr_max_loss]
KINDS = {
    "gbce": (gbce_loss, {"calibration": 0.4}),
    "bpr": (bpr_loss, {}),
    "bpr-max": (bpr_max_loss, {"score_regularization": 0.3}),
}


# Each value of an argument meets each of every other.
@pytest.mark.parametrize(
    ("num_true", "per_token", "remove_accidental_hits"),
    [(1, False, True), (1, True, False), (3, False, False), (3, True, True)],
)
def test_losses_equal_the_equation(x64, num_true, per_token, remove_accidental_hits):
    """Value and gradients, of hidden, weight, bias and the tokens' weights."""
    draw = np.random.default_rng(0)
    hidden, weight, bias = (draw.normal(size=shape) for shape in ((7, 5), (30, 5), (30,)))
    labels, weights = draw.integers(0, 30, (7, num_true)), draw.uniform(size=7)
    ids = draw.integers(0, 30, (7, 8) if per_token else (8,))
    ids[..., 0] = labels[:, 0] if per_token else labels[0, 0]  # hits
    own = labels if num_true > 1 else labels[:, 0]
    samples = Samples.from_candidates(ids, own)
    hits = {"remove_accidental_hits": remove_accidental_hits}

    @jax.jit
    def derived(*arrays):
        found = {}
        for kind, (loss, options) in KINDS.items():

            def value(h, w, b, weights, loss=loss, options=options):
                options = {**options, **hits}
                return loss(h, w, own, samples, bias=b, token_weights=weights, **options)

            found[kind] = jax.value_and_grad(value, (0, 1, 2, 3))(*arrays)
        return found

    for kind, found in derived(hidden, weight, bias, weights).items():
        options = {**KINDS[kind][1], **hits}
        losses, backward = sampled_loss(kind, hidden, weight, own, samples, bias, **options)
        value, factors = (losses * weights).sum() / weights.sum(), weights / weights.sum()
        wanted = value, (*backward(factors), (losses - value) / weights.sum())
        # A few roundings of float64 in sums of tens of terms of size 1.
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13), found, wanted
        )


def test_without_calibration_gbce_is_the_mean_of_negative_sampling(x64):
    hidden, weight, bias = arrays(4)
    labels = np.array([3, 9, 9, 41])
    options = {"bias": bias, "remove_accidental_hits": False}
    bce = gbce_loss(hidden, weight, labels, drawn(labels), calibration=0, **options)
    expected = negative_sampling_loss(hidden, weight, labels, drawn(labels), **options)
    np.testing.assert_allclose(bce, expected / 9, rtol=1e-6)


SHARE = np.array([0.5, 0.25, 0.15, 0.07, 0.03])  # of five classes


def expected_gradient(probability, calibration, keep_hits):
    """Of two uniform samples: by the biases whose sigmoid is ``probability``, over all draws."""
    cases = [
        (label, pair)
        for label in range(5)
        for pair in itertools.product(range(5), repeat=2)
        if keep_hits or label not in pair
    ]
    labels, pairs = (np.array(column) for column in zip(*cases, strict=True))
    probability = np.asarray(probability)
    gradient = jax.grad(
        lambda bias: gbce_loss(
            jnp.zeros((len(cases), 1), bias.dtype), jnp.zeros((5, 1), bias.dtype), labels,
            Samples.from_candidates(pairs, labels), bias=bias, calibration=calibration,
            token_weights=SHARE[labels],
        )
    )  # fmt: skip
    return jax.jit(gradient)(np.log(probability / (1 - probability)))


@pytest.mark.parametrize("calibration", [0.0, 0.6, 1.0])
def test_what_gbce_learns(x64, calibration):
    """The loss is convex in the scores, so it is where the expected gradient, an exact sum, is 0.

    With t = 1 that is the true distribution, and with less, more than it.
    """
    alpha = 2 / 4
    power = 1 - calibration * (1 - alpha)
    learned = power * SHARE / (power * SHARE + alpha * (1 - SHARE))
    assert np.abs(expected_gradient(learned, calibration, keep_hits=False)).max() < 1e-15
    if calibration == 1:
        np.testing.assert_allclose(learned, SHARE)
        # Samples of which hits are left out: a token's k is what is left of them.
        assert np.abs(expected_gradient(SHARE, calibration, keep_hits=True)).max() < 1e-15
    else:
        assert (learned > 1.1 * SHARE).all()


@pytest.mark.parametrize(
    ("kind", "per_token"), [("gbce", False), ("gbce", True), ("bpr", True), ("bpr-max", False)]
)
def test_left_out_leaves_no_trace(kind, per_token):
    """Tokens of weight 0, ignored labels, absent candidates: bad things stand in all of them."""
    hidden, weight, bias = arrays(4)
    labels, ids = np.array([[3, -1], [3, 8], [7, 12], [-1, -1]]), np.array([5, 9, 44, 17])
    mask = np.array([1, 1, 0, 1])
    kept, some = np.array([0, 2]), np.array([0.5, 2.0])
    few_ids = ids[mask > 0]
    if per_token:
        ids, few_ids, mask = (np.tile(x, (n, 1)) for x, n in ((ids, 4), (few_ids, 2), (mask, 4)))
    samples = Samples.from_candidates(ids, labels, mask=mask)
    fewer = Samples.from_candidates(few_ids, labels[kept])
    bad = changed(hidden, np.array([1, 3]), np.nan)
    value, (d_hidden, *d_tables) = gradients(
        KINDS[kind][0], bad, weight, bias, labels, samples, token_weights=np.array([0.5, 0, 2, 9]),
        ignore_index=-1,
    )  # fmt: skip
    # By hand, token by token: they have different numbers of labels.
    expected, d_few, d_expected = 0.0, np.zeros(hidden.shape), [0.0, 0.0]
    for n, (token, factor) in enumerate(zip(kept, some / some.sum(), strict=True)):
        true = labels[token][None, labels[token] >= 0]
        counts = np.zeros(true.shape)
        one = fewer._replace(
            ids=few_ids[n] if per_token else few_ids, labels_log_expected_count=counts,
            log_expected_count=np.zeros(3),
        )  # fmt: skip
        row = np.asarray(hidden)[token][None]
        losses, backward = sampled_loss(kind, row, weight, true, one, bias)
        gradient = backward(factor)
        expected, d_few[token] = expected + factor * losses[0], gradient[0]
        d_expected = [a + b for a, b in zip(d_expected, gradient[1:], strict=True)]
    same((value, d_hidden, d_tables), (expected, d_few, d_expected))


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


def test_strict_modes(strict_modes):
    hidden, weight, bias = arrays(4)
    labels = np.array([[1, 9], [2, -1], [-1, -1], [0, 3]])
    samples = Samples.from_candidates([[9, 1], [4, 5], [6, 7], [8, 0]], labels)
    options = {"bias": bias, "ignore_index": -1, "token_weights": np.array([1, 2, 1, 0])}
    derived = [jax.value_and_grad(partial(loss, **options), (0, 1)) for loss in LOSSES]
    for each in derived:
        jax.eval_shape(each, hidden.astype(jnp.bfloat16), weight, labels, samples)
    results = jax.jit(lambda *a: [each(*a, samples) for each in derived])(hidden, weight, labels)
    assert all(np.isfinite(d).all() for d in jax.tree.leaves(results))
