"""Flax: one small dense layer a gate, or two large ones; the bias on the recurrent side.

Linen's cells, ``OptimizedLSTMCell`` among them, have one layer a gate; so has ``nnx.LSTMCell``,
which calls "if" "if_", since the first is no name for an attribute. ``nnx.OptimizedLSTMCell`` and
``nnx.GRUCell`` have two dense layers. Gates are i, f, g, o and r, z, n in all. Linen's GRU has
biases on the input side, and one on the recurrent side for n alone; that of nnx has no other than
on the input side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnets.convert.arrays import (
    CELLS,
    as_array,
    check_gates,
    check_matrix,
    check_plain_gru,
    check_plain_lstm,
    check_shape,
)
from jaxnets.kernels import GRUParameters, LSTMParameters


def lstm_from_flax(params: Mapping[str, Any] | nnx.Module) -> LSTMParameters:
    """From the ``params`` of an LSTM of linen's, or the state of one of nnx's, or that one itself.

    ``LSTMCell`` or ``OptimizedLSTMCell`` of either. The weights do not tell the activations: only
    flax's defaults, sigmoid and tanh, are computed here.

    Raises:
      TypeError: weights that are not floating point.
      ValueError: other names than an LSTM's, shapes that are not one LSTM's, or a cell with other
        activations.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import linen
      >>> cell, x = linen.LSTMCell(2), jnp.ones((1, 3))
      >>> carry = (jnp.zeros((1, 2)), jnp.zeros((1, 2)))
      >>> params = cell.init(jax.random.key(0), carry, x)["params"]
      >>> lstm_from_flax(params).input_kernel.shape
      (3, 8)
    """
    kernel, bias, recurrent, recurrent_bias = _read(params, "ifgo")
    return LSTMParameters(kernel, recurrent, bias + recurrent_bias)


def lstm_to_flax(parameters: LSTMParameters) -> dict[str, dict[str, Any]]:
    """To the ``params`` of a linen ``LSTMCell`` or ``OptimizedLSTMCell``.

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.LSTMParameters`.
      ValueError: a projection, peepholes or layer normalization, which flax's cells do not have.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import LSTMParameters
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> params = lstm_to_flax(parameters)
      >>> sorted(params), params["hf"]["kernel"].shape
      (['hf', 'hg', 'hi', 'ho', 'if', 'ig', 'ii', 'io'], (2, 2))
    """
    check_plain_lstm(parameters, "flax")
    params: dict[str, dict[str, Any]] = {}
    arrays = zip(*(jnp.split(array, 4, axis=-1) for array in parameters[:3]), strict=True)
    for gate, (kernel, recurrent, bias) in zip("ifgo", arrays, strict=True):
        params[f"i{gate}"] = {"kernel": kernel}
        params[f"h{gate}"] = {"kernel": recurrent, "bias": bias}
    return params


def lstm_from_flax_optimized(params: Mapping[str, Any] | nnx.Module) -> LSTMParameters:
    """As :func:`lstm_from_flax`, by its older name for ``nnx.OptimizedLSTMCell``.

    Example:
      >>> from flax import nnx
      >>> cell = nnx.OptimizedLSTMCell(3, 2, rngs=nnx.Rngs(0))
      >>> lstm_from_flax_optimized(cell).input_kernel.shape
      (3, 8)
    """
    return lstm_from_flax(params)


def lstm_to_flax_optimized(parameters: LSTMParameters) -> dict[str, dict[str, Any]]:
    """To the pure state of an ``nnx.OptimizedLSTMCell``.

    Raises:
      TypeError, ValueError: as :func:`lstm_to_flax`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import LSTMParameters
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> from flax import nnx
      >>> cell = nnx.OptimizedLSTMCell(3, 2, rngs=nnx.Rngs(0))
      >>> nnx.update(cell, lstm_to_flax_optimized(parameters))
      >>> float(cell.dense_i.kernel[0, 0])
      1.0
    """
    check_plain_lstm(parameters, "flax")
    kernel, recurrent, bias = parameters[:3]
    return {"dense_i": {"kernel": kernel}, "dense_h": {"kernel": recurrent, "bias": bias}}


def gru_from_flax(params: Mapping[str, Any] | nnx.Module) -> GRUParameters:
    """From the ``params`` of a linen ``GRUCell``, or an ``nnx.GRUCell`` or its state.

    Raises:
      TypeError, ValueError: as :func:`lstm_from_flax`.

    Example:
      >>> from flax import nnx
      >>> gru_from_flax(nnx.GRUCell(3, 2, rngs=nnx.Rngs(0))).input_kernel.shape
      (3, 6)
    """
    kernel, bias, recurrent, recurrent_bias = _read(params, "rzn")
    return GRUParameters(kernel, recurrent, bias, recurrent_bias)


def gru_to_flax(parameters: GRUParameters) -> dict[str, dict[str, Any]]:
    """To the ``params`` of a linen ``GRUCell``; the recurrent biases of r and z join the others.

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.GRUParameters`.
      ValueError: arrays that do not fit together.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import GRUParameters
      >>> zeros = jnp.zeros(6)
      >>> parameters = GRUParameters(jnp.ones((3, 6)), jnp.ones((2, 6)), zeros, zeros)
      >>> params = gru_to_flax(parameters)
      >>> sorted(params), params["in"]["kernel"].shape
      (['hn', 'hr', 'hz', 'in', 'ir', 'iz'], (3, 2))
    """
    check_plain_gru(parameters)
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


def gru_to_nnx(parameters: GRUParameters) -> dict[str, dict[str, Any]]:
    """To the pure state of an ``nnx.GRUCell``, whose biases are all on the input side.

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.GRUParameters`.
      ValueError: arrays that do not fit together, or a recurrent bias of n that is not 0: it stands
        within the reset, where this cell has none.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.kernels import GRUParameters
      >>> parameters = GRUParameters(
      ...     jnp.ones((3, 6)), jnp.ones((2, 6)), jnp.zeros(6), jnp.array([1.0, 1, 1, 1, 0, 0])
      ... )
      >>> cell = nnx.GRUCell(3, 2, rngs=nnx.Rngs(0))
      >>> nnx.update(cell, gru_to_nnx(parameters))
      >>> cell.dense_i.bias[...].tolist()
      [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    check_plain_gru(parameters)
    kernel, recurrent, bias, recurrent_bias = parameters
    if np.asarray(recurrent_bias[2 * recurrent.shape[0] :]).any():
        raise ValueError(
            "recurrent_bias must be 0 for n, the last third, of which nnx.GRUCell has none; "
            "linen's GRUCell has it: gru_to_flax"
        )
    return {
        "dense_i": {"kernel": kernel, "bias": bias + recurrent_bias},
        "dense_h": {"kernel": recurrent},
    }


def _read(params: Mapping[str, Any] | nnx.Module, gates: str) -> tuple[jax.Array, ...]:
    """Kernel and recurrent kernel, and the bias of each, zeros where there is none."""
    if isinstance(params, nnx.Module):
        _check_activations(params)
        params = nnx.state(params, nnx.Param)
    if not isinstance(params, Mapping):
        raise TypeError(f"params must be a mapping of names, got {type(params).__name__}")
    names = set(params) - {"rngs"}  # which some cells of nnx keep
    underscore = {"if": "if_"} if "if_" in names else {}
    inputs, hidden = (
        [underscore.get(f"{side}{gate}", f"{side}{gate}") for gate in gates] for side in "ih"
    )
    if names == {*inputs, *hidden}:
        return *_side_by_side(params, inputs, hidden[0]), *_side_by_side(params, hidden, hidden[0])
    if names == {"dense_i", "dense_h"}:
        return _read_dense(params, len(gates))
    raise ValueError(
        f"params must hold {', '.join(inputs + hidden)} or dense_i, dense_h, as "
        f"{CELLS[len(gates)]} does, got {', '.join(sorted(map(str, names))) or 'nothing'}"
    )


def _read_dense(params, gates: int):
    (kernel, bias), (recurrent, recurrent_bias) = (
        _dense(params, name) for name in ("dense_i", "dense_h")
    )
    units, width = recurrent.shape
    check_gates(gates, "dense_h/kernel", f"[hidden, {gates} * hidden]", width, units)
    axes = f"[features, {gates} * hidden]"
    check_shape("dense_i/kernel", kernel, axes, (kernel.shape[0], width))
    return kernel, bias, recurrent, recurrent_bias


def _side_by_side(params, names: Sequence[str], recurrent: str):
    """The dense layers of several gates as one; each has as many outputs as ``recurrent``."""
    layers = [_dense(params, name) for name in names]
    shape = (layers[0][0].shape[0], _dense(params, recurrent)[0].shape[0])
    for name, (kernel, _) in zip(names, layers, strict=True):
        check_shape(f"{name}/kernel", kernel, "[features or hidden, hidden]", shape)
    kernels, biases = zip(*layers, strict=True)
    return jnp.concatenate(kernels, axis=1), jnp.concatenate(biases)


def _dense(params, name: str) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a dense layer."""
    layer = params[name]
    extra = set(layer) - {"kernel", "bias"}
    if extra or "kernel" not in layer:
        raise ValueError(f"{name} must hold kernel and bias, got {', '.join(sorted(layer))}")
    kernel = as_array(f"{name}/kernel", layer["kernel"])
    check_matrix(f"{name}/kernel", kernel, "[in, out]")
    width = kernel.shape[1]
    if layer.get("bias") is None:
        return kernel, jnp.zeros_like(kernel[0])
    bias = as_array(f"{name}/bias", layer["bias"])
    check_shape(f"{name}/bias", bias, "[out]", (width,))
    return kernel, bias


def _check_activations(cell: nnx.Module) -> None:
    for name, default in (("gate_fn", jax.nn.sigmoid), ("activation_fn", jnp.tanh)):
        if getattr(cell, name, default) is not default:
            raise ValueError(f"params must be of a cell with flax's own {name}, got another")
