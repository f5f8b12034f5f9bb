"""The ECG classifier and the time-series LSTM."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console
from scipy.stats import mannwhitneyu

from jaxnets.models import ECGClassifier, TimeSeriesLSTM
from jaxnets.models.ecg import multilabel_loss, normalize
from jaxnets.models.metrics import auroc, best_thresholds, f1
from jaxnets.training import fit
from tests.every_number import every_number
from tests.inputs import INTEGER_TYPES
from tests.slopes import assert_slopes
from tests.traced import traced

pytestmark = pytest.mark.usefixtures("cheap_parameters")

QUIET = Console(quiet=True)
called = nnx.jit(lambda model, *arrays: model(*arrays))


# Of strides 4 and 3: 17 and 11 steps of the LSTM. Of such a prime number above 8 nothing is
# written out, which compiles for longer.
TIME, SHORTER = 193, 121


@cache
def small():
    """A model, and signals."""
    model = ECGClassifier(
        1, 2, strides=(4, 3), features=4, hidden_features=4, layers=1, rngs=nnx.Rngs(0)
    )
    model.eval()
    return model, np.random.default_rng(0).normal(size=(2, TIME, 1)).astype(np.float32)


def test_padding_changes_nothing():
    """However far a record is padded, and with what."""
    model, signals = small()
    lengths = np.array([TIME, SHORTER])
    logits = called(model, signals, lengths)
    padded = signals.copy()
    padded[1, SHORTER:] = np.nan
    # Some hundred products of numbers near 1, in float32.
    np.testing.assert_allclose(called(model, padded, lengths), logits, atol=1e-5)
    alone = called(model, signals[1:, :SHORTER], lengths[1:])
    np.testing.assert_allclose(alone[0], logits[1], atol=1e-5)


def test_lengths_of_any_integers():
    model, signals = small()

    def computed(lengths):
        return traced(lambda model: model(signals, lengths), model)

    wanted = computed(np.array([TIME, 37], np.int32))
    assert computed([TIME, 37]) == wanted
    for dtype in INTEGER_TYPES:
        assert computed(np.array([100, 37], dtype)) == computed([100, 37])


def test_lengths_out_of_range(users_checks):
    model, signals = small()
    for wrong in (TIME + 1, -1):
        with pytest.raises(ValueError, match=rf"lengths must lie in \[0, time\].*got {wrong}"):
            model(signals, [wrong, 3])
        logits = called(model, signals, np.array([wrong, 3]))
        assert np.isnan(logits).all(1).tolist() == [True, False]


def test_no_records_and_no_steps():
    model, signals = small()
    none = nnx.eval_shape(lambda model: model(signals[:0], np.zeros(0, np.int32)), model)
    assert none.shape == (0, 2)
    assert np.isfinite(called(model, np.ones_like(signals), np.array([0, 1]))).all()


def test_strict_modes(strict_modes):
    """Every number on the way is looked at."""
    signals = jnp.asarray(np.ones((2, 43, 1), np.float32))
    lengths, present = map(jnp.asarray, np.array([[43, 0], [1, 0]], np.int32))
    labels = np.ones((2, 2), np.float32)

    def loss(model):
        return multilabel_loss(model(signals, lengths), labels, present)

    ecg = ECGClassifier(
        1, 2, strides=(4,), features=4, hidden_features=4, layers=1, rngs=nnx.Rngs(0)
    )
    ecg.eval()
    series = TimeSeriesLSTM(1, 2, hidden_features=4, dropout=0.0, rngs=nnx.Rngs(0))
    found = every_number(nnx.value_and_grad(loss), ecg), every_number(loss, series)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


normalized = jax.jit(normalize)
SIGNALS = np.random.default_rng(0).normal(size=(2, 50, 2)).astype(np.float32)


def test_gain_and_offset_change_nothing():
    lengths = np.array([50, 20])
    np.testing.assert_allclose(
        normalized(3 * SIGNALS + 5, lengths), normalized(SIGNALS, lengths), atol=1e-5
    )
    assert not np.isnan(normalized(SIGNALS, np.array([0, 1]))).any()


@pytest.mark.parametrize("scale", np.float32([1e-12, 1.0, 1e30]))
def test_normalize_in_any_unit(scale):
    wanted = normalized(SIGNALS, np.array([50, 20]))
    np.testing.assert_allclose(normalized(SIGNALS * scale, np.array([50, 20])), wanted, atol=1e-5)


def test_normalize_integers_and_float16():
    units = np.random.default_rng(0).integers(-2000, 2000, (2, 500, 1)).astype(np.int16)
    values = units.astype(np.float64)
    wanted = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
    lengths = np.array([500, 500])
    np.testing.assert_allclose(normalized(units, lengths), wanted, atol=1e-5)
    half = normalized(units.astype(np.float16), lengths)
    assert half.dtype == jnp.float16
    np.testing.assert_allclose(half, wanted, atol=4 * 2**-10)  # of results up to 4


def test_a_flat_lead_is_zero_and_has_finite_gradients():
    @jax.jit
    def value_and_gradient(signals, lengths):
        gradient = jax.grad(lambda s: (normalize(s, lengths) ** 3).sum())(signals)
        return normalize(signals, lengths), gradient

    rng = np.random.default_rng(0)
    noise = np.float32(2.0**-24) * (rng.uniform(size=(1, 64, 1)) < 0.5).astype(np.float32)
    other = rng.normal(size=(1, 64, 1)).astype(np.float32)
    for level in (0.1, -1234.567, 3e4, 1e-20, 0.0):
        signals = np.concatenate([np.float32(level) * (1 + 2 * noise), other], axis=2)
        assert signals.dtype == np.float32
        for lengths in ([64], [30], [1], [0]):
            values, gradient = value_and_gradient(signals, np.array(lengths))
            assert not values[..., 0].any()
            assert np.isfinite(gradient).all()


def test_normalize_gradient(x64):
    signals = np.random.default_rng(0).normal(size=(2, 7, 2))
    assert_slopes(lambda s: normalize(s, [7, 4]) ** 3, (signals,), 1e-6)


def test_auroc_is_mann_whitneys():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 10, (60, 3)) / 10.0  # with ties
    labels = (rng.uniform(size=(60, 3)) < 0.4) * 1.0
    for area, score, label in zip(auroc(scores, labels), scores.T, labels.T, strict=True):
        positive, negative = score[label > 0], score[label == 0]
        statistic = mannwhitneyu(positive, negative).statistic
        assert area == pytest.approx(statistic / len(positive) / len(negative), rel=1e-12)
    assert np.isnan(auroc(scores, np.ones_like(labels))).all()


def test_auroc_of_many_records_and_of_none():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (300_000, 1))
    scores = rng.normal(size=labels.shape) + labels
    # P(x + 1 > y) of two standard normals is 0.7602; five standard errors of 150,000 pairs each.
    assert abs(auroc(scores, labels)[0] - 0.76025) < 5 * 0.00086
    # Half of all records have the label, so the best is below the middle between the two means.
    assert -0.5 < best_thresholds(scores, labels)[0] < 0.5
    assert np.isnan(auroc(np.zeros((0, 2)), np.zeros((0, 2), int))).all()


@pytest.mark.parametrize("measure", [auroc, best_thresholds])
def test_measures_refuse_what_they_cannot_order(measure):
    good, labels = np.array([[0.1], [0.4]]), np.array([[0], [1]])
    with pytest.raises(ValueError, match="scores must not be NaN, got NaN at record 1, label 0"):
        measure(np.array([[0.1], [np.nan]]), labels)
    with pytest.raises(ValueError, match="labels must be 0 or 1, got -1"):
        measure(good, np.array([[0], [-1]]))
    with pytest.raises(ValueError, match=r"must be \[records, labels\] alike"):
        measure(good[:, 0], labels)


def test_f1_does_not_broadcast():
    with pytest.raises(ValueError, match="found and label must be alike"):
        f1(np.ones(3, bool), np.ones((3, 1), bool))


def test_an_absent_record_leaves_no_trace():
    logits = np.array([[0.5, -1.0], [np.nan, np.inf]], np.float32)
    labels, present = np.array([[1, 0], [np.nan, 0]], np.float32), np.array([1.0, 0.0])
    value, gradient = jax.jit(jax.value_and_grad(multilabel_loss))(logits, labels, present)
    np.testing.assert_allclose(value, np.log1p(np.exp([-0.5, -1])).mean(), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert not gradient[1].any()


def test_the_best_threshold_is_the_best_of_all():
    rng = np.random.default_rng(0)
    scores = rng.uniform(size=(40, 1))
    labels = rng.uniform(size=(40, 1)) < scores
    (threshold,) = best_thresholds(scores, labels)
    best = f1(scores[:, 0] >= threshold, labels[:, 0])
    assert all(f1(scores[:, 0] >= t, labels[:, 0]) <= best for t in np.linspace(0, 1, 101))


def waves(step, count=16):
    """Signals of unequal length with a fast wave, a burst, both or neither."""
    rng = np.random.default_rng(step)
    signals, lengths = np.zeros((count, 400, 1), np.float32), rng.integers(200, 401, count)
    labels = (rng.uniform(size=(count, 2)) < 0.5).astype(np.float32)
    for signal, length, (fast, burst) in zip(signals, lengths, labels, strict=True):
        times = np.arange(length)
        wave = np.sin(times * (0.5 if fast else 0.2) + rng.uniform(0, 6))
        if burst:
            wave += 4 * np.exp(-(((times - rng.integers(20, length - 20)) / 4) ** 2))
        signal[:length, 0] = wave + rng.normal(scale=0.2, size=length)
    return signals, lengths.astype(np.int32), labels


def test_ecg_classifier_learns():
    model = ECGClassifier(
        1, 2, strides=(8,), features=4, hidden_features=8, layers=1, dropout=0.0,
        rngs=nnx.Rngs(0),
    )  # fmt: skip

    def loss(model, batch, key):
        signals, lengths, labels = batch
        return multilabel_loss(model(signals, lengths), labels, jnp.ones(len(labels))), {}

    fit(
        model, loss, waves, 120, clip_norm=1.0,
        optimizer=optax.flatten(optax.sgd(0.5, momentum=0.9)), key=jax.random.key(0), console=QUIET,
    )  # fmt: skip
    model.eval()
    signals, lengths, labels = waves(10**6, 100)
    areas = auroc(np.asarray(called(model, jnp.asarray(signals), jnp.asarray(lengths))), labels)
    assert areas.min() > 0.95


def test_timeseries_learns_and_sees_only_the_length():
    def batch_at(step):
        rng = np.random.default_rng(step)
        series = rng.normal(size=(32, 11, 3)).astype(np.float32)
        lengths = rng.integers(3, 12, 32).astype(np.int32)
        sums = np.array([s[:n, 1].sum() for s, n in zip(series, lengths, strict=True)])
        return series, lengths, (sums > 0).astype(np.int32)

    model = TimeSeriesLSTM(3, 2, hidden_features=3, dropout=0.0, rngs=nnx.Rngs(0))

    def loss(model, batch, key):
        logits = model(*batch[:2])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[2]).mean(), {}

    fit(
        model, loss, batch_at, 80, clip_norm=1.0,
        optimizer=optax.flatten(optax.sgd(0.3, momentum=0.9)), key=jax.random.key(0), console=QUIET,
    )  # fmt: skip
    model.eval()
    series, lengths, labels = batch_at(10**6)
    beyond = np.arange(11)[None, :, None] >= lengths[:, None, None]
    found, changed = (
        np.asarray(called(model, jnp.asarray(each), jnp.asarray(lengths)))
        for each in (series, np.where(beyond, np.float32(99), series))
    )
    # By chance 32 fair guesses have 27 or more right once in 18,000 times.
    assert (found.argmax(-1) == labels).sum() >= 27
    np.testing.assert_allclose(changed, found, atol=1e-6)


def test_the_layout_error(users_checks):
    model = TimeSeriesLSTM(3, 2, hidden_features=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"look like \[batch, features, time\]"):
        model(jnp.ones((5, 3, 10)))
