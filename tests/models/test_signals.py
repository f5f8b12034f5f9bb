"""The ECG classifier and the time-series LSTM."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console
from scipy.stats import mannwhitneyu

from jaxnets.models import ECGClassifier, TimeSeriesLSTM
from jaxnets.models.ecg import auroc, best_thresholds, f1, multilabel_loss, normalise
from jaxnets.training import fit

QUIET = Console(quiet=True)


def test_padding_changes_nothing():
    model = ECGClassifier(1, 4, strides=(4, 2), features=8, hidden=8, rngs=nnx.Rngs(0))
    model.eval()
    signals = jax.random.normal(jax.random.key(0), (2, 90, 1))
    lengths = jnp.array([90, 37])
    changed = signals.at[1, 37:].set(1e3)
    logits = model(signals, lengths)
    np.testing.assert_allclose(model(changed, lengths), logits, atol=1e-5)
    longer = jnp.pad(signals, ((0, 0), (0, 30), (0, 0)))
    # Strides of "SAME" padding may begin elsewhere at another length: a multiple of both keeps it.
    kept = model(longer[:, :112], lengths), model(longer[:, :120], lengths)
    np.testing.assert_allclose(*kept, atol=1e-5)


def test_gain_and_offset_change_nothing():
    signals = jax.random.normal(jax.random.key(0), (2, 50, 2))
    lengths = jnp.array([50, 20])
    np.testing.assert_allclose(
        normalise(3 * signals + 5, lengths), normalise(signals, lengths), atol=1e-5
    )
    assert not bool(jnp.isnan(normalise(signals, jnp.array([0, 1]))).any())


def test_auroc_is_mann_whitneys():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 10, (60, 3)) / 10.0  # with ties
    labels = (rng.uniform(size=(60, 3)) < 0.4) * 1.0
    for area, score, label in zip(auroc(scores, labels), scores.T, labels.T, strict=True):
        positive, negative = score[label > 0], score[label == 0]
        statistic = mannwhitneyu(positive, negative).statistic
        assert area == pytest.approx(statistic / len(positive) / len(negative), rel=1e-12)
    assert np.isnan(auroc(scores, np.ones_like(labels))).all()


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
        1, 2, strides=(4, 2), features=16, hidden=16, layers=1, dropout=0.0, rngs=nnx.Rngs(0)
    )

    def loss(model, batch, key):
        signals, lengths, labels = batch
        return multilabel_loss(model(signals, lengths), labels, jnp.ones(len(labels))), {}

    fit(
        model, loss, waves, 200, optimizer=optax.adam(5e-3), clip_norm=1.0,
        key=jax.random.key(0), console=QUIET,
    )  # fmt: skip
    model.eval()
    signals, lengths, labels = waves(10**6, 100)
    areas = auroc(np.asarray(model(jnp.asarray(signals), jnp.asarray(lengths))), labels)
    assert areas.min() > 0.95


def test_timeseries_learns_and_sees_only_the_length():
    def batch_at(step):
        rng = np.random.default_rng(step)
        series = rng.normal(size=(32, 10, 3)).astype(np.float32)
        lengths = rng.integers(3, 11, 32).astype(np.int32)
        sums = np.array([s[:n, 1].sum() for s, n in zip(series, lengths, strict=True)])
        return series, lengths, (sums > 0).astype(np.int32)

    model = TimeSeriesLSTM(3, 2, hidden=16, dropout=0.0, rngs=nnx.Rngs(0))

    def loss(model, batch, key):
        logits = model(*batch[:2])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[2]).mean(), {}

    fit(
        model, loss, batch_at, 150, optimizer=optax.adam(1e-2), clip_norm=1.0,
        key=jax.random.key(0), console=QUIET,
    )  # fmt: skip
    model.eval()
    series, lengths, labels = (jnp.asarray(part) for part in batch_at(10**6))
    found = model(series, lengths)
    # By chance 32 fair guesses have 27 or more right once in 18,000 times.
    assert int((found.argmax(-1) == labels).sum()) >= 27
    beyond = jnp.arange(10)[None, :, None] >= lengths[:, None, None]
    np.testing.assert_allclose(model(jnp.where(beyond, 99.0, series), lengths), found, atol=1e-6)


def test_the_layout_error(users_checks):
    model = TimeSeriesLSTM(3, 2, hidden=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"look like \[batch, features, time\]"):
        model(jnp.ones((5, 3, 10)))
