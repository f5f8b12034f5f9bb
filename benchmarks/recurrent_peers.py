"""Our LSTM and GRU, and the same layers of flax, Keras and PyTorch, with the same parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.harness import Case
from benchmarks.workers import WorkerCase
from jaxnets import convert
from jaxnets.kernels import GRUParameters, LSTMParameters, gru, lstm


class Kind(NamedTuple):
    """A kind of layer: how many gates it has, and what it is elsewhere."""

    name: str  # in PyTorch and Keras too
    gates: int
    cell: Callable[..., nnx.Module]
    to_flax: Callable[..., dict]  # the pure state of that cell
    to_torch: Callable[..., dict]
    from_torch: Callable[..., Any]


def _gru_to_flax(parameters: GRUParameters) -> dict:
    """As ``convert.gru_to_nnx``, of traced parameters too."""
    kernel, recurrent, bias, recurrent_bias = parameters
    return {
        "dense_i": {"kernel": kernel, "bias": bias + recurrent_bias},
        "dense_h": {"kernel": recurrent},
    }


LSTM = Kind(
    "LSTM", 4, nnx.OptimizedLSTMCell, convert.lstm_to_flax_optimized, convert.lstm_to_torch,
    convert.lstm_from_torch,
)  # fmt: skip
GRU = Kind("GRU", 3, nnx.GRUCell, _gru_to_flax, convert.gru_to_torch, convert.gru_from_torch)


def problem(batch: int, time: int, features: int, hidden: int, kind: Kind = LSTM):
    """Inputs, parameters and the cotangent of the outputs."""
    rng = np.random.default_rng(0)

    def uniform(*shape):
        return jnp.asarray(rng.uniform(-1, 1, shape) * hidden**-0.5, jnp.float32)

    size = kind.gates * hidden
    arrays = uniform(features, size), uniform(hidden, size), uniform(size)
    parameters: Any = LSTMParameters(*arrays)
    if kind is GRU:  # flax' cell has no recurrent bias
        parameters = GRUParameters(*arrays, jnp.zeros(size))
    inputs = jnp.asarray(rng.normal(size=(batch, time, features)), jnp.float32)
    d_outputs = jnp.asarray(rng.normal(size=(batch, time, hidden)), jnp.float32)
    return inputs, parameters, d_outputs


def flops(batch: int, time: int, features: int, hidden: int, kind: Kind = LSTM) -> float:
    """Of the matmuls, forward and backward."""
    return 3 * 2.0 * batch * time * (features + hidden) * kind.gates * hidden


def step(layer, inputs, parameters, d_outputs):
    """Outputs and the gradients of inputs and parameters."""
    outputs, pull = jax.vjp(layer, inputs, parameters)
    d_inputs, d_parameters = pull(d_outputs)
    return outputs, d_inputs, d_parameters


def ours(inputs, parameters, **options):
    """The outputs of the kernel."""
    layer: Callable = gru if isinstance(parameters, GRUParameters) else lstm
    return layer(inputs, None, parameters, **options)[0]


def flax_layer(features: int, hidden: int, kind: Kind = LSTM):
    """``nnx.RNN`` of the kind's cell as a function of inputs and our parameters."""
    cell: Any = kind.cell(features, hidden, rngs=nnx.Rngs(0))
    parts: Any = nnx.split(nnx.RNN(cell), nnx.Param, ...)
    graph, state, rest = parts

    def layer(inputs, parameters):
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, {"cell": kind.to_flax(parameters)})
        zeros = jnp.zeros((inputs.shape[0], hidden))
        carry = (zeros, zeros) if kind is LSTM else zeros
        return nnx.merge(graph, own, rest)(inputs, initial_carry=carry)

    return layer


def torch_case(arrays, kind: Kind, lengths=None, work=None) -> Case:
    """``nn.LSTM`` or ``nn.GRU``, padded, or over packed sequences where ``lengths`` are given."""
    import torch

    inputs, parameters, d_outputs = arrays
    features, gates = parameters.input_kernel.shape
    layer = getattr(torch.nn, kind.name)(features, gates // kind.gates, batch_first=True)
    state = kind.to_torch(parameters)
    layer.load_state_dict({name: torch.tensor(array) for name, array in state.items()})
    x, cotangent = (torch.from_numpy(np.array(a)) for a in (inputs, d_outputs))

    def run():
        layer.zero_grad()
        own = x.clone().requires_grad_()
        if lengths is None:
            outputs, _ = layer(own)
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                own, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
            )
            outputs, _ = torch.nn.utils.rnn.pad_packed_sequence(
                layer(packed)[0], batch_first=True, total_length=x.shape[1]
            )
        (outputs * cotangent).sum().backward()
        gradients = {name: p.grad.numpy() for name, p in layer.named_parameters()}
        return outputs.detach().numpy(), own.grad.numpy(), gradients

    name = f"PyTorch nn.{kind.name}" if lengths is None else "PyTorch packed sequences"
    return Case(name, run, work)


def comparable(results: Any, kind: Kind) -> Any:
    """The results of a case as arrays that every peer has, in our layout."""
    outputs, d_inputs, d_parameters = results
    if isinstance(d_parameters, dict):
        d_parameters = kind.from_torch(d_parameters)
        if kind is LSTM:  # the gradient of each of PyTorch's two biases is that of their sum
            d_parameters = d_parameters._replace(bias=d_parameters.bias / 2)
    return outputs, d_inputs, d_parameters[:3]


def keras_case(name: str, kind: Kind, shape: tuple[int, ...], work: float) -> WorkerCase:
    """A layer of Keras in a process of its own, since Keras has one backend a process."""
    backend = "jax" if name.endswith("JAX") else "tensorflow"
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return WorkerCase(
        name, "benchmarks.keras_worker", kind.name, *shape, flops=work, environment=environment
    )
