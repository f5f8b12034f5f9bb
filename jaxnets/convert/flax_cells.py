"""Flax: one small dense layer a gate, or two large ones; the bias on the recurrent side.

``LSTMCell`` and ``GRUCell`` of linen, and ``OptimizedLSTMCell`` of linen, which has the same tree;
``nnx.OptimizedLSTMCell`` has two dense layers. Gates of the LSTM are i, f, g, o in both. The GRU of
flax has biases on the input side, and one on the recurrent side for n alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxnets.kernels import GRUParameters, LSTMParameters


def lstm_from_flax(params: Mapping[str, Any]) -> LSTMParameters:
    """From the ``params`` of a linen ``LSTMCell`` or ``OptimizedLSTMCell``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> cell, x = linen.LSTMCell(2), jnp.ones((1, 3))
      >>> carry = (jnp.zeros((1, 2)), jnp.zeros((1, 2)))
      >>> params = cell.init(jax.random.key(0), carry, x)["params"]
      >>> lstm_from_flax(params).input_kernel.shape
      (3, 8)
    """
    gates = "ifgo"
    return LSTMParameters(
        jnp.concatenate([params[f"i{gate}"]["kernel"] for gate in gates], axis=1),
        jnp.concatenate([params[f"h{gate}"]["kernel"] for gate in gates], axis=1),
        jnp.concatenate([params[f"h{gate}"]["bias"] for gate in gates]),
    )


def lstm_to_flax(parameters: LSTMParameters) -> dict[str, dict[str, Any]]:
    """To the ``params`` of a linen ``LSTMCell`` or ``OptimizedLSTMCell``."""
    _plain(parameters)
    params: dict[str, dict[str, Any]] = {}
    arrays = zip(*(jnp.split(array, 4, axis=-1) for array in parameters[:3]), strict=True)
    for gate, (kernel, recurrent, bias) in zip("ifgo", arrays, strict=True):
        params[f"i{gate}"] = {"kernel": kernel}
        params[f"h{gate}"] = {"kernel": recurrent, "bias": bias}
    return params


def lstm_from_flax_optimized(params: Mapping[str, Any]) -> LSTMParameters:
    """From the pure state of an ``nnx.OptimizedLSTMCell``: ``dense_i`` and ``dense_h``."""
    recurrent = params["dense_h"]
    return LSTMParameters(params["dense_i"]["kernel"], recurrent["kernel"], recurrent["bias"])


def lstm_to_flax_optimized(parameters: LSTMParameters) -> dict[str, dict[str, Any]]:
    """To the pure state of an ``nnx.OptimizedLSTMCell``."""
    _plain(parameters)
    kernel, recurrent, bias = parameters[:3]
    return {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent, "bias": bias}}


def gru_from_flax(params: Mapping[str, Any]) -> GRUParameters:
    """From the ``params`` of a linen ``GRUCell``."""
    gates = "rzn"
    zeros = jnp.zeros_like(params["hn"]["bias"])
    return GRUParameters(
        jnp.concatenate([params[f"i{gate}"]["kernel"] for gate in gates], axis=1),
        jnp.concatenate([params[f"h{gate}"]["kernel"] for gate in gates], axis=1),
        jnp.concatenate([params[f"i{gate}"]["bias"] for gate in gates]),
        jnp.concatenate([zeros, zeros, params["hn"]["bias"]]),
    )


def gru_to_flax(parameters: GRUParameters) -> dict[str, dict[str, Any]]:
    """To the ``params`` of a linen ``GRUCell``; the recurrent biases of r and z join the others."""
    params: dict[str, dict[str, Any]] = {}
    arrays = zip(*(jnp.split(array, 3, axis=-1) for array in parameters), strict=True)
    for gate, (kernel, recurrent, bias, recurrent_bias) in zip("rzn", arrays, strict=True):
        if gate == "n":
            params["in"] = {"kernel": kernel, "bias": bias}
            params["hn"] = {"kernel": recurrent, "bias": recurrent_bias}
        else:
            params[f"i{gate}"] = {"kernel": kernel, "bias": bias + recurrent_bias}
            params[f"h{gate}"] = {"kernel": recurrent}
    return params


def _plain(parameters: LSTMParameters) -> None:
    extra = [name for name in parameters._fields[3:] if getattr(parameters, name) is not None]
    if extra:
        raise ValueError(f"parameters must be of a plain LSTM for flax, got {', '.join(extra)}")
