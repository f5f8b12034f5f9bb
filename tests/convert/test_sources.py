"""What people hand to the converters: cells of every kind, models, iterators, half precision."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jaxnets import convert
from jaxnets.kernels import gru, lstm
from tests.recurrence import by_hand

FEATURES, HIDDEN = 3, 5
INPUTS = np.random.default_rng(0).normal(size=(4, 6, FEATURES)).astype(np.float32)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class Tensor:
    """What the converters may ask of PyTorch's tensors, refused where PyTorch refuses it."""

    def __init__(self, values, dtype="float32", *, wants_gradient=False, device="cpu"):
        self.values, self.dtype = values, f"torch.{dtype}"
        self.wants_gradient, self.device = wants_gradient, device

    def _with(self, **changes):
        kept = {"wants_gradient": self.wants_gradient, "device": self.device}
        dtype = changes.pop("dtype", self.dtype.removeprefix("torch."))
        return Tensor(self.values, dtype, **(kept | changes))

    def detach(self):
        return self._with(wants_gradient=False)

    def cpu(self):
        return self._with(device="cpu")

    def float(self):
        return self._with(dtype="float32")

    def numpy(self):
        if self.wants_gradient:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
        if self.device != "cpu":
            raise TypeError(f"can't convert {self.device} device type tensor to numpy.")
        if "bfloat16" in self.dtype:
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self.values.astype(self.dtype.removeprefix("torch."))

    def __array__(self, dtype=None, copy=None):
        return self.numpy()


def torch_state(gates, suffix="_l0", seed=0):
    width = gates * HIDDEN
    return {
        f"weight_ih{suffix}": random(width, FEATURES, seed=seed),
        f"weight_hh{suffix}": random(width, HIDDEN, seed=seed + 1),
        f"bias_ih{suffix}": random(width, seed=seed + 2),
        f"bias_hh{suffix}": random(width, seed=seed + 3),
    }


KINDS = [(convert.lstm_from_torch, 4), (convert.gru_from_torch, 3)]


@pytest.mark.smoke
@pytest.mark.parametrize(("from_torch", "gates"), KINDS)
def test_torch_s_cells_parameters_and_models(from_torch, gates):
    state = torch_state(gates)
    wanted = from_torch(state)
    equal(from_torch(torch_state(gates, suffix="")), wanted)
    equal(from_torch(torch_state(gates, suffix=""), None), wanted)
    equal(from_torch((name, Tensor(a, wants_gradient=True)) for name, a in state.items()), wanted)
    equal(from_torch({name: Tensor(a, device="cuda:0") for name, a in state.items()}), wanted)

    other = {"head.weight": random(2, 2)} | {
        f"decoder.{name}": array for name, array in torch_state(gates, "", seed=9).items()
    }
    model = {f"encoder.rnn.{name}": array for name, array in state.items()}
    equal(from_torch({"head.weight": random(2, 2)} | model), wanted)
    equal(from_torch(other | model, prefix="encoder.rnn"), wanted)
    equal(from_torch(other | model, prefix="encoder.rnn."), wanted)
    assert not np.array_equal(from_torch(other | model, prefix="decoder").bias, wanted.bias)
    with pytest.raises(ValueError, match=r"'encoder\.rnn', 'decoder'"):
        from_torch(other | model)
    with pytest.raises(ValueError, match="weight_ih_l0 of 'encoder', got"):
        from_torch(model, prefix="encoder")


@pytest.mark.parametrize("wrap", [lambda a: a.astype(ml_dtypes.bfloat16), Tensor])
@pytest.mark.parametrize(("from_torch", "gates"), KINDS)
def test_torch_s_bfloat16_stays(from_torch, gates, wrap):
    rounded = {
        name: array.astype(ml_dtypes.bfloat16).astype(np.float32)
        for name, array in torch_state(gates).items()
    }
    half = {
        name: Tensor(array, "bfloat16") if wrap is Tensor else wrap(array)
        for name, array in rounded.items()
    }
    got = from_torch(half)
    assert {array.dtype for array in jax.tree.leaves(got)} == {jnp.dtype(jnp.bfloat16)}
    equal(np.asarray(got.input_kernel, np.float32), rounded["weight_ih_l0"].T)
    float16 = {name: Tensor(array, "float16") for name, array in torch_state(gates).items()}
    assert from_torch(float16).input_kernel.dtype == jnp.float16


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (convert.lstm_to_torch, convert.lstm_from_torch),
        (convert.gru_to_torch, convert.gru_from_torch),
    ],
)
def test_to_torch_s_cells(there, back):
    parameters = back(torch_state(4 if back is convert.lstm_from_torch else 3))
    state = there(parameters, None)
    assert set(state) == {"weight_ih", "weight_hh", "bias_ih", "bias_hh"}
    equal(back(state), parameters)


NNX_CELLS = [
    (nnx.LSTMCell, convert.lstm_from_flax, lstm),
    (nnx.OptimizedLSTMCell, convert.lstm_from_flax, lstm),
    (nnx.OptimizedLSTMCell, convert.lstm_from_flax_optimized, lstm),
    pytest.param(nnx.GRUCell, convert.gru_from_flax, gru, marks=pytest.mark.smoke),
]


@pytest.mark.parametrize(("cell", "from_flax", "run"), NNX_CELLS)
def test_nnx_s_cells_give_the_same_outputs(cell, from_flax, run, cheap_parameters):
    bias = nnx.initializers.normal()
    module = nnx.RNN(cell(FEATURES, HIDDEN, bias_init=bias, rngs=nnx.Rngs(0)))
    state = nnx.state(module.cell)
    parameters = from_flax(module.cell)
    for source in (state, nnx.to_pure_dict(state), {"rngs": {}} | dict(state)):
        equal(from_flax(source), parameters)
    zeros = np.zeros((4, HIDDEN))
    (outputs, _), _ = by_hand((INPUTS, zeros if run is gru else (zeros, zeros), parameters))
    np.testing.assert_allclose(module(INPUTS), outputs, atol=2e-6)


@pytest.mark.smoke
def test_keras_gru_without_bias_and_with_the_reset_before_the_matmul():
    kernel, recurrent, bias = random(FEATURES, 15), random(HIDDEN, 15, seed=1), random(15, seed=2)
    zeros = np.zeros(15, np.float32)
    with_zeros = convert.gru_from_keras([kernel, recurrent, np.stack([zeros, zeros])])
    equal(convert.gru_from_keras([kernel, recurrent]), with_zeros)
    equal(convert.gru_from_keras([kernel, recurrent], reset_after=False), with_zeros)
    before = convert.gru_from_keras([kernel, recurrent, bias], reset_after=False)
    equal(before, convert.gru_from_keras([kernel, recurrent, np.stack([bias, zeros])]))
    again = convert.gru_to_keras(before, reset_after=False)
    equal(again, [kernel, recurrent, bias])


def test_a_bidirectional_s_halves_in_bfloat16():
    weights = [
        array.astype(ml_dtypes.bfloat16)
        for seed in (0, 5)
        for array in (random(FEATURES, 20, seed=seed), random(HIDDEN, 20), random(20))
    ]
    pair = [convert.lstm_from_keras(half) for half in (weights[:3], weights[3:])]
    equal(convert.lstm_to_keras(pair[1]), weights[3:])


def test_strict_modes(strict_modes, cheap_parameters):
    lstm_parameters = convert.lstm_from_torch(torch_state(4))
    gru_parameters = convert.gru_from_torch(torch_state(3))
    equal(convert.lstm_from_keras(convert.lstm_to_keras(lstm_parameters)), lstm_parameters)
    equal(convert.lstm_from_flax(convert.lstm_to_flax(lstm_parameters)), lstm_parameters)
    equal(convert.gru_from_keras(convert.gru_to_keras(gru_parameters)), gru_parameters)
    there = convert.gru_to_flax(gru_parameters)
    equal(convert.gru_to_flax(convert.gru_from_flax(there)), there)
    dense = nnx.Linear(12, 2, rngs=nnx.Rngs(0))
    conv = convert.convolutionalize(dense, (2, 2))
    assert conv(np.ones((1, 3, 2, 3), np.float32)).shape == (1, 2, 1, 2)
