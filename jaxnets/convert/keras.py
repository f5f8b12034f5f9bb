"""Keras: ``layer.get_weights()``; gates i, f, c, o of the LSTM and z, r, h of the GRU."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import GRUParameters, LSTMParameters


def lstm_from_keras(weights: Sequence[np.ndarray]) -> LSTMParameters:
    """From ``[kernel, recurrent_kernel, bias]`` of a Keras LSTM; no bias is a bias of zeros.

    Example:
      >>> import numpy as np
      >>> weights = [np.ones((3, 8)), np.ones((2, 8)), np.zeros(8)]
      >>> lstm_from_keras(weights).bias.shape
      (8,)
    """
    kernel, recurrent, *bias = (jnp.asarray(array) for array in weights)
    return LSTMParameters(kernel, recurrent, bias[0] if bias else jnp.zeros_like(kernel[0]))


def lstm_to_keras(parameters: LSTMParameters) -> list[np.ndarray]:
    """To the argument of ``set_weights`` of a Keras LSTM with bias."""
    extra = [name for name in parameters._fields[3:] if getattr(parameters, name) is not None]
    if extra:
        raise ValueError(f"parameters must be of a plain LSTM for Keras, got {', '.join(extra)}")
    return [np.asarray(array) for array in parameters[:3]]


def gru_from_keras(weights: Sequence[np.ndarray]) -> GRUParameters:
    """From ``[kernel, recurrent_kernel, bias [2, 3 * hidden]]`` of a GRU with ``reset_after``."""
    kernel, recurrent, bias = (jnp.asarray(array) for array in weights)
    if bias.ndim != 2:
        raise ValueError(
            "weights must be of a GRU with reset_after=True, whose bias is [2, 3 * hidden], "
            f"got a bias of shape {bias.shape}"
        )
    return GRUParameters(*(_swap_r_and_z(array) for array in (kernel, recurrent, *bias)))


def gru_to_keras(parameters: GRUParameters) -> list[np.ndarray]:
    """To the argument of ``set_weights`` of a Keras GRU with ``reset_after=True``."""
    kernel, recurrent, *biases = (np.asarray(_swap_r_and_z(array)) for array in parameters)
    return [kernel, recurrent, np.stack(biases)]


def _swap_r_and_z(array):
    first, second, last = jnp.split(array, 3, axis=-1)
    return jnp.concatenate([second, first, last], axis=-1)
