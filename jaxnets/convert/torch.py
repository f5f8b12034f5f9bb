"""PyTorch: parameters of ``nn.LSTM``, ``nn.GRU`` and their cells; kernels transposed, two biases.

The gates are i, f, g, o and r, z, n as here. An LSTM's two biases are summed on the way in; on the
way out all of it is in ``bias_ih`` and ``bias_hh`` is zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, SupportsIndex

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
from jaxnets.kernels.checks import as_int

State = Mapping[str, Any] | Iterable[tuple[str, Any]]
FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def lstm_from_torch(
    state: State,
    layer: SupportsIndex | None = 0,
    *,
    reverse: bool = False,
    prefix: str | None = None,
) -> LSTMParameters:
    """One layer and direction of an ``nn.LSTM``, with its projection if it has one, or a cell.

    Args:
      state: ``module.state_dict()``, ``module.named_parameters()``, or any mapping from PyTorch's
        names to tensors or arrays; of bfloat16 too, which stays bfloat16. An ``nn.LSTMCell`` has
        the names without a layer.
      layer: which one, from 0; None: only a cell's names.
      reverse: its backward direction.
      prefix: of the module in a larger model, as "encoder.lstm"; None: the only one there is.

    Raises:
      TypeError: weights that are not floating point.
      ValueError: names that are not there or stand for several modules, or shapes that are not one
        LSTM's.

    Example:
      >>> import numpy as np
      >>> state = {"weight_ih_l0": np.ones((8, 3)), "weight_hh_l0": np.ones((8, 2)),
      ...          "bias_ih_l0": np.ones(8), "bias_hh_l0": np.ones(8)}
      >>> parameters = lstm_from_torch(state)
      >>> parameters.input_kernel.shape, float(parameters.bias[0])
      ((3, 8), 2.0)
    """
    kernel, recurrent, bias, recurrent_bias, projection = _read(
        state, layer, reverse, prefix, LSTM_GATES
    )
    return LSTMParameters(kernel, recurrent, bias + recurrent_bias, projection)


def lstm_to_torch(
    parameters: LSTMParameters, layer: SupportsIndex | None = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of one layer and direction, for ``load_state_dict`` by way of ``from_numpy``.

    PyTorch takes bfloat16 as ``torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)``.

    Args:
      parameters: of one layer and direction.
      layer: in the names, from 0; None gives the names of a cell, ``nn.LSTMCell``.
      reverse: the names of the backward direction.

    Returns:
      weight_ih [4 * hidden, features], weight_hh [4 * hidden, output], bias_ih [4 * hidden] and
      bias_hh, which is zero; with a projection weight_hr [output, hidden].

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.LSTMParameters`.
      ValueError: peepholes, layer normalization or a cell's projection, which PyTorch does not
        have; ``layer`` below 0, or ``reverse`` of a cell.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import LSTMParameters
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> {name: array.shape for name, array in lstm_to_torch(parameters, reverse=True).items()}
      ... # doctest: +NORMALIZE_WHITESPACE
      {'weight_ih_l0_reverse': (8, 3), 'weight_hh_l0_reverse': (8, 2),
       'bias_ih_l0_reverse': (8,), 'bias_hh_l0_reverse': (8,)}
    """
    check_plain_lstm(parameters, "PyTorch", allowed=("projection",) if layer is not None else ())
    kernel, recurrent, bias, projection = parameters[:4]
    state = _write(layer, reverse, kernel, recurrent, bias, jnp.zeros_like(bias))
    if projection is not None:
        state[f"weight_hr{_suffix(layer, reverse)}"] = np.asarray(projection.T)
    return state


def gru_from_torch(
    state: State,
    layer: SupportsIndex | None = 0,
    *,
    reverse: bool = False,
    prefix: str | None = None,
) -> GRUParameters:
    """One layer and direction of an ``nn.GRU``, or a cell.

    Arguments and errors are those of :func:`lstm_from_torch`; an ``nn.GRU`` has no projection.

    Example:
      >>> import numpy as np
      >>> state = {"weight_ih": np.ones((6, 3)), "weight_hh": np.ones((6, 2)),
      ...          "bias_ih": np.ones(6), "bias_hh": np.zeros(6)}
      >>> parameters = gru_from_torch(state)  # of an nn.GRUCell
      >>> parameters.input_kernel.shape, float(parameters.bias[0])
      ((3, 6), 1.0)
    """
    return GRUParameters(*_read(state, layer, reverse, prefix, GRU_GATES)[:4])


def gru_to_torch(
    parameters: GRUParameters, layer: SupportsIndex | None = 0, *, reverse: bool = False
) -> dict[str, np.ndarray]:
    """The arrays of one layer and direction of an ``nn.GRU``; otherwise as :func:`lstm_to_torch`.

    Raises:
      TypeError: what is not :class:`jaxnets.kernels.GRUParameters`.
      ValueError: ``layer`` below 0, or ``reverse`` of a cell.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import GRUParameters
      >>> zeros = jnp.zeros(6)
      >>> parameters = GRUParameters(jnp.ones((3, 6)), jnp.ones((2, 6)), zeros, zeros)
      >>> gru_to_torch(parameters, layer=1)["weight_ih_l1"].shape
      (6, 3)
    """
    check_plain_gru(parameters)
    return _write(layer, reverse, *parameters)


def _suffix(layer: SupportsIndex | None, reverse: bool) -> str:
    if layer is None:
        if reverse:
            raise ValueError("reverse must be False of a cell, whose layer is None, got True")
        return ""
    return f"_l{as_int('layer', layer, 0)}{'_reverse' if reverse else ''}"


def _read(state: State, layer: SupportsIndex | None, reverse: bool, prefix: str | None, gates: int):
    """Kernel, recurrent kernel, both biases (zeros where there are none) and the projection."""
    named = named_arrays(state)
    start, suffix = find_module(named, layer, reverse, prefix)
    names = {field: f"{start}{field}{suffix}" for field in FIELDS}
    arrays = {
        field: as_array(name, named[name]) if name in named else None
        for field, name in names.items()
    }
    needed = ["weight_ih", "weight_hh"]
    if arrays["bias_ih"] is not None or arrays["bias_hh"] is not None:
        needed += ["bias_ih", "bias_hh"]
    missing = [names[field] for field in needed if arrays[field] is None]
    if missing:
        raise ValueError(f"state must hold {missing[0]} beside {names['weight_ih']}")
    return _checked(gates, names, **arrays)


def _checked(gates, names, weight_ih, weight_hh, bias_ih, bias_hh, weight_hr):
    """The arrays in our layout, if their shapes are one cell's."""
    for field, array in (("weight_ih", weight_ih), ("weight_hh", weight_hh)):
        check_matrix(names[field], array, f"[{gates} * hidden, features or hidden]")
    width, output = weight_hh.shape
    if weight_hr is None:
        axes = f"[{gates} * hidden, hidden]"
        check_gates(gates, names["weight_hh"], axes, width, output)
    elif gates == LSTM_GATES:
        check_shape(names["weight_hr"], weight_hr, "[output, hidden]", (output, width // gates))
    else:
        raise ValueError(f"state must be {CELLS[gates]}'s, got an LSTM's {names['weight_hr']}")
    axes = f"[{gates} * hidden, features]"
    check_shape(names["weight_ih"], weight_ih, axes, (width, weight_ih.shape[1]))
    if bias_ih is None:
        bias_ih = bias_hh = jnp.zeros_like(weight_ih[:, 0])
    for field, bias in (("bias_ih", bias_ih), ("bias_hh", bias_hh)):
        check_shape(names[field], bias, f"[{gates} * hidden]", (width,))
    return weight_ih.T, weight_hh.T, bias_ih, bias_hh, None if weight_hr is None else weight_hr.T


def named_arrays(state: State) -> dict[str, Any]:
    """``state`` as a dict."""
    if hasattr(state, "state_dict"):
        raise TypeError("state must map names to tensors, got a module: give module.state_dict()")
    named = dict(state)
    if not named:
        raise ValueError(
            "state must hold the names of PyTorch's parameters, got none; an iterator, as "
            "named_parameters() is, can be read once: give dict(module.named_parameters())"
        )
    return named


def find_module(
    named: Mapping[str, Any], layer: SupportsIndex | None, reverse: bool, prefix: str | None
) -> tuple[str, str]:
    """What stands before and behind the field in the names of the one module that is meant."""
    suffixes = [_suffix(layer, reverse)]
    if layer == 0 and not reverse:
        suffixes.append(_suffix(None, reverse))  # a cell's
    found = [
        (name.removesuffix(f"weight_ih{suffix}"), suffix)
        for suffix in suffixes
        for name in named
        if name.split(".")[-1] == f"weight_ih{suffix}"
    ]
    if prefix is not None:
        found = [each for each in found if each[0].removesuffix(".") == prefix.removesuffix(".")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            "prefix must name one of the modules that state holds, "
            f"{', '.join(repr(start.removesuffix('.')) for start, _ in found)}, got {prefix!r}"
        )
    wanted = f"weight_ih{suffixes[0]}" + (f" of {prefix!r}" if prefix else "")
    others = [name for name in named if "weight_ih" in name] or list(named)[:8]
    raise ValueError(f"state must hold {wanted}, got {', '.join(others)}")


def _write(
    layer: SupportsIndex | None,
    reverse: bool,
    kernel: jax.Array,
    recurrent: jax.Array,
    bias: jax.Array,
    recurrent_bias: jax.Array,
) -> dict[str, np.ndarray]:
    suffix = _suffix(layer, reverse)
    arrays = {
        "weight_ih": kernel.T,
        "weight_hh": recurrent.T,
        "bias_ih": bias,
        "bias_hh": recurrent_bias,
    }
    return {f"{field}{suffix}": np.asarray(array) for field, array in arrays.items()}
