"""Multilabel classification of long signals: strided convolutions, an LSTM both ways, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Integer, Num, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.layers import LSTM
from jaxnets.sequences import conv_lengths, length_mask, masked_mean


class ECGClassifier(nnx.Module):
    """Signals of unequal length to one probability a label.

    Each record is normalised by its own mean and spread; strided convolutions (optional) shorten
    it, as in Hannun et al. 2019; LSTM layers read it both ways; the mean and the largest of their
    outputs over the record's own steps go into a linear layer, one logit a label.

    Args:
      channels: leads of a signal.
      labels: how many; a record may have any of them together.
      strides: of the convolutions, each twice as wide as its stride; (): none.
      features: channels of the convolutions.
      hidden: of the LSTM in each direction.
      layers: of the LSTM.
      dropout: between the layers and before the last.
      rngs: for parameters and dropout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ECGClassifier(1, 4, strides=(5, 2), features=8, hidden=8, rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 100, 1)), jnp.array([100, 40])).shape
      (2, 4)
    """

    def __init__(
        self,
        channels: int,
        labels: int,
        *,
        strides: Sequence[int] = (5, 3, 2),
        features: int = 32,
        hidden: int = 64,
        layers: int = 2,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        self.strides = checks.as_sizes("strides", strides, len(strides))
        sizes = [channels] + [features] * len(strides)
        # Padded alike on both sides, not "SAME", whose padding on the left depends on the time to
        # which a record happens to be padded: its windows would begin elsewhere.
        self.convs = nnx.List([
            nnx.Conv(
                before, after, (2 * stride + 1,), strides=stride, padding=[(stride, stride)],
                rngs=rngs,
            )
            for before, after, stride in zip(sizes, sizes[1:], self.strides, strict=False)
        ])  # fmt: skip
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in strides])
        self.lstm = LSTM(
            sizes[-1], hidden, num_layers=layers, bidirectional=True, dropout=dropout, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(4 * hidden, labels, rngs=rngs)

    def __call__(
        self,
        signals: Num[ArrayLike, "batch time channels"],
        lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    ) -> Float[Array, "batch labels"]:
        """Logits; what stands in a signal beyond its length has no effect, nor how far it goes.

        Raises:
          ValueError: a length outside [0, time]; under ``jit`` its record's logits are NaN.
        """
        steps = normalise(signals, lengths)
        time, given = steps.shape[1], checks.as_integers("lengths", lengths)
        lengths = given
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            lengths = conv_lengths(lengths, 2 * stride + 1, stride, padding=(stride, stride))
            steps = nnx.relu(norm(conv(steps)))
            steps = jnp.where(length_mask(lengths, steps.shape[1])[..., None], steps, 0)
        outputs, _ = self.lstm(steps, lengths=lengths)
        mask = length_mask(lengths, outputs.shape[1])[..., None]
        count = jnp.maximum(lengths, 1).astype(outputs.dtype)
        mean = outputs.sum(1) / count[:, None]
        # An LSTM's outputs lie in (-1, 1).
        largest = jnp.where(mask, outputs, -1).max(1, initial=-1)
        logits = self.last(self.dropout(jnp.concatenate([mean, largest], axis=-1)))
        return _nan_if_out_of_range(logits, given, time)


def normalise(
    signals: Num[ArrayLike, "batch time channels"],
    lengths: Integer[ArrayLike, " batch"] | Sequence[int],
) -> Float[Array, "batch time channels"]:
    """Each lead less its mean, over its standard deviation, within its length; zeros beyond.

    A lead that does not move, up to the rounding of its dtype, is zero throughout. Computed in
    float32 (float64 for float64), so the units do not matter; integers (a converter's own units)
    become float32.

    Raises:
      ValueError: signals that are not [batch, time, channels], or a length outside [0, time];
        under ``jit`` its record is NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> signals = jnp.array([[[1.0], [3.0], [9.0]]])
      >>> normalise(signals, jnp.array([2]))[0, :, 0].round(3).tolist()
      [-1.0, 1.0, 0.0]
    """
    signals = jnp.asarray(signals)
    if signals.ndim != 3:
        raise ValueError(f"signals must be [batch, time, channels], got shape {signals.shape}")
    time = signals.shape[1]
    lengths = checks.as_integers("lengths", lengths)
    if lengths.shape != signals.shape[:1]:
        raise ValueError(f"lengths must be [batch] = {signals.shape[:1]}, got {lengths.shape}")
    checks.check_range("lengths", lengths, 0, time + 1, "[0, time]")
    given = signals.dtype if jnp.issubdtype(signals.dtype, jnp.floating) else jnp.dtype("float32")
    wide = accumulator_dtype(given)
    mask = (jnp.arange(time)[None] < lengths[:, None])[..., None]
    steps = jnp.where(mask, signals, 0).astype(wide)
    count = jnp.maximum(lengths, 1).astype(wide)[:, None, None]
    # Neither offset nor unit changes the result, so both are constants to the gradient: the first
    # step and the largest distance from it keep all sums near 1, whatever the signal's scale.
    first = lax.stop_gradient(steps[:, :1].sum(1, keepdims=True))
    moved = jnp.where(mask, steps - first, 0)
    span = lax.stop_gradient(jnp.abs(moved).max(1, keepdims=True, initial=0))
    level = lax.stop_gradient(jnp.abs(steps).max(1, keepdims=True, initial=0))
    flat = span <= 2 * float(jnp.finfo(given).eps) * level
    moved = moved / jnp.where(flat, 1, span)
    centred = jnp.where(mask, moved - moved.sum(1, keepdims=True) / count, 0)
    variance = (centred**2).sum(1, keepdims=True) / count
    spread = jnp.sqrt(jnp.where(flat, 1, variance))
    found = jnp.where(flat, 0, centred / spread)
    return _nan_if_out_of_range(found.astype(given), lengths, time)


def _nan_if_out_of_range(values: jax.Array, lengths: jax.Array, time: int) -> jax.Array:
    """``values [batch, ...]``, NaN where only under ``jit`` a row's length is out of range."""
    if checks.is_known(lengths):
        return values
    wrong = (lengths < 0) | (lengths > time)
    return jnp.where(jnp.expand_dims(wrong, range(1, values.ndim)), jnp.nan, values)


def multilabel_loss(
    logits: Float[Array, "batch labels"],
    labels: Shaped[ArrayLike, "batch labels"],
    present: Shaped[ArrayLike, " batch"] | Sequence,
) -> Float[Array, ""]:
    """The mean binary cross-entropy of the rows that are ``present``; others leave no trace.

    Example:
      >>> import jax.numpy as jnp
      >>> float(multilabel_loss(jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([1.0, 0.0])))
      0.6931...
    """
    present, labels = jnp.asarray(present), jnp.asarray(labels)
    there = (present != 0)[:, None]
    logits, labels = jnp.where(there, logits, 0), jnp.where(there, labels, 0)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
    return masked_mean(losses.mean(-1), present)


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""The area under each label's receiver operating characteristic, [labels].

    The share of pairs of a record with the label and one without whose scores are in that order,
    ties counting half (Hanley and McNeil 1982). NaN for a label that all or none have. By ranks:

    .. math:: \frac{\sum_{i \in P} r_i - |P| (|P| + 1) / 2}{|P| |N|}

    with positives P, negatives N, and r the ranks of all scores from 1, those of ties averaged.

    Args:
      scores: [records, labels], any order-preserving number: logits or probabilities.
      labels: [records, labels], 0 or 1.

    Raises:
      ValueError: a score is NaN, a label neither 0 nor 1, or the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> auroc(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]])).tolist()
      [0.75]
    """
    scores, has = _scores_and_labels(scores, labels)
    return np.array([_area(score, label) for score, label in zip(scores.T, has.T, strict=True)])


def _area(score: np.ndarray, label: np.ndarray) -> float:
    positives = int(label.sum())
    negatives = label.size - positives
    if not positives or not negatives:
        return np.nan
    _, place, ties = np.unique(score, return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(ties) - ties + 1  # integers, so that the sum is exact
    ordered = int(twice_rank[place][label].sum()) - positives * (positives + 1)
    return ordered / (2 * positives * negatives)


def _scores_and_labels(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    """[records, labels] each, the labels as booleans."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            "scores and labels must be [records, labels] alike, "
            f"got {scores.shape} and {labels.shape}"
        )
    if np.isnan(scores).any():
        record, label = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores must not be NaN, got NaN at record {record}, label {label}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {labels[~np.isin(labels, (0, 1))][0]}")
    return scores, labels.astype(bool)


def best_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label the threshold of its scores with the best F1, [labels]: "at least" has it.

    To be chosen on records that are not the test's. Arguments and errors as of :func:`auroc`;
    among equally good thresholds the lowest; NaN without records.

    Example:
      >>> import numpy as np
      >>> best_thresholds(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]]))
      array([0.35])
    """
    scores, has = _scores_and_labels(scores, labels)
    return np.array([
        _best_threshold(score, label) for score, label in zip(scores.T, has.T, strict=True)
    ])  # fmt: skip


def _best_threshold(score: np.ndarray, label: np.ndarray) -> float:
    if not score.size:
        return np.nan
    thresholds, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # By threshold, how many lie at or above it: of all, and of those with the label.
    found = np.cumsum(counts[::-1])[::-1]
    right = np.cumsum(np.bincount(place, label, len(thresholds))[::-1])[::-1]
    return thresholds[np.argmax(2 * right / (found + label.sum()))]


def f1(found: np.ndarray, label: np.ndarray) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is right.

    Args:
      found: [...], booleans or 0 and 1.
      label: as ``found``.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> f1(np.array([True, True, False]), np.array([True, False, True]))
      0.5
    """
    found, label = np.asarray(found).astype(bool), np.asarray(label).astype(bool)
    if found.shape != label.shape:
        raise ValueError(f"found and label must be alike, got {found.shape} and {label.shape}")
    right = (found & label).sum()
    return float(2 * right / max(found.sum() + label.sum(), 1))


def probabilities(logits: jax.Array) -> np.ndarray:
    """Sigmoid outputs, on the host."""
    return np.asarray(jax.nn.sigmoid(logits))
