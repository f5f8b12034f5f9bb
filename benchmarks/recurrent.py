"""LSTM forward and backward, beside what people use today: flax, Keras and PyTorch."""

from __future__ import annotations

from functools import partial
from statistics import geometric_mean
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.bars import bar, ratio
from benchmarks.harness import Case, Suite, compiled_case, difference, measure
from benchmarks.limits import Limits
from benchmarks.workers import WorkerCase
from jaxnets import convert
from jaxnets.kernels import LSTMParameters, lstm

# batch, time, features, hidden
SHAPES = [(32, 128, 256, 256), (64, 256, 128, 128), (16, 100, 512, 512), (8, 1000, 12, 64)]
SKIPPED = (64, 256, 128, 128)
LONG = (8, 18_000, 12, 128)
KERAS = ("Keras on JAX", "Keras on TensorFlow")
QUICK_SHAPES = SHAPES[::3]
QUICK = "LSTM: 2 shapes of 4, 3 rounds of 9; no forward alone, no Keras, not 18,000 steps."


def problem(batch: int, time: int, features: int, hidden: int):
    """Inputs, parameters and the cotangent of the outputs."""
    rng = np.random.default_rng(0)

    def uniform(*shape):
        return jnp.asarray(rng.uniform(-1, 1, shape) * hidden**-0.5, jnp.float32)

    parameters = LSTMParameters(
        uniform(features, 4 * hidden), uniform(hidden, 4 * hidden), uniform(4 * hidden)
    )
    inputs = jnp.asarray(rng.normal(size=(batch, time, features)), jnp.float32)
    d_outputs = jnp.asarray(rng.normal(size=(batch, time, hidden)), jnp.float32)
    return inputs, parameters, d_outputs


def flops(batch: int, time: int, features: int, hidden: int) -> float:
    """Of the matmuls, forward and backward."""
    return 3 * 2.0 * batch * time * (features + hidden) * 4 * hidden


def step(layer, inputs, parameters, d_outputs):
    """Outputs and the gradients of inputs and parameters."""
    outputs, pull = jax.vjp(layer, inputs, parameters)
    d_inputs, d_parameters = pull(d_outputs)
    return outputs, d_inputs, d_parameters


def ours(inputs, parameters, **options):
    """The outputs of the kernel."""
    return lstm(inputs, None, parameters, **options)[0]


def flax_layer(features: int, hidden: int):
    """``nnx.RNN(OptimizedLSTMCell)`` as a function of inputs and our parameters."""
    module = nnx.RNN(nnx.OptimizedLSTMCell(features, hidden, rngs=nnx.Rngs(0)))
    parts: Any = nnx.split(module, nnx.Param, ...)
    graph, state, rest = parts

    def layer(inputs, parameters):
        pure = {"cell": convert.lstm_to_flax_optimized(parameters)}
        own = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(own, pure)
        zeros = jnp.zeros((inputs.shape[0], hidden))
        return nnx.merge(graph, own, rest)(inputs, initial_carry=(zeros, zeros))

    return layer


def torch_case(arrays, lengths=None, work=None) -> Case:
    """``nn.LSTM``, padded, or over packed sequences where ``lengths`` are given."""
    import torch

    inputs, parameters, d_outputs = arrays
    features, gates = parameters.input_kernel.shape
    layer = torch.nn.LSTM(features, gates // 4, batch_first=True)
    state = convert.lstm_to_torch(parameters)
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
        d_parameters = convert.lstm_from_torch(gradients)
        # The gradient of each of the two biases is that of their sum.
        d_parameters = d_parameters._replace(bias=d_parameters.bias / 2)
        return outputs.detach().numpy(), own.grad.numpy(), d_parameters

    name = "PyTorch nn.LSTM" if lengths is None else "PyTorch packed sequences"
    return Case(name, run, work)


def keras_case(name: str, shape: tuple[int, ...], work: float) -> WorkerCase:
    """A Keras LSTM in a process of its own, since Keras has one backend a process."""
    backend = "jax" if name.endswith("JAX") else "tensorflow"
    environment = {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    return WorkerCase(name, "benchmarks.keras_worker", *shape, flops=work, environment=environment)


def run(limits: Limits, suite: Suite, peers: dict[str, bool]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars."""
    rows: list[dict] = []
    ratios: dict[str, list[float]] = {}
    errors = []
    quick = suite == "quick"
    rounds = 3 if quick else 9
    for shape in QUICK_SHAPES if quick else SHAPES:
        arrays, work = problem(*shape), flops(*shape)
        cases = [
            compiled_case("ours", partial(step, ours), *arrays, flops=work),
            compiled_case("flax", partial(step, flax_layer(*shape[2:])), *arrays, flops=work),
        ]
        if peers["torch"]:
            cases.append(torch_case(arrays, work=work))
        expected, *others = (jax.block_until_ready(case.run()) for case in cases)
        errors += [difference(other, expected) for other in others]
        if peers["keras"] and (suite == "full" or (suite == "standard" and shape == SHAPES[0])):
            cases += [
                keras_case(name, shape, work)
                for name, peer in zip(KERAS, ("keras", "tensorflow"), strict=True)
                if peers[peer]
            ]
        new = measure(f"LSTM with gradient, {shape}", cases, rounds, limits)
        rows += new
        for case, row in zip(cases, new, strict=True):
            if isinstance(case, WorkerCase):
                case.close()
            ratios.setdefault(row["name"], []).append(ratio(row, new[0]))
        if quick:
            continue
        rows += measure(
            f"LSTM forward, {shape}",
            [
                compiled_case("ours", ours, *arrays[:2], flops=work / 3),
                compiled_case("flax", flax_layer(*shape[2:]), *arrays[:2], flops=work / 3),
            ],
            5, limits,
        )  # fmt: skip
    to_torch = [1 / value for value in ratios.get("PyTorch nn.LSTM", [])]
    torch_mean = [geometric_mean(to_torch)] if to_torch else []
    to_flax = ratios["flax"]
    bars = [
        bar("LSTM with gradient: ours / PyTorch, geometric mean", *torch_mean, at_most=1.0),
        bar("LSTM with gradient: ours / PyTorch, each shape", *to_torch),
        bar(
            "LSTM with gradient: flax / ours, geometric mean",
            geometric_mean(to_flax),
            at_least=1.5,
        ),
        bar("LSTM with gradient: flax / ours, each shape", *to_flax, at_least=1),
        bar("ours against flax and PyTorch, largest relative difference", max(errors)),
    ]
    parts = [_skipping(limits, rounds, peers["torch"])]
    if not quick:
        parts.append(_long(limits))
    for new, new_bars in parts:
        rows += new
        bars += new_bars
    return rows, bars


def quarter_lengths(batch: int, time: int) -> np.ndarray:
    """Lengths of an exponential distribution, the longest ``time`` and the mean a quarter of it."""
    shape = -np.log1p(-(np.arange(batch) + 0.5) / batch)

    def scaled(mean):
        lengths = np.clip(np.rint(mean * shape), 1, time).astype(np.int64)
        lengths[-1] = time
        return lengths

    # Clipping and the one longest row move the mean, so the scale is searched for.
    scale = max(
        (mean for mean in np.linspace(1, time, 1000) if scaled(mean).mean() <= time / 4), default=1
    )
    return np.random.default_rng(0).permutation(scaled(scale))


def _skipping(limits: Limits, rounds: int, torch: bool) -> tuple[list[dict], list[dict]]:
    batch, time = SKIPPED[:2]
    inputs, parameters, d_outputs = problem(*SKIPPED)
    lengths = quarter_lengths(batch, time)
    within = jnp.arange(time)[None, :, None] < lengths[:, None, None]
    arrays = (inputs, parameters, d_outputs * within)
    padded = partial(ours, lengths=jnp.asarray(lengths, jnp.int32))
    cases = [
        compiled_case("without lengths", partial(step, ours), *arrays),
        compiled_case("with lengths", partial(step, padded), *arrays),
    ]
    if torch:
        cases.append(torch_case(arrays, lengths=lengths))
    group = f"padding skipped: mean length {lengths.mean():.0f} of {time}"
    rows = measure(group, cases, rounds, limits)
    packed = [ratio(rows[2], rows[1])] if torch else []
    return rows, [
        bar(
            "mean length a quarter: with / without lengths, time",
            ratio(rows[1], rows[0]),
            at_most=0.5,
        ),
        bar("the same: PyTorch packed sequences / ours with lengths, time", *packed),
    ]


def _long(limits: Limits) -> tuple[list[dict], list[dict]]:
    arrays = problem(*LONG)
    cases = [
        compiled_case("all gates kept", partial(step, partial(ours, remat=False)), *arrays),
        compiled_case("recomputed", partial(step, partial(ours, remat=True)), *arrays),
        compiled_case("chosen by shape", partial(step, ours), *arrays),
        compiled_case("flax", partial(step, flax_layer(*LONG[2:])), *arrays),
    ]
    rows = measure(f"long sequences, {LONG}", cases, 3, limits)
    memory = [row["extra_info"]["temp_bytes"] for row in rows]
    return rows, [
        bar(
            "18,000 steps: all gates kept / recomputed, temporary memory",
            memory[0] / memory[1],
            at_least=20,
        ),
        bar(
            "18,000 steps: recomputed / all gates kept, time",
            ratio(rows[1], rows[0]),
            at_most=1.4,
        ),
    ]
