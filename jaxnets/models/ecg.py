"""Multilabel classification of long signals: strided convolutions, an LSTM both ways, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxnets.layers import LSTM
from jaxnets.sequences import length_mask, masked_mean


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
        sizes = [channels] + [features] * len(strides)
        self.convs = nnx.List([
            nnx.Conv(before, after, (2 * stride + 1,), strides=stride, rngs=rngs)
            for before, after, stride in zip(sizes, sizes[1:], strides, strict=False)
        ])  # fmt: skip
        self.norms = nnx.List([nnx.LayerNorm(features, rngs=rngs) for _ in strides])
        self.strides = tuple(strides)
        self.lstm = LSTM(
            sizes[-1], hidden, num_layers=layers, bidirectional=True, dropout=dropout, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(4 * hidden, labels, rngs=rngs)

    def __call__(
        self, signals: Float[Array, "batch time channels"], lengths: Integer[Array, " batch"]
    ) -> Float[Array, "batch labels"]:
        """Logits; what stands in a signal beyond its length has no effect."""
        steps = normalise(signals, lengths)
        for conv, norm, stride in zip(self.convs, self.norms, self.strides, strict=True):
            lengths = -(-lengths // stride)
            steps = nnx.relu(norm(conv(steps)))
            steps = steps * length_mask(lengths, steps.shape[1])[..., None]
        outputs, _ = self.lstm(steps, lengths=lengths)
        mask = length_mask(lengths, outputs.shape[1])[..., None]
        mean = outputs.sum(1) / jnp.maximum(lengths, 1)[:, None]
        largest = jnp.where(mask, outputs, -1).max(1)  # an LSTM's outputs lie in (-1, 1)
        return self.last(self.dropout(jnp.concatenate([mean, largest], axis=-1)))


def normalise(
    signals: Float[Array, "batch time channels"], lengths: Integer[Array, " batch"]
) -> Float[Array, "batch time channels"]:
    """Each record less its mean, over its standard deviation, within its length; zeros beyond.

    Example:
      >>> import jax.numpy as jnp
      >>> signals = jnp.array([[[1.0], [3.0], [9.0]]])
      >>> normalise(signals, jnp.array([2]))[0, :, 0].round(3).tolist()
      [-1.0, 1.0, 0.0]
    """
    mask = length_mask(lengths, signals.shape[1])[..., None]
    count = jnp.maximum(lengths, 1)[:, None, None]
    mean = jnp.where(mask, signals, 0).sum(1, keepdims=True) / count
    centred = jnp.where(mask, signals - mean, 0)
    spread = jnp.sqrt((centred**2).sum(1, keepdims=True) / count)
    return centred / jnp.maximum(spread, 1e-6)


def multilabel_loss(
    logits: Float[Array, "batch labels"],
    labels: Float[Array, "batch labels"],
    present: Float[Array, " batch"],
) -> Float[Array, ""]:
    """The mean binary cross-entropy of the rows that are ``present``.

    Example:
      >>> import jax.numpy as jnp
      >>> float(multilabel_loss(jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([1.0, 0.0])))
      0.6931...
    """
    return masked_mean(optax.sigmoid_binary_cross_entropy(logits, labels).mean(-1), present)


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""The area under each label's receiver operating characteristic, [labels].

    The share of pairs of a record with the label and one without whose scores are in that order,
    ties counting half (Hanley and McNeil 1982). NaN for a label that all or none have.

    Example:
      >>> import numpy as np
      >>> auroc(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]])).tolist()
      [0.75]
    """
    areas = []
    for score, label in zip(np.asarray(scores).T, np.asarray(labels).T, strict=True):
        positive, negative = score[label > 0], score[label == 0]
        if not len(positive) or not len(negative):
            areas.append(np.nan)
            continue
        above = (positive[:, None] > negative).mean()
        areas.append(above + (positive[:, None] == negative).mean() / 2)
    return np.array(areas)


def best_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label the threshold of its scores with the best F1, [labels]: "at least" has it.

    To be chosen on records that are not the test's.

    Example:
      >>> import numpy as np
      >>> best_thresholds(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]]))
      array([0.35])
    """
    return np.array([
        _best_threshold(score, label > 0)
        for score, label in zip(np.asarray(scores).T, np.asarray(labels).T, strict=True)
    ])  # fmt: skip


def _best_threshold(score: np.ndarray, label: np.ndarray) -> float:
    return max(np.unique(score), key=lambda threshold: f1(score >= threshold, label))


def f1(found: np.ndarray, label: np.ndarray) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is right.

    Example:
      >>> import numpy as np
      >>> f1(np.array([True, True, False]), np.array([True, False, True]))
      0.5
    """
    right = (found & label).sum()
    return float(2 * right / max(found.sum() + label.sum(), 1))


def probabilities(logits: jax.Array) -> np.ndarray:
    """Sigmoid outputs, on the host."""
    return np.asarray(jax.nn.sigmoid(logits))
