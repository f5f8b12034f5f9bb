"""Multilabel classification of long signals: strided convolutions, an LSTM both ways, pooling."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
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

    Each record is normalized by its own mean and spread; strided convolutions (optional) shorten
    it, as in Hannun et al. 2019; LSTM layers read it both ways; the mean and the largest of their
    outputs over the record's own steps go into a linear layer, one logit a label.

    Args:
      channels: leads of a signal.
      labels: how many; a record may have any of them together.
      strides: of the convolutions, each twice as wide as its stride; (): none.
      features: channels of the convolutions.
      hidden_features: of the LSTM in each direction.
      layers: of the LSTM.
      dropout: between the layers and before the last.
      rngs: for parameters and dropout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = ECGClassifier(1, 4, strides=(5,), layers=1, hidden_features=8, rngs=nnx.Rngs(0))
      >>> signals, lengths = jnp.ones((2, 55, 1)), jnp.array([55, 20])
      >>> nnx.jit(ECGClassifier.__call__)(model, signals, lengths).shape
      (2, 4)
    """

    def __init__(
        self,
        channels: int,
        labels: int,
        *,
        strides: Sequence[int] = (5, 3, 2),
        features: int = 32,
        hidden_features: int = 64,
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
            sizes[-1],
            hidden_features,
            num_layers=layers,
            bidirectional=True,
            dropout=dropout,
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(4 * hidden_features, labels, rngs=rngs)

    def __call__(
        self,
        signals: Num[ArrayLike, "batch time channels"],
        lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    ) -> Float[Array, "batch labels"]:
        """Logits; what stands in a signal beyond its length has no effect, nor how far it goes.

        Raises:
          ValueError: a length outside [0, time]; under ``jit`` its record's logits are NaN.
        """
        steps = normalize(signals, lengths)
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


def normalize(
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
      >>> import jax, jax.numpy as jnp
      >>> signals = jnp.array([[[1.0], [3.0], [9.0]]])
      >>> jax.jit(normalize)(signals, jnp.array([2])).round(3).ravel().tolist()
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
    centered = jnp.where(mask, moved - moved.sum(1, keepdims=True) / count, 0)
    variance = (centered**2).sum(1, keepdims=True) / count
    spread = jnp.sqrt(jnp.where(flat, 1, variance))
    found = jnp.where(flat, 0, centered / spread)
    return _nan_if_out_of_range(found.astype(given), lengths, time)


def _nan_if_out_of_range(values: jax.Array, lengths: jax.Array, time: int) -> jax.Array:
    """``values [batch, ...]``, NaN where only under ``jit`` a row's length is out of range."""
    if checks.is_known(lengths):
        return values
    wrong = ~checks.in_range(lengths, time + 1)
    return jnp.where(jnp.expand_dims(wrong, range(1, values.ndim)), jnp.nan, values)


def multilabel_loss(
    logits: Float[Array, "batch labels"],
    labels: Shaped[ArrayLike, "batch labels"],
    present: Shaped[ArrayLike, " batch"] | Sequence,
) -> Float[Array, ""]:
    """The mean binary cross-entropy of the rows that are ``present``; others leave no trace.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> logits, labels, weights = jnp.zeros((2, 3)), jnp.ones((2, 3)), jnp.array([1.0, 0.0])
      >>> float(jax.jit(multilabel_loss)(logits, labels, weights))
      0.6931...
    """
    present, labels = jnp.asarray(present), jnp.asarray(labels)
    there = (present != 0)[:, None]
    logits, labels = jnp.where(there, logits, 0), jnp.where(there, labels, 0)
    losses = optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype))
    return masked_mean(losses.mean(-1), present)
