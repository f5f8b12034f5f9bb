"""Several layers, in one direction or both, with dropout between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from jaxnets.kernels.lstm.parameters import GRUParameters, LSTMParameters
from jaxnets.kernels.lstm.recurrent import gru, lstm

Layer = LSTMParameters | GRUParameters


def recurrent_layers(
    inputs: Float[Array, "batch time features"],
    carries: Sequence[Sequence] | None,
    layers: Sequence[Sequence[Layer]],
    *,
    lengths: Integer[Array, " batch"] | None = None,
    segment_ids: Integer[Array, "batch time"] | None = None,
    dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    **options,
) -> tuple[Float[Array, "batch time output"], list[list]]:
    r"""LSTM or GRU layers on top of each other, each in one direction or in both.

    A layer's outputs, both directions beside each other, are the next one's inputs (Schuster and
    Paliwal 1997; Graves et al. 2013).

    Args:
      inputs: [batch, time, features].
      carries: for each layer, one carry a direction as :func:`lstm` or :func:`gru` takes it;
        None: zeros.
      layers: for each layer ``[forward]`` or ``[forward, backward]``, of :class:`LSTMParameters` or
        :class:`GRUParameters`.
      lengths: [batch]; see :func:`lstm`.
      segment_ids: [batch, time]; see :func:`lstm`.
      dropout: the share of each layer's outputs, but for the last, that is dropped. Needs ``key``.
      recurrent_dropout: see :func:`lstm`.
      key: for both kinds of dropout.
      options: the others of :func:`lstm`, for every layer.

    Returns:
      Outputs, [batch, time, output], twice as wide with two directions; and the carries.

    Raises:
      TypeError, ValueError: as :func:`lstm`; or layers that are none, or of three directions.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> upper = LSTMParameters(jnp.ones((4, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> outputs, carries = recurrent_layers(
      ...     jnp.ones((1, 5, 3)), None, [[layer, layer], [upper, upper]]
      ... )
      >>> outputs.shape, len(carries)
      ((1, 5, 4), 2)
    """
    if not layers or any(len(directions) not in (1, 2) for directions in layers):
        raise ValueError(
            "layers must hold [forward] or [forward, backward] for each layer, got "
            f"{[len(directions) for directions in layers]} directions"
        )
    if carries is not None and [len(c) for c in carries] != [len(d) for d in layers]:
        raise ValueError(
            "carries must hold one carry for each layer and direction of layers, got "
            f"{[len(c) for c in carries]} for {[len(d) for d in layers]}"
        )
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must lie in [0, 1), got {dropout}")
    if (dropout or recurrent_dropout) and key is None:
        raise ValueError("key must be given with dropout or recurrent_dropout, got None")
    final = []
    for number, directions in enumerate(layers):
        if number and dropout:
            kept = jax.random.bernoulli(
                _fold(key, number, 2), jnp.float32(1 - dropout), inputs.shape
            )
            inputs = jnp.where(kept, inputs / (1 - dropout), 0).astype(inputs.dtype)
        outputs, ends = [], []
        for reverse, parameters in enumerate(directions):
            layer: Callable = lstm if isinstance(parameters, LSTMParameters) else gru
            output, end = layer(
                inputs, None if carries is None else carries[number][reverse], parameters,
                lengths=lengths, segment_ids=segment_ids, reverse=bool(reverse),
                recurrent_dropout=recurrent_dropout,
                key=_fold(key, number, reverse) if recurrent_dropout else None, **options,
            )  # fmt: skip
            outputs.append(output)
            ends.append(end)
        inputs = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
        final.append(ends)
    return inputs, final


def _fold(key, number: int, which: int):
    """A key of its own for each layer's two directions and for the dropout before it."""
    return jax.random.fold_in(key, 3 * number + which)
