"""An LSTM over [samples, time, features], for classes or for numbers."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxnets.layers import LSTM


class TimeSeriesLSTM(nnx.Module):
    """LSTM layers, the last output of each series in each direction, a linear layer.

    Args:
      in_features: numbers at each step of a series.
      out_features: logits of classes, or numbers to predict.
      hidden_features: of the LSTM in each direction.
      layers: on top of each other.
      bidirectional: read both ways.
      dropout: between the layers and before the last.
      rngs: for parameters and dropout.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> model = TimeSeriesLSTM(12, 9, hidden_features=8, rngs=nnx.Rngs(0))
      >>> series, lengths = jnp.ones((5, 29, 12)), jnp.array([29, 7, 12, 20, 9])
      >>> nnx.jit(TimeSeriesLSTM.__call__)(model, series, lengths).shape
      (5, 9)
      >>> model(jnp.ones((5, 12, 29)))
      Traceback (most recent call last):
        ...
      ValueError: inputs must be [batch, time, features] with features = 12 as the layer declares, \
got shape (5, 12, 29); they look like [batch, features, time]: give [batch, time, features], \
jnp.swapaxes(inputs, 1, 2)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden_features: int = 64,
        layers: int = 1,
        bidirectional: bool = True,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        self.lstm = LSTM(
            in_features, hidden_features, num_layers=layers, bidirectional=bidirectional,
            dropout=dropout, rngs=rngs,
        )  # fmt: skip
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.last = nnx.Linear(
            (2 if bidirectional else 1) * hidden_features, out_features, rngs=rngs
        )

    def __call__(
        self,
        series: Float[Array, "samples time features"],
        lengths: Integer[Array, " samples"] | None = None,
    ) -> Float[Array, "samples outputs"]:
        """One row of outputs a series; ``lengths`` where they are padded.

        Raises:
          ValueError: series that are not [samples, time, features]; swapped axes are named.
        """
        _, carries = self.lstm(series, lengths=lengths)
        last = jnp.concatenate([carry[-1] for carry in carries[-1]], axis=-1)
        return self.last(self.dropout(last))
