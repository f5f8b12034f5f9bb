"""Keras: ``layer.get_weights()``; gates i, f, c, o of the LSTM and z, r, h of the GRU.

The weights do not tell what the gates' activation is. Keras 3, and Keras 2 by default, have a
sigmoid; Keras 1, Keras 2 before 2.3 and models saved by them a piecewise linear ``hard_sigmoid``,
which nothing here computes: ``layer.get_config()["recurrent_activation"]`` (in Keras 1
``"inner_activation"``) says which it is, and the converters refuse it where it is given.

A mask of Keras' is ``mask`` of :func:`jaxnets.kernels.lstm`. Where it is False Keras repeats the
last output, ``masked_outputs="repeat"``; with ``zero_output_for_mask=True`` it is "zero".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.convert.arrays import (
    CELLS,
    GRU_GATES,
    LSTM_GATES,
    as_array,
    check_gates,
    check_matrix,
    check_plain_gru,
    check_plain_lstm,
    check_shape,
)
from jaxnets.kernels import GRUParameters, LSTMParameters


def lstm_from_keras(
    weights: Sequence[Any], *, activation: str = "tanh", recurrent_activation: str = "sigmoid"
) -> LSTMParameters:
    """From ``[kernel, recurrent_kernel, bias]`` of a Keras LSTM; no bias is a bias of zeros.

    Args:
      weights: ``layer.get_weights()``: [features, 4 * hidden], [hidden, 4 * hidden] and
        [4 * hidden], or the first two. Of a ``Bidirectional`` give each half by itself.
      activation, recurrent_activation: what ``layer.get_config()`` says of them, to be checked:
        only Keras' defaults of today are computed here.

    Raises:
      TypeError: weights that are not floating point.
      ValueError: another number of arrays, shapes that are not one LSTM's, or other activations.

    Example:
      >>> import numpy as np
      >>> weights = [np.ones((3, 8)), np.ones((2, 8)), np.zeros(8)]
      >>> lstm_from_keras(weights).bias.shape
      (8,)
      >>> lstm_from_keras(weights, recurrent_activation="hard_sigmoid")
      Traceback (most recent call last):
        ...
      ValueError: recurrent_activation must be 'sigmoid', got 'hard_sigmoid': train or save the \
model with 'sigmoid', Keras' default since 2.3
    """
    _check_activations(activation, recurrent_activation)
    kernel, recurrent, bias = _read(weights, LSTM_GATES)
    bias = jnp.zeros_like(kernel[0]) if bias is None else bias
    check_shape("weights[2]", bias, "[4 * hidden]", (kernel.shape[1],))
    return LSTMParameters(kernel, recurrent, bias)


def lstm_to_keras(parameters: LSTMParameters) -> list[np.ndarray]:
    """To the argument of ``set_weights`` of a Keras LSTM with bias.

    Returns:
      ``[kernel, recurrent_kernel, bias]``, [features, 4 * hidden], [hidden, 4 * hidden] and
      [4 * hidden].

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.LSTMParameters`.
      ValueError: a projection, peepholes or layer normalization, which Keras' layer does not have.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import LSTMParameters
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> [array.shape for array in lstm_to_keras(parameters)]
      [(3, 8), (2, 8), (8,)]
    """
    check_plain_lstm(parameters, "Keras")
    return [np.asarray(array) for array in parameters[:3]]


def gru_from_keras(
    weights: Sequence[Any],
    *,
    reset_after: bool = True,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
) -> GRUParameters:
    """From ``[kernel, recurrent_kernel, bias]`` of a Keras GRU; no bias is a bias of zeros.

    Args:
      weights: ``layer.get_weights()``: [features, 3 * hidden], [hidden, 3 * hidden] and a bias
        [2, 3 * hidden], or [3 * hidden] of ``reset_after=False``; or the first two.
      reset_after: what ``layer.get_config()`` says of it; without a bias the weights do not tell.
        What comes of ``reset_after=False`` wants the same of :func:`jaxnets.kernels.gru`.
      activation, recurrent_activation: as in :func:`lstm_from_keras`.

    Raises:
      TypeError, ValueError: as :func:`lstm_from_keras`; or a bias of the other ``reset_after``.

    Example:
      >>> import numpy as np
      >>> kernel = np.repeat([[1.0, 2.0, 3.0]], 2, 1)  # gates z, r, h; [1 feature, 3 * 2 hidden]
      >>> parameters = gru_from_keras([kernel, np.ones((2, 6)), np.zeros((2, 6))])
      >>> parameters.input_kernel.tolist()  # r, z, n
      [[2.0, 2.0, 1.0, 1.0, 3.0, 3.0]]
    """
    _check_activations(activation, recurrent_activation)
    kernel, recurrent, bias = _read(weights, GRU_GATES)
    zeros = jnp.zeros_like(kernel[0])
    if bias is None:
        biases = [zeros, zeros]
    elif reset_after:
        if bias.ndim != 2:
            raise ValueError(
                "weights must be of a GRU with reset_after=True, whose bias is [2, 3 * hidden], "
                f"got a bias of shape {bias.shape}: of a layer without say reset_after=False"
            )
        check_shape("weights[2]", bias, "[2, 3 * hidden]", (2, kernel.shape[1]))
        biases = list(bias)
    else:
        check_shape("weights[2]", bias, "[3 * hidden] of reset_after=False", (kernel.shape[1],))
        biases = [bias, zeros]
    return GRUParameters(*(_swap_r_and_z(array) for array in (kernel, recurrent, *biases)))


def gru_to_keras(parameters: GRUParameters, *, reset_after: bool = True) -> list[np.ndarray]:
    """To the argument of ``set_weights`` of a Keras GRU with bias and the same ``reset_after``.

    Returns:
      ``[kernel, recurrent_kernel, bias]``, [features, 3 * hidden], [hidden, 3 * hidden] and
      [2, 3 * hidden], or [3 * hidden] of ``reset_after=False``.

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.GRUParameters`.
      ValueError: arrays that do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import GRUParameters
      >>> zeros = jnp.zeros(6)
      >>> parameters = GRUParameters(jnp.ones((3, 6)), jnp.ones((2, 6)), zeros, zeros)
      >>> [array.shape for array in gru_to_keras(parameters)]
      [(3, 6), (2, 6), (2, 6)]
      >>> gru_to_keras(parameters, reset_after=False)[2].shape
      (6,)
    """
    check_plain_gru(parameters)
    kernel, recurrent, *biases = (np.asarray(_swap_r_and_z(array)) for array in parameters)
    return [kernel, recurrent, np.stack(biases) if reset_after else biases[0] + biases[1]]


def read_layer(kind: str, layer: Any) -> tuple[list[Any], list[dict[str, str]], dict[str, Any]]:
    """The weights of a Keras layer, the activations of its directions, and what it says of itself.

    That is ``merge_mode`` of a ``Bidirectional``, and ``reset_after`` of a GRU.
    """
    config, name, said = layer.get_config(), type(layer).__name__, dict[str, Any]()
    halves = [config]
    if name == "Bidirectional":
        said["merge_mode"] = config["merge_mode"]
        if said["merge_mode"] is None:
            raise ValueError(
                "layer must merge its directions, got a Bidirectional with merge_mode=None"
            )
        name, forward = config["layer"]["class_name"], config["layer"]["config"]
        # Without a layer of its own the way back is the way forth's, but for where it starts.
        back = config.get("backward_layer", config["layer"])
        if back["class_name"] != name:
            raise ValueError(
                f"layer must be of one kind in both directions, got {name} and {back['class_name']}"
            )
        halves = [forward, back["config"]]
    if name != kind:
        raise ValueError(f"layer must be a Keras {kind} or a Bidirectional of one, got {name}")
    if halves[0].get("go_backwards"):
        raise ValueError(
            "layer must not have go_backwards=True, got it: convert its weights, and say "
            "reverse=True to jaxnets.kernels, whose outputs stay where their inputs are"
        )
    resets = {half["reset_after"] for half in halves if "reset_after" in half}
    if len(resets) > 1:
        raise ValueError("reset_after must be one of both directions, got True and False")
    if resets:
        (said["reset_after"],) = resets
    names = ("activation", "recurrent_activation")
    return list(layer.get_weights()), [{n: half[n] for n in names} for half in halves], said


def _check_activations(activation: str, recurrent_activation: str) -> None:
    if activation != "tanh":
        raise ValueError(f"activation must be 'tanh', got {activation!r}")
    if recurrent_activation != "sigmoid":
        raise ValueError(
            f"recurrent_activation must be 'sigmoid', got {recurrent_activation!r}: train or save "
            "the model with 'sigmoid', Keras' default since 2.3"
        )


def _read(weights: Sequence[Any], gates: int) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Kernel, recurrent kernel and bias, the first two checked."""
    weights = list(weights)
    if len(weights) not in (2, 3):
        hint = ""
        if len(weights) in (4, 6):
            half = len(weights) // 2
            hint = (
                ": of a Bidirectional layer convert the directions one by one, "
                f"weights[:{half}] and weights[{half}:]"
            )
        raise ValueError(
            f"weights must be [kernel, recurrent_kernel, bias] of {CELLS[gates]}, or without the "
            f"bias, got {len(weights)} arrays{hint}"
        )
    kernel, recurrent, *bias = (as_array(f"weights[{i}]", w) for i, w in enumerate(weights))
    axes = f"[hidden, {gates} * hidden]"
    check_matrix("weights[0]", kernel, f"[features, {gates} * hidden]")
    check_matrix("weights[1]", recurrent, axes)
    units, width = recurrent.shape
    check_gates(gates, "weights[1]", axes, width, units)
    check_shape("weights[0]", kernel, f"[features, {gates} * hidden]", (kernel.shape[0], width))
    if bias and bias[0].shape == (2 * width,):
        raise ValueError(
            f"weights[2] must not be a bias of two halves, got shape {bias[0].shape}: of a "
            f"CuDNN{'LSTM' if gates == LSTM_GATES else 'GRU'} load the model's weights into the "
            "plain layer first, which turns its kernels too"
        )
    return kernel, recurrent, bias[0] if bias else None


def _swap_r_and_z(array):
    first, second, last = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([second, first, last], axis=-1)
