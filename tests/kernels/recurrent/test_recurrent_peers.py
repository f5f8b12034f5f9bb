"""LSTM and GRU against PyTorch's and Keras's own numbers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import convert
from jaxnets.kernels import gru, lstm, recurrent_layers
from tests.recurrence import steps
from tests.tape import array_of, concatenate, gradients, stack, tracked

FIGURES = np.load(Path(__file__).parents[2] / "data" / "recurrent.npz")


def torch_layers(case, group="weights"):
    from_torch = convert.gru_from_torch if case == "torch_gru" else convert.lstm_from_torch
    prefix = f"{case}/{group}/"
    state = {k.removeprefix(prefix): FIGURES[k] for k in FIGURES.files if k.startswith(prefix)}
    return [[from_torch(state, layer, reverse=back) for back in (False, True)] for layer in (0, 1)]


def flat(layers):
    return [direction for layer in layers for direction in layer]


def assert_results(case, outputs, ends):
    """Of the last layer, and of every direction."""
    np.testing.assert_allclose(outputs, FIGURES[f"{case}/outputs"], atol=1e-13)
    if case == "torch_gru":
        np.testing.assert_allclose(np.stack(ends), FIGURES[f"{case}/hidden"], atol=1e-13)
        return
    for name, each in zip(("memory", "hidden"), zip(*ends, strict=True), strict=True):
        np.testing.assert_allclose(np.stack(each), FIGURES[f"{case}/{name}"], atol=1e-13)


def assert_gradients(case, d_inputs, d_layers):
    np.testing.assert_allclose(d_inputs, FIGURES[f"{case}/d_inputs"], atol=1e-13)
    expected = torch_layers(case, "gradients")
    for direction, theirs in zip(flat(d_layers), flat(expected), strict=True):
        if case != "torch_gru":  # each of PyTorch's two biases gets the gradient of their sum
            theirs = theirs._replace(bias=theirs.bias / 2)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12), direction, theirs)


@pytest.mark.parametrize("case", ["torch_lstm", "torch_projection", "torch_gru"])
def test_by_hand_it_is_pytorch_s(x64, case):
    """What all implementations are compared with, and its gradients."""
    inputs, layers = tracked((FIGURES["inputs"], torch_layers(case)))
    outputs, ends = inputs, []
    for layer in layers:
        each = []
        for parameters, reverse in zip(layer, (False, True), strict=True):
            c, h = tracked(
                [
                    np.zeros((len(inputs.array), parameters.recurrent_kernel.array.shape[n] // by))
                    for n, by in ((1, 4), (0, 1))
                ]
            )
            carry = h if case == "torch_gru" else (c, h)
            result, end = steps(
                outputs, carry, parameters, lengths=FIGURES["lengths"], reverse=reverse
            )
            each.append(result)
            ends.append(end)
        outputs = concatenate(each)
    assert_results(case, outputs.array, jax.tree.map(array_of, ends))
    hidden = stack([end if case == "torch_gru" else end[1] for end in ends], 0)
    cotangents = np.cos(outputs.array), 2 * hidden.array
    assert_gradients(case, *gradients((outputs, hidden), cotangents, (inputs, layers)))


@pytest.mark.parametrize(
    ("case", "implementation", "derive"),
    [
        ("torch_lstm", "scan", False),  # the projection's: tests/layers
        ("torch_gru", "scan", False),
        ("torch_projection", "reference", True),
    ],
)
def test_pytorch_s_packed_bidirectional_layers(x64, loops, case, implementation, derive):
    inputs, lengths = jnp.asarray(FIGURES["inputs"]), jnp.asarray(FIGURES["lengths"])

    def loss(inputs, layers):
        outputs, carries = recurrent_layers(
            inputs, None, layers, lengths=lengths, implementation=implementation
        )
        ends = flat(carries)
        hidden = jnp.stack([end if case == "torch_gru" else end[1] for end in ends])
        return jnp.sin(outputs).sum() + jnp.square(hidden).sum(), (outputs, ends)

    layers = torch_layers(case)
    run = jax.value_and_grad(loss, (0, 1), has_aux=True) if derive else loss
    if not derive:
        _, results = jax.jit(run)(inputs, layers)
        assert_results(case, *results)
        return
    (_, results), found = jax.jit(run)(inputs, layers)
    assert_results(case, *results)
    assert_gradients(case, *found)


@pytest.mark.parametrize("case", ["keras_lstm", "keras_gru"])
def test_keras_s_masked_layer(case):
    weights = [FIGURES[f"{case}/weights/{i}"] for i in range(3)]
    inputs = jnp.asarray(FIGURES["inputs"], jnp.float32)
    lengths = jnp.asarray(FIGURES["lengths"])
    if case == "keras_lstm":
        outputs, (c, h) = lstm(inputs, None, convert.lstm_from_keras(weights), lengths=lengths)
        np.testing.assert_allclose(c, FIGURES[f"{case}/memory"], atol=1e-6)
    else:
        outputs, h = gru(inputs, None, convert.gru_from_keras(weights), lengths=lengths)
    np.testing.assert_allclose(outputs, FIGURES[f"{case}/outputs"], atol=1e-6)
    np.testing.assert_allclose(h, FIGURES[f"{case}/hidden"], atol=1e-6)
