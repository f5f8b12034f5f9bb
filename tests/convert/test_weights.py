"""Weights go out to other libraries and come back as they were; flax runs here, beside us."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxnets import convert
from jaxnets.kernels import GRUParameters, LSTMParameters
from tests.inputs import on_device
from tests.recurrence import by_hand

FEATURES, HIDDEN = 3, 5
pytestmark = pytest.mark.usefixtures("cheap_parameters")


def random(seed, *shape):
    return on_device(np.random.default_rng(seed).normal(size=shape), np.float32)


INPUTS = random(0, 4, 6, FEATURES)


def lstm_parameters(projection=None):
    return LSTMParameters(
        random(1, FEATURES, 4 * HIDDEN),
        random(2, projection or HIDDEN, 4 * HIDDEN),
        random(3, 4 * HIDDEN),
        random(4, HIDDEN, projection) if projection else None,
    )


def gru_parameters():
    return GRUParameters(
        random(1, FEATURES, 3 * HIDDEN),
        random(2, HIDDEN, 3 * HIDDEN),
        random(3, 3 * HIDDEN),
        random(4, 3 * HIDDEN),
    )


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (convert.lstm_to_flax, convert.lstm_from_flax),
        (convert.lstm_to_flax_optimized, convert.lstm_from_flax_optimized),
        (convert.lstm_to_keras, convert.lstm_from_keras),
        (convert.lstm_to_torch, convert.lstm_from_torch),
    ],
)
def test_an_lstm_goes_there_and_back(there, back):
    equal(back(there(lstm_parameters())), lstm_parameters())


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (convert.gru_to_keras, convert.gru_from_keras),
        (convert.gru_to_torch, convert.gru_from_torch),
    ],
)
def test_a_gru_goes_there_and_back(there, back):
    equal(back(there(gru_parameters())), gru_parameters())


def test_a_projection_and_the_other_direction_go_to_pytorch_and_back():
    parameters = lstm_parameters(projection=2)
    state = convert.lstm_to_torch(parameters, layer=1, reverse=True)
    assert "weight_hr_l1_reverse" in state
    equal(convert.lstm_from_torch(state, layer=1, reverse=True), parameters)


def test_no_bias_is_a_bias_of_zeros():
    state = {k: v for k, v in convert.lstm_to_torch(lstm_parameters()).items() if "bias" not in k}
    assert bool((convert.lstm_from_torch(state).bias == 0).all())
    assert bool(
        (convert.lstm_from_keras(convert.lstm_to_keras(lstm_parameters())[:2]).bias == 0).all()
    )


@pytest.mark.parametrize(
    "cell", [pytest.param(linen.LSTMCell, marks=pytest.mark.smoke), linen.OptimizedLSTMCell]
)
def test_linen_s_lstm_gives_the_same_outputs(cell):
    layer = linen.RNN(cell(HIDDEN))
    params = convert.lstm_to_flax(lstm_parameters())
    expected = layer.apply({"params": {"cell": params}}, INPUTS)
    zeros = np.zeros((4, HIDDEN))
    (outputs, _), _ = by_hand((INPUTS, (zeros, zeros), convert.lstm_from_flax(params)))
    np.testing.assert_allclose(expected, outputs, atol=2e-6)
    made = layer.init(jax.random.key(0), INPUTS)["params"]["cell"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
    equal(convert.lstm_to_flax(convert.lstm_from_flax(made)), made)


def test_linen_s_gru_gives_the_same_outputs():
    layer = linen.RNN(linen.GRUCell(HIDDEN))
    params = convert.gru_to_flax(gru_parameters())
    (outputs, _), _ = by_hand((INPUTS, np.zeros((4, HIDDEN)), gru_parameters()))
    expected = layer.apply({"params": {"cell": params}}, INPUTS)
    np.testing.assert_allclose(expected, outputs, atol=2e-6)
    made = layer.init(jax.random.key(0), INPUTS)["params"]["cell"]
    equal(convert.gru_to_flax(convert.gru_from_flax(made)), made)


def test_what_the_others_do_not_have_is_refused():
    projected = lstm_parameters(projection=2)
    peepholes = lstm_parameters()._replace(peepholes=jnp.ones((3, HIDDEN)))
    for there in (convert.lstm_to_flax, convert.lstm_to_flax_optimized, convert.lstm_to_keras):
        with pytest.raises(ValueError, match="got projection"):
            there(projected)
    with pytest.raises(ValueError, match="got peepholes"):
        convert.lstm_to_torch(peepholes)
    with pytest.raises(ValueError, match="reset_after=True"):
        convert.gru_from_keras([np.ones((3, 6)), np.ones((2, 6)), np.ones(6)])
