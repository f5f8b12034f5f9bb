"""Recurrent layers and convolutions of any shape, dtype or size: the right numbers, or an error
that names an argument; see ``fuzzing.py``."""

import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from jaxnets.kernels import (
    GRUParameters,
    LSTMParameters,
    compiling_for,
    depthwise_conv,
    fold_batch_norm,
    gru,
    lstm,
    pointwise_conv,
    recurrent_layers,
)
from tests.exact_pointwise import sigmoid
from tests.inputs import on_device
from tests.reliability.fuzzing import EXAMPLES, FLOATS, array, fuzzed, holds, mixed, spoiled

pytestmark = pytest.mark.usefixtures("users_checks")


@st.composite
def sequences(draw):
    mix = draw(
        mixed((5, 4, 4, 5), dtype=FLOATS, lengths=(False, True, True), reverse=(False, True, False))
    )
    (batch, time, features, hidden), dtype = mix["sizes"], mix["dtype"]
    lengths = on_device(np.random.default_rng(batch).integers(0, time + 1, batch))
    return {
        "inputs": array(draw, batch, time, features, dtype=dtype),
        "input_kernel": array(draw, features, 4 * hidden, dtype=dtype, seed=10),
        "recurrent_kernel": array(draw, hidden, 4 * hidden, dtype=dtype, seed=20),
        "bias": array(draw, 4 * hidden, dtype=dtype, seed=30),
        "lengths": lengths if mix["lengths"] else None,
        "reverse": mix["reverse"],
    }


def plain_recurrence(step, inputs, widths, lengths, reverse):
    outputs = np.zeros((*inputs.shape[:2], widths))
    for row in range(len(inputs)):
        length = inputs.shape[1] if lengths is None else int(lengths[row])
        state = None
        for t in range(length - 1, -1, -1) if reverse else range(length):
            state = step(inputs[row, t], state)
            outputs[row, t] = state[-1]
    return outputs


def plain_lstm(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
    hidden = recurrent_kernel.shape[0]

    def step(x, state):
        c, h = state or (np.zeros(hidden), np.zeros(hidden))
        i, f, g, o = np.split(x @ input_kernel + h @ recurrent_kernel + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return c, sigmoid(o) * np.tanh(c)

    return plain_recurrence(step, inputs, hidden, lengths, reverse)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_lstm(platform):
    implementation = None if platform == "cpu" else "pallas"

    @fuzzed(spoiled(sequences()), EXAMPLES if platform == "cpu" else EXAMPLES // 3)
    def run(arguments):
        def outputs(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
            parameters = LSTMParameters(input_kernel, recurrent_kernel, bias)
            with compiling_for(platform, interpret=platform != "cpu"):
                return lstm(
                    inputs, None, parameters, lengths=lengths, reverse=reverse,
                    implementation=implementation,
                )[0]  # fmt: skip

        holds(outputs, plain_lstm, arguments, 12)

    run()


@st.composite
def gru_sequences(draw):
    arguments = draw(sequences())
    width = arguments["bias"].shape[0] // 4 * 3
    for name in ("input_kernel", "recurrent_kernel", "bias"):
        arguments[name] = on_device(np.asarray(arguments[name])[..., :width])
    backwards = np.asarray(arguments["bias"])[::-1]
    return {**arguments, "recurrent_bias": on_device(backwards)}


@fuzzed(spoiled(gru_sequences()), EXAMPLES // 2)
def test_gru(arguments):
    def outputs(inputs, lengths, reverse, **parameters):
        return gru(inputs, None, GRUParameters(**parameters), lengths=lengths, reverse=reverse)[0]

    def plain(inputs, input_kernel, recurrent_kernel, bias, recurrent_bias, lengths, reverse):
        hidden = recurrent_kernel.shape[0]

        def step(x, state):
            h = np.zeros(hidden) if state is None else state[0]
            x_r, x_z, x_n = np.split(x @ input_kernel + bias, 3)
            h_r, h_z, h_n = np.split(h @ recurrent_kernel + recurrent_bias, 3)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            return ((1 - z) * np.tanh(x_n + r * h_n) + z * h,)

        return plain_recurrence(step, inputs, hidden, lengths, reverse)

    holds(outputs, plain, arguments, 12)


@st.composite
def maps(draw, groups=(1, 1, 2, 1)):
    mix = draw(
        mixed(
            (3, 5, 5), spatial=((), (5,), (3, 4), (2, 3, 2)), dtype=FLOATS, bias=(False, True),
            groups=groups, strides=(1, 2, 3), activation=(None, "relu", "tanh"),
        )
    )  # fmt: skip
    (batch, features, out), groups, dtype = mix["sizes"], mix["groups"], mix["dtype"]
    return {
        "inputs": array(draw, batch, *mix["spatial"], features * groups, dtype=dtype),
        "kernel": array(draw, features, out * groups, dtype=dtype, seed=10),
        "bias": array(draw, out * groups, seed=20) if mix["bias"] else None,
        **{name: mix[name] for name in ("groups", "strides", "activation")},
    }


def plain_pointwise(inputs, kernel, bias, groups, strides, activation):
    inputs = inputs[(slice(None), *[slice(None, None, strides)] * (inputs.ndim - 2))]
    parts = zip(np.split(inputs, groups, -1), np.split(kernel, groups, -1), strict=True)
    total = np.concatenate([x @ w for x, w in parts], -1) + (0 if bias is None else bias)
    return {None: total, "relu": np.maximum(total, 0), "tanh": np.tanh(total)}[activation]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_pointwise_conv(platform):
    on_cpu = platform == "cpu"
    implementation = None if on_cpu else "pallas"
    arguments = maps() if on_cpu else maps(groups=(1,))

    @fuzzed(spoiled(arguments), EXAMPLES if on_cpu else EXAMPLES // 2, mixes=4)
    def run(arguments):
        def outputs(**given):
            with compiling_for(platform, interpret=not on_cpu):
                return pointwise_conv(**given, implementation=implementation)

        holds(outputs, plain_pointwise, arguments, 5)

    run()


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_pointwise_conv_of_no_positions_in_the_kernel(platform):
    def total(inputs, kernel):
        with compiling_for(platform, interpret=True):
            return pointwise_conv(inputs, kernel, activation="silu", implementation="pallas").sum()

    arrays = np.zeros((0, 3), np.float32), np.ones((3, 4), np.float32)
    value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(*arrays)
    assert value == 0
    assert [gradient.shape for gradient in gradients] == [(0, 3), (3, 4)]


@st.composite
def windows(draw):
    mix = draw(
        mixed((6, 3, 3), axes=(1, 2), strides=(1, 2), padding=("SAME", "VALID"), wide=(False, True))
    )
    (size, channels, width), axes = mix["sizes"], mix["axes"]
    width = width if mix["wide"] else 1
    return {
        "inputs": array(draw, 2, *[size] * axes, channels),
        "kernel": array(draw, *[width] * axes, channels, seed=10),
        "strides": mix["strides"],
        "padding": mix["padding"],
    }


def plain_depthwise(inputs, kernel, strides, padding):
    window, sizes = kernel.shape[:-1], inputs.shape[1:-1]
    if padding == "SAME":
        outs = [-(-n // strides) for n in sizes]
        total = [
            max((o - 1) * strides + w - n, 0) for o, w, n in zip(outs, window, sizes, strict=True)
        ]
        inputs = np.pad(inputs, [(0, 0), *[(p // 2, p - p // 2) for p in total], (0, 0)])
    else:
        outs = [(n - w) // strides + 1 for n, w in zip(sizes, window, strict=True)]
    result = np.zeros((inputs.shape[0], *outs, inputs.shape[-1]))
    for place in np.ndindex(*outs):
        patch = tuple(
            slice(p * strides, p * strides + w) for p, w in zip(place, window, strict=True)
        )
        axes = tuple(range(1, len(window) + 1))
        result[(slice(None), *place)] = (inputs[(slice(None), *patch)] * kernel).sum(axes)
    return result


@fuzzed(spoiled(windows()), EXAMPLES // 2)
def test_depthwise_conv(arguments):
    holds(depthwise_conv, plain_depthwise, arguments, 9)


@st.composite
def norms(draw):
    mix = draw(mixed((4, 5), bias=(False, True)))
    features, out = mix["sizes"]
    return {
        "kernel": array(draw, features, out),
        "bias": array(draw, out, seed=10) if mix["bias"] else None,
        "mean": array(draw, out, seed=20),
        "variance": on_device(np.abs(array(draw, out, seed=30)) + np.float32(0.5)),
        "scale": array(draw, out, seed=40),
        "offset": array(draw, out, seed=50),
    }


@fuzzed(spoiled(norms()))
def test_fold_batch_norm(arguments):
    def plain(kernel, bias, mean, variance, scale, offset):
        factor = scale / np.sqrt(variance + 1e-5)
        return kernel * factor, ((0 if bias is None else bias) - mean) * factor + offset

    holds(jax.jit(fold_batch_norm), plain, arguments, 2)


@fuzzed(spoiled(sequences()), EXAMPLES // 2)
def test_recurrent_layers(arguments):
    """Two directions of one layer are its two ways, side by side."""

    def outputs(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
        parameters = LSTMParameters(input_kernel, recurrent_kernel, bias)
        directions = [parameters, parameters] if reverse else [parameters]
        return recurrent_layers(inputs, None, [directions], lengths=lengths)[0]

    def plain(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
        ways = [
            plain_lstm(inputs, input_kernel, recurrent_kernel, bias, lengths, way)
            for way in ((False, True) if reverse else (False,))
        ]
        return np.concatenate(ways, axis=-1)

    holds(outputs, plain, arguments, 12)
