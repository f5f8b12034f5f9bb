"""Several layers, in one direction or both, with dropout between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, Key, Shaped

from jaxnets.kernels.recurrent.api import Recurrence, gru, lstm
from jaxnets.kernels.recurrent.checks import as_given, check_inputs
from jaxnets.kernels.recurrent.padding import Given, steps_that_count
from jaxnets.kernels.recurrent.parameters import GRUParameters, LSTMParameters

Layer = LSTMParameters | GRUParameters
MergeMode = Literal["concat", "sum", "mul", "ave"]


def recurrent_layers(
    inputs: Float[ArrayLike, "*steps features"],
    carries: Sequence[Sequence] | None,
    layers: Sequence[Sequence[Layer]],
    *,
    lengths: Integer[ArrayLike, "..."] | Sequence | None = None,
    segment_ids: Integer[ArrayLike, "..."] | Sequence | None = None,
    mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    merge_mode: MergeMode = "concat",
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    time_first: bool = False,
    batched: bool = True,
    **options: Any,
) -> Recurrence:
    r"""LSTM or GRU layers on top of each other, each in one direction or in both.

    A layer's outputs, both directions merged, are the next one's inputs (Schuster and Paliwal 1997;
    Graves et al. 2013).

    Args:
      inputs: [batch, time, features]; other axes by ``time_first`` and ``batched`` of :func:`lstm`.
      carries: for each layer, one carry a direction as :func:`lstm` or :func:`gru` takes it;
        None: zeros.
      layers: for each layer ``[forward]`` or ``[forward, backward]``, of :class:`LSTMParameters` or
        :class:`GRUParameters`.
      lengths: [batch]; see :func:`lstm`.
      segment_ids: [batch, time]; see :func:`lstm`.
      mask: [batch, time]; see :func:`lstm`.
      dropout: the share of each layer's outputs, but for the last, that is dropped. Needs ``key``.
      input_dropout: the share of the first layer's inputs that is dropped. Needs ``key``.
      merge_mode: of the outputs of a layer's two directions: "concat", beside each other; or "sum",
        "mul" or "ave", their sum, product or mean.
      recurrent_dropout: see :func:`lstm`.
      key: for every kind of dropout.
      time_first: see :func:`lstm`.
      batched: see :func:`lstm`.
      options: the others of :func:`lstm` or :func:`gru`, for every layer.

    Returns:
      :class:`Recurrence`: outputs, [batch, time, output], twice as wide with two directions side by
      side; and for each layer the carries of its directions.

    Raises:
      TypeError, ValueError: as :func:`lstm`; or layers that are none, or of three directions.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> layer = LSTMParameters(jnp.ones((3, 32)), jnp.ones((8, 32)), jnp.zeros(32))
      >>> upper = LSTMParameters(jnp.ones((16, 32)), jnp.ones((8, 32)), jnp.zeros(32))
      >>> inputs, lengths = jnp.ones((4, 11, 3)), jnp.array([11, 7, 3, 0])
      >>> outputs, carries = recurrent_layers(
      ...     inputs, None, [[layer, layer], [upper, upper]], lengths=lengths
      ... )
      >>> outputs.shape, len(carries)
      ((4, 11, 16), 2)
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
    for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
        if not 0 <= share < 1:
            raise ValueError(f"{name} must lie in [0, 1), got {share}")
    if (dropout or input_dropout or recurrent_dropout) and key is None:
        raise ValueError(
            "key must be given with dropout, input_dropout or recurrent_dropout, got None"
        )
    if merge_mode not in _MERGES:
        raise ValueError(f"merge_mode must be one of {tuple(_MERGES)}, got {merge_mode!r}")
    batch, time = check_inputs(
        inputs, layers[0][0].input_kernel.shape[0], time_first=time_first, batched=batched
    )
    given = as_given(lengths, segment_ids, mask, batch, time, time_first=time_first)
    time_axis = 1 if batched and not time_first else 0
    below: Any = inputs
    final = []
    for number, directions in enumerate(layers):
        share = dropout if number else input_dropout
        if share:
            below = _drop(share, time_axis, below, _fold(key, number, 2), given)
        outputs, ends = [], []
        for reverse, parameters in enumerate(directions):
            layer: Callable = lstm if isinstance(parameters, LSTMParameters) else gru
            output, end = layer(
                below, None if carries is None else carries[number][reverse], parameters,
                **given._asdict(), reverse=bool(reverse), time_first=time_first, batched=batched,
                recurrent_dropout=recurrent_dropout,
                key=_fold(key, number, reverse) if recurrent_dropout else None, **options,
            )  # fmt: skip
            outputs.append(output)
            ends.append(end)
        below = outputs[0] if len(outputs) == 1 else _MERGES[merge_mode](*outputs)
        final.append(ends)
    return Recurrence(below, final)


_MERGES: dict[str, Callable] = {
    "concat": lambda forward, backward: jnp.concatenate([forward, backward], axis=-1),
    "sum": jnp.add,
    "mul": jnp.multiply,
    "ave": lambda forward, backward: (forward + backward) / 2,
}


@partial(jax.jit, static_argnums=(0, 1))
def _drop(
    share: float, time_axis: int, inputs: jax.Array, key: jax.Array, given: Given
) -> jax.Array:
    kept = jax.random.bernoulli(key, jnp.float32(1 - share), inputs.shape)
    valid = steps_that_count(given, inputs.shape[:-1], time_axis)
    if valid is not None:  # padding may hold anything
        kept &= valid[..., None]
    return jnp.where(kept, inputs / (1 - share), 0).astype(inputs.dtype)


def _fold(key: Any, number: int, which: int) -> jax.Array:
    """A key of its own for each layer's two directions and for the dropout before it."""
    return jax.random.fold_in(key, 3 * number + which)
