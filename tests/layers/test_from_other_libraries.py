"""Whole models of other libraries as modules here: by their own numbers, and back again."""

from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen, nnx

from jaxnets.convert import (
    carries_from_keras,
    carries_from_torch,
    carries_to_keras,
    carries_to_torch,
    gru_from_torch,
    lstm_from_flax,
    lstm_from_torch,
)
from jaxnets.layers import GRU, LSTM, Embedding, OutputProjection

pytestmark = pytest.mark.usefixtures("cheap_parameters")

FIGURES = np.load(Path(__file__).parents[1] / "data" / "recurrent.npz")
FEATURES, HIDDEN = 3, 5
INPUTS = np.random.default_rng(0).normal(size=(2, 4, FEATURES)).astype(np.float32)
# Two layers of seven steps in both directions; each step rounds sums of a dozen terms.
CLOSE = {
    np.dtype(np.float32): {"rtol": 0, "atol": 5e-6},
    np.dtype(float): {"rtol": 0, "atol": 1e-13},
}


def figures(case, part=""):
    start = f"{case}/{part}"
    return {name.removeprefix(start): FIGURES[name] for name in FIGURES if name.startswith(start)}


def near(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **CLOSE[np.asarray(b).dtype]),
        actual,
        expected,
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def summed(state):
    """``state`` as it comes back: all of an LSTM's bias in ``bias_ih``."""
    for name in [name for name in state if "bias_ih" in name]:
        other = name.replace("bias_ih", "bias_hh")
        state = state | {name: state[name] + state[other], other: 0 * state[other]}
    return state


@pytest.mark.parametrize("case", ["torch_lstm", "torch_projection", "torch_gru"])
def test_torch_s_two_layers_of_two_directions(x64, loops, case):
    kind, weights = (GRU if "gru" in case else LSTM), figures(case, "weights/")
    model = {f"encoder.rnn.{name}": array for name, array in weights.items()}
    others = {f"decoder.{name}": array + 1 for name, array in weights.items()}
    layer = kind.from_torch(model | others, prefix="encoder.rnn", dropout=0.5, rngs=nnx.Rngs(0))
    one = gru_from_torch if kind is GRU else lstm_from_torch
    equal(
        layer.parameters(),
        [[one(weights, n, reverse=back) for back in (False, True)] for n in (0, 1)],
    )
    if case == "torch_projection":  # the others run where the kernels are tested
        found = figures(case)
        states = found["hidden"], found["memory"]
        outputs, carries = nnx.jit(
            lambda layer, inputs: layer(inputs, lengths=FIGURES["lengths"], deterministic=True)
        )(layer, FIGURES["inputs"])
        near(outputs, found["outputs"])
        near(carries_to_torch(carries), states)
        near(carries, carries_from_torch(states, bidirectional=True))
    there = layer.to_torch(prefix="encoder.rnn.")
    equal(there, model if kind is GRU else summed(model))
    equal(kind.from_torch(there).parameters(), layer.parameters())


def test_keras_s_two_layers_of_two_directions(loops):
    found, states = figures("keras_bidirectional"), figures("keras_bidirectional", "states/")
    weights = [[found[f"weights/{layer}/{i}"] for i in range(6)] for layer in range(2)]
    layer = LSTM.from_keras(weights, merge_mode="sum")
    outputs, carries = nnx.jit(lambda layer, inputs: layer(inputs))(
        layer, FIGURES["inputs"].astype(np.float32)
    )
    near(outputs, found["outputs"])
    for number, directions in enumerate(carries):
        of_keras = [states[f"{number}/{i}"] for i in range(4)]
        near(carries_to_keras(directions), of_keras)
        near(directions, carries_from_keras(of_keras, bidirectional=True))
    equal(layer.to_keras(), weights)
    with pytest.raises(ValueError, match="merge_mode must be 'concat' for PyTorch, got 'sum'"):
        layer.to_torch()


def test_keras_s_single_layers():
    for kind, case in ((LSTM, "keras_lstm"), (GRU, "keras_gru")):
        weights = [figures(case, "weights/")[str(i)] for i in range(3)]
        layer = kind.from_keras(weights)
        equal(layer.to_keras(), [weights])
        equal(kind.from_keras([weights]).parameters(), layer.parameters())


def test_no_bias_goes_and_comes():
    kernels = [random(FEATURES, 20), random(HIDDEN, 20, seed=1)]
    layer = LSTM.from_keras(kernels * 2)
    equal(layer.to_keras(use_bias=False), [kernels * 2])
    state = layer.to_torch(use_bias=False)
    assert sorted(state) == [
        "weight_hh_l0", "weight_hh_l0_reverse", "weight_ih_l0", "weight_ih_l0_reverse"
    ]  # fmt: skip
    equal(LSTM.from_torch(state).parameters(), layer.parameters())
    layer.layers[0][1].bias[...] += 1
    for there in (layer.to_keras, layer.to_torch):
        with pytest.raises(ValueError, match="use_bias must be True where a bias is not 0"):
            there(use_bias=False)


def test_bfloat16_and_cells_of_torch():
    half = {
        name: array.astype(ml_dtypes.bfloat16)
        for name, array in figures("torch_gru", "weights/").items()
    }
    layer = GRU.from_torch(half)
    assert {array.dtype for array in jax.tree.leaves(nnx.state(layer))} == {jnp.dtype("bfloat16")}
    equal(layer.to_torch(), half)
    cell = {name.removesuffix("_l0"): a for name, a in half.items() if name.endswith("_l0")}
    equal(GRU.from_torch(cell).parameters(), [[layer.parameters()[0][0]]])

    class Module:
        def state_dict(self):
            return half

    equal(GRU.from_torch(Module(), dtype="float32").parameters(), layer.parameters())


def rnn(cell, seed=0, **options):
    names = ("kernel_init", "recurrent_kernel_init", "bias_init")
    draws = dict.fromkeys(names, lambda _, shape, dtype: jnp.asarray(random(*shape, seed=seed)))
    return nnx.RNN(cell(FEATURES, HIDDEN, **draws, rngs=nnx.Rngs(seed), **options))


def test_flax_s_modules_and_parameters():
    pair = [rnn(nnx.LSTMCell, seed) for seed in range(2)]
    layer = LSTM.from_flax(nnx.Bidirectional(*pair, merge_fn=jnp.add))
    assert layer.merge_mode == "sum"
    equal(layer.parameters(), [[lstm_from_flax(half.cell) for half in pair]])
    state = nnx.state(nnx.Bidirectional(*pair), nnx.Param)
    equal(LSTM.from_flax(state).parameters(), layer.parameters())
    equal(LSTM.from_flax(layer.to_flax(), merge_mode="sum").parameters(), layer.parameters())
    optimized = rnn(nnx.OptimizedLSTMCell, 2)
    nnx.update(optimized, LSTM.from_flax(pair[0]).to_flax("nnx")[0])
    equal(LSTM.from_flax(optimized).parameters()[0], LSTM.from_flax(pair[0].cell).parameters()[0])

    stack = GRU.from_torch(figures("torch_gru", "weights/"))
    params = stack.to_flax()
    equal(GRU.from_flax(params).to_flax(), params)  # flax adds up the biases of r and z
    made = jax.eval_shape(linen.RNN(linen.GRUCell(HIDDEN)).init, jax.random.key(0), INPUTS)
    assert jax.tree.map(jnp.shape, made["params"]) == jax.tree.map(
        jnp.shape, params[0]["backward_rnn"]
    )
    nnx_gru = rnn(nnx.GRUCell)
    there = GRU.from_flax(nnx_gru).to_flax("nnx")
    equal(there[0], nnx.to_pure_dict(nnx.state(nnx_gru, nnx.Param)))


def test_torch_itself():
    torch = pytest.importorskip("torch")
    inputs = torch.from_numpy(INPUTS)
    for options in ({"bias": False}, {"proj_size": 2}):
        module = torch.nn.LSTM(
            FEATURES, HIDDEN, num_layers=2, bidirectional=True, batch_first=True, **options
        )
        layer = LSTM.from_torch(module)
        with torch.no_grad():
            outputs, (h_n, c_n) = module(inputs)
        found, carries = layer(INPUTS)
        near(found, outputs.numpy())
        near(carries_to_torch(carries), (h_n.numpy(), c_n.numpy()))
        near(carries_from_torch((h_n, c_n), bidirectional=True), carries)
        state = layer.to_torch(use_bias="bias" not in options)
        module.load_state_dict({name: torch.from_numpy(a.copy()) for name, a in state.items()})
        half = LSTM.from_torch(module.bfloat16())
        assert half.layers[1][1].recurrent_kernel.dtype == jnp.bfloat16
    linear = torch.nn.Linear(4, 11)
    near(
        OutputProjection.from_torch(linear)(random(2, 4)),
        linear(torch.from_numpy(random(2, 4))).detach().numpy(),
    )
    table = torch.nn.Embedding(11, 4)
    equal(Embedding.from_torch(table)([3]), table(torch.tensor([3])).detach().numpy())


def test_keras_itself():
    keras = pytest.importorskip("keras")
    layers = [
        keras.layers.Bidirectional(
            keras.layers.GRU(HIDDEN, return_sequences=True, return_state=True), merge_mode="sum"
        ),
        keras.layers.GRU(HIDDEN, return_sequences=True, return_state=True, use_bias=False),
    ]
    outputs, *below = layers[0](INPUTS)
    outputs, *above = layers[1](outputs)
    layer = GRU.from_keras(layers)
    found, carries = layer(INPUTS)
    near(found, np.asarray(outputs))
    near(carries[0], carries_from_keras([np.asarray(a) for a in below], bidirectional=True))
    near(carries_to_keras(carries[1]), [np.asarray(a) for a in above])
    layers[0].set_weights(layer.to_keras()[0])
    layers[1].set_weights(layer.to_keras(use_bias=False)[1])
    dense = keras.layers.Dense(11, activation="softmax")
    probabilities = dense(random(2, 4))
    near(
        jax.nn.softmax(OutputProjection.from_keras(dense)(random(2, 4))), np.asarray(probabilities)
    )
    table = keras.layers.Embedding(11, 4)
    equal(np.asarray(table(np.array([3]))), Embedding.from_keras(table)([3]))
