"""PyTorch: ``state_dict()`` of ``nn.LSTM`` and ``nn.GRU``; kernels transposed, two biases.

The gates are i, f, g, o and r, z, n as here. An LSTM's two biases are summed on the way in; on the
way out all of it is in ``bias_ih`` and ``bias_hh`` is zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import GRUParameters, LSTMParameters


def lstm_from_torch(state: Mapping, layer: int = 0, *, reverse: bool = False) -> LSTMParameters:
    """One layer and direction of an ``nn.LSTM``, with its projection if it has one.

    ``state`` maps PyTorch's names to tensors or arrays.

    Example:
      >>> import numpy as np
      >>> state = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2)),
      ...          "bias_ih_l0": np.ones(8), "bias_hh_l0": np.ones(8)}
      >>> parameters = lstm_from_torch(state)
      >>> parameters.input_kernel.shape, float(parameters.bias[0])
      ((3, 8), 2.0)
    """
    kernel, recurrent, bias, recurrent_bias = _read(state, layer, reverse)
    projection = state.get(_name("weight_hr", layer, reverse))
    return LSTMParameters(
        kernel, recurrent, bias + recurrent_bias,
        None if projection is None else jnp.asarray(np.asarray(projection).T),
    )  # fmt: skip


def lstm_to_torch(
    parameters: LSTMParameters, layer: int = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of one layer and direction, for ``load_state_dict`` by way of ``from_numpy``."""
    extra = [name for name in ("peepholes", "layer_norm") if getattr(parameters, name) is not None]
    if extra:
        raise ValueError(f"parameters must be of a plain LSTM for PyTorch, got {', '.join(extra)}")
    kernel, recurrent, bias, projection = parameters[:4]
    state = _write(layer, reverse, kernel, recurrent, bias, jnp.zeros_like(bias))
    if projection is not None:
        state[_name("weight_hr", layer, reverse)] = np.asarray(projection.T)
    return state


def gru_from_torch(state: Mapping, layer: int = 0, *, reverse: bool = False) -> GRUParameters:
    """One layer and direction of an ``nn.GRU``."""
    return GRUParameters(*_read(state, layer, reverse))


def gru_to_torch(
    parameters: GRUParameters, layer: int = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of one layer and direction of an ``nn.GRU``."""
    return _write(layer, reverse, *parameters)


def _name(field: str, layer: int, reverse: bool) -> str:
    return f"{field}_l{layer}{'_reverse' if reverse else ''}"


def _read(state: Mapping, layer: int, reverse: bool):
    """Kernel, recurrent kernel and both biases; no bias is a bias of zeros."""
    kernel, recurrent = (
        jnp.asarray(np.asarray(state[_name(field, layer, reverse)]).T)
        for field in ("weight_ih", "weight_hh")
    )
    names = [_name(field, layer, reverse) for field in ("bias_ih", "bias_hh")]
    if names[0] not in state:
        return kernel, recurrent, jnp.zeros_like(kernel[0]), jnp.zeros_like(kernel[0])
    return kernel, recurrent, *(jnp.asarray(np.asarray(state[name])) for name in names)


def _write(layer: int, reverse: bool, kernel, recurrent, bias, recurrent_bias):
    arrays = {
        "weight_ih": kernel.T, "weight_hh": recurrent.T,
        "bias_ih": bias, "bias_hh": recurrent_bias,
    }  # fmt: skip
    return {_name(field, layer, reverse): np.asarray(array) for field, array in arrays.items()}
