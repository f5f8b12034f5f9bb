"""All layers and directions of another library's model, by the functions for one of them.

What comes and goes is the ``layers`` of :func:`jaxnets.kernels.recurrent_layers`: for each layer
``[forward]`` or ``[forward, backward]``. :class:`jaxnets.layers.LSTM` and ``GRU`` are the door.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxnets.convert import flax_cells, keras, torch
from jaxnets.kernels import GRUParameters, LSTMParameters

Layers = Sequence[Sequence[Any]]

# What nnx.Bidirectional does with its two outputs, by our names.
MERGES = {nnx.Bidirectional.merge_fn: "concat", jnp.add: "sum", jnp.multiply: "mul"}


class Kind(NamedTuple):
    """A cell, and the converters of one layer and direction of it."""

    name: str
    parameters: type
    from_torch: Callable[..., Any]
    to_torch: Callable[..., dict[str, np.ndarray]]
    from_keras: Callable[..., Any]
    to_keras: Callable[..., list[np.ndarray]]
    from_flax: Callable[..., Any]
    to_flax: Mapping[str, Callable[..., dict[str, Any]]]


LSTM = Kind(
    "LSTM", LSTMParameters, torch.lstm_from_torch, torch.lstm_to_torch, keras.lstm_from_keras,
    keras.lstm_to_keras, flax_cells.lstm_from_flax,
    {"linen": flax_cells.lstm_to_flax, "nnx": flax_cells.lstm_to_flax_optimized},
)  # fmt: skip
GRU = Kind(
    "GRU", GRUParameters, torch.gru_from_torch, torch.gru_to_torch, keras.gru_from_keras,
    keras.gru_to_keras, flax_cells.gru_from_flax,
    {"linen": flax_cells.gru_to_flax, "nnx": flax_cells.gru_to_nnx},
)  # fmt: skip


def from_torch(kind: Kind, source: Any, prefix: str | None) -> list[list[Any]]:
    """Of a module, of its state dict, or of a larger model's."""
    named = torch.named_arrays(source.state_dict() if hasattr(source, "state_dict") else source)
    start, suffix = torch.find_module(named, 0, False, prefix)
    if not suffix:
        return [[kind.from_torch(named, None, prefix=start)]]
    first = f"{start}weight_ih_l"
    directions = (False, True) if f"{first}0_reverse" in named else (False,)
    found = sorted(name for name in named if name.startswith(first))
    count = len(found) // len(directions)
    wanted = [f"{first}{n}{'_reverse' * back}" for n in range(count) for back in directions]
    if found != sorted(wanted):
        raise ValueError(
            "state must hold every layer from 0 on, all in as many directions, got "
            f"{', '.join(found)}"
        )
    return [
        [kind.from_torch(named, number, reverse=reverse, prefix=start) for reverse in directions]
        for number in range(count)
    ]


def to_torch(
    kind: Kind, layers: Layers, prefix: str | None, *, use_bias: bool
) -> dict[str, np.ndarray]:
    """The state dict of the whole module, its names behind ``prefix``."""
    start = f"{prefix.removesuffix('.')}." if prefix else ""
    state: dict[str, np.ndarray] = {}
    for number, directions in enumerate(layers):
        for reverse, parameters in enumerate(directions):
            _check_bias(parameters, use_bias)
            named = kind.to_torch(parameters, number, reverse=bool(reverse))
            state |= {
                f"{start}{name}": array
                for name, array in named.items()
                if use_bias or not name.startswith("bias")
            }
    return state


def from_keras(
    kind: Kind, source: Any, given: Mapping[str, Any], **activations: str
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Of a layer, a Bidirectional, weights, or a list of these; with ``given`` and what they say.

    That is ``merge_mode`` and ``reset_after``.
    """
    is_one = hasattr(source, "get_weights") or (len(source) > 0 and hasattr(source[0], "shape"))
    layers, options = [], dict(given)
    for layer in [source] if is_one else source:
        weights, directions, said = layer, [activations], dict[str, Any]()
        if hasattr(layer, "get_weights"):
            weights, directions, said = keras.read_layer(kind.name, layer)
        elif len(weights) in (4, 6):
            directions = [activations] * 2
        options = _agreed(options, said)
        cell = {name: options[name] for name in ("reset_after",) if name in options}
        size = len(weights) // len(directions)
        layers.append([
            kind.from_keras(weights[n * size : (n + 1) * size], **cell, **each)
            for n, each in enumerate(directions)
        ])  # fmt: skip
    return layers, options


def to_keras(
    kind: Kind, layers: Layers, *, use_bias: bool, **options: Any
) -> list[list[np.ndarray]]:
    """The argument of ``set_weights`` of each layer, or of a Bidirectional."""
    weights = []
    for directions in layers:
        for parameters in directions:
            _check_bias(parameters, use_bias)
        parts = [kind.to_keras(parameters, **options) for parameters in directions]
        weights.append([array for part in parts for array in (part if use_bias else part[:2])])
    return weights


def from_flax(
    kind: Kind, source: Any, given: Mapping[str, Any]
) -> tuple[list[list[Any]], dict[str, Any]]:
    """Of an RNN, a Bidirectional, a cell or a list of these, as nnx modules or parameters."""
    layers, options = [], dict(given)
    for layer in source if isinstance(source, list | tuple) else [source]:
        if isinstance(layer, nnx.Bidirectional):
            if layer.merge_fn in MERGES:
                options = _agreed(options, {"merge_mode": MERGES[layer.merge_fn]})
            elif "merge_mode" not in options:
                raise ValueError(
                    "merge_mode must be given where a Bidirectional has a merge_fn of its own, "
                    f"got {layer.merge_fn}"
                )
            halves = [layer.forward_rnn, layer.backward_rnn]
        elif isinstance(layer, Mapping) and {"forward_rnn", "backward_rnn"} <= set(layer):
            halves = [layer["forward_rnn"], layer["backward_rnn"]]
        else:
            if isinstance(layer, nnx.RNN) and layer.reverse:
                raise ValueError(
                    "source must run forwards, got an RNN with reverse=True: give its cell to "
                    "jaxnets.convert, and reverse=True to jaxnets.kernels"
                )
            halves = [layer]
        layers.append([kind.from_flax(_cell_of(half)) for half in halves])
    return layers, options


def to_flax(kind: Kind, layers: Layers, style: str) -> list[dict[str, Any]]:
    """Of each layer the parameters of an RNN, or of a Bidirectional of two."""
    if style not in kind.to_flax:
        raise ValueError(f"style must be one of {tuple(kind.to_flax)}, got {style!r}")
    trees = []
    for directions in layers:
        cells = [{"cell": kind.to_flax[style](parameters)} for parameters in directions]
        names = ("forward_rnn", "backward_rnn")
        trees.append(cells[0] if len(cells) == 1 else dict(zip(names, cells, strict=True)))
    return trees


def _cell_of(rnn: Any) -> Any:
    if isinstance(rnn, nnx.RNN):
        return rnn.cell
    return rnn["cell"] if isinstance(rnn, Mapping) and "cell" in rnn else rnn


def _agreed(options: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` with what a layer says of them; raises where that is something else."""
    for name, value in said.items():
        if options.get(name, value) != value:
            raise ValueError(
                f"{name} must be one of all layers, and what they say where it is given, got "
                f"{options[name]!r} and {value!r}"
            )
    return {**options, **said}


def _check_bias(parameters: Any, use_bias: bool) -> None:
    biases = {name: a for name, a in parameters._asdict().items() if name.endswith("bias")}
    for name, bias in biases.items():
        if not use_bias and np.asarray(bias).any():
            raise ValueError(f"use_bias must be True where a bias is not 0, got False and a {name}")
