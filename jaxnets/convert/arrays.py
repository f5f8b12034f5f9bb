"""What the converters share: weights of any library as arrays, and the check that they fit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxnets.kernels import GRUParameters, LSTMParameters
from jaxnets.kernels.checks import as_floats
from jaxnets.kernels.recurrent.checks import check_gru, check_lstm

LSTM_GATES, GRU_GATES = 4, 3
CELLS = {1: "a plain RNN", GRU_GATES: "a GRU", LSTM_GATES: "an LSTM"}


def as_array(name: str, value: Any) -> jax.Array:
    """``value``, an array or a variable or tensor that holds one, in its own dtype."""
    if isinstance(value, nnx.Variable):
        value = value[...]
    if hasattr(value, "detach"):  # PyTorch's: a parameter has to leave its graph and its device
        value = value.detach().cpu()
        if "bfloat16" in str(value.dtype):  # which NumPy, and so PyTorch's numpy(), does not have
            return jnp.asarray(value.float().numpy(), jnp.bfloat16)
        value = value.numpy()
    return as_floats(name, value)


def check_shape(name: str, array: jax.Array, axes: str, shape: tuple[int, ...]) -> None:
    """Raise unless ``array`` has ``shape``."""
    if array.shape != shape:
        raise ValueError(f"{name} must be {axes} = {shape}, got shape {array.shape}")


def check_matrix(name: str, array: jax.Array, axes: str) -> None:
    """Raise unless ``array`` has two axes, neither of them empty."""
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{name} must be {axes}, got shape {array.shape}")


def check_gates(gates: int, name: str, axes: str, width: int, units: int) -> None:
    """Raise unless a recurrent kernel of ``width`` by ``units`` has as many ``gates``."""
    if width == gates * units:
        return
    others = [cell for count, cell in CELLS.items() if width == count * units]
    hint = f", which is {others[0]}'s" if others else ""
    raise ValueError(
        f"{name} must be {axes}, {gates} gates of the same hidden size as {CELLS[gates]} has them, "
        f"got {width} for hidden = {units}{hint}"
    )


def check_plain_lstm(parameters: LSTMParameters, library: str, allowed: Iterable[str] = ()) -> None:
    """Raise unless ``parameters`` fit together and have nothing that ``library``'s LSTM has not."""
    if not isinstance(parameters, LSTMParameters):
        raise TypeError(f"parameters must be LSTMParameters, got {type(parameters).__name__}")
    check_lstm(parameters)
    extra = [
        name
        for name in ("projection", "peepholes", "layer_norm")
        if name not in allowed and getattr(parameters, name) is not None
    ]
    if extra:
        raise ValueError(
            f"parameters must be of a plain LSTM for {library}, got {', '.join(extra)}"
        )


def check_plain_gru(parameters: GRUParameters) -> None:
    """Raise unless ``parameters`` are a GRU's and fit together."""
    if not isinstance(parameters, GRUParameters):
        raise TypeError(f"parameters must be GRUParameters, got {type(parameters).__name__}")
    check_gru(parameters)
