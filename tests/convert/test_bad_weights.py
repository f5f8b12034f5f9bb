"""Weights that are not one cell's, or another cell's, are refused by name."""

import numpy as np
import pytest
from flax import linen, nnx

from jaxnets import convert
from jaxnets.kernels import GRUParameters, LSTMParameters

FEATURES, HIDDEN = 3, 5


def keras(gates, *, features=FEATURES, hidden=HIDDEN):
    bias = np.zeros((2, gates * hidden) if gates == 3 else gates * hidden)
    return [np.ones((features, gates * hidden)), np.ones((hidden, gates * hidden)), bias]


def torch(gates, **changes):
    width = gates * HIDDEN
    shapes = {
        "weight_ih_l0": (width, FEATURES),
        "weight_hh_l0": (width, HIDDEN),
        "bias_ih_l0": (width,),
        "bias_hh_l0": (width,),
    }
    return {name: np.ones(shape) for name, shape in (shapes | changes).items() if shape}


def flax(gates="ifgo", **changes):
    params = {f"i{gate}": {"kernel": np.ones((FEATURES, HIDDEN))} for gate in gates}
    params |= {
        f"h{gate}": {"kernel": np.ones((HIDDEN, HIDDEN)), "bias": np.ones(HIDDEN)} for gate in gates
    }
    return {name: value for name, value in (params | changes).items() if value is not None}


def dense(gates):
    width = gates * HIDDEN
    return {
        "dense_i": {"kernel": np.ones((FEATURES, width))},
        "dense_h": {"kernel": np.ones((HIDDEN, width)), "bias": np.ones(width)},
    }


LSTM, GRU = keras(4), keras(3)
KERAS = {
    r"got 6 arrays: of a Bidirectional layer": (4, LSTM + LSTM),
    r"got 4 arrays: of a Bidirectional layer": (3, GRU[:2] + GRU[:2]),
    r"got 1 arrays": (4, LSTM[:1]),
    r"got 0 arrays": (3, []),
    r"got 12 arrays": (4, [*LSTM * 4]),
    r"weights\[1\] must be .* got 15 for hidden = 5, which is a GRU's": (4, GRU),
    r"weights\[1\] must be .* got 20 for hidden = 5, which is an LSTM's": (3, LSTM),
    r"got 5 for hidden = 5, which is a plain RNN's": (3, keras(1)),
    r"weights\[0\] must be \[features, 4 \* hidden\] = \(3, 20\), got shape \(3, 24\)": (
        4, [np.ones((3, 24)), *LSTM[1:]],
    ),
    r"weights\[2\] must be \[4 \* hidden\] = \(20,\), got shape \(19,\)": (
        4, [*LSTM[:2], np.ones(19)],
    ),
    r"weights\[2\] must be \[2, 3 \* hidden\] = \(2, 15\), got shape \(1, 15\)": (
        3, [*GRU[:2], np.ones((1, 15))],
    ),
    r"bias of two halves, got shape \(40,\): of a CuDNNLSTM": (4, [*LSTM[:2], np.ones(40)]),
    r"of a CuDNNGRU": (3, [*GRU[:2], np.ones(30)]),
    r"weights\[0\] must be \[features, 4 \* hidden\], got shape \(20,\)": (4, LSTM[::-1]),
    r"weights\[0\] must be .* got shape \(0, 20\)": (4, [np.ones((0, 20)), *LSTM[1:]]),
}  # fmt: skip


@pytest.mark.parametrize("message", KERAS)
def test_keras(message):
    gates, weights = KERAS[message]
    with pytest.raises(ValueError, match=message):
        (convert.lstm_from_keras if gates == 4 else convert.gru_from_keras)(weights)


def test_what_keras_s_config_says():
    with pytest.raises(ValueError, match="recurrent_activation must be 'sigmoid'"):
        convert.lstm_from_keras(LSTM, recurrent_activation="hard_sigmoid")
    with pytest.raises(ValueError, match="recurrent_activation must be 'sigmoid'"):
        convert.gru_from_keras(GRU, recurrent_activation="hard_sigmoid")
    with pytest.raises(ValueError, match="activation must be 'tanh', got 'relu'"):
        convert.gru_from_keras(GRU, activation="relu")
    with pytest.raises(ValueError, match=r"of reset_after=False = \(15,\), got shape \(2, 15\)"):
        convert.gru_from_keras(GRU, reset_after=False)


TORCH = {
    r"weight_hh_l0 must be \[4 \* hidden, hidden\].*, which is a GRU's": (4, torch(3)),
    r"weight_hh_l0 must be \[3 \* hidden, hidden\].*, which is an LSTM's": (3, torch(4)),
    r"which is a plain RNN's": (4, torch(1)),
    r"state must be a GRU's, got an LSTM's weight_hr_l0": (3, torch(4, weight_hr_l0=(2, 5))),
    r"weight_hh_l0 must be .* got 20 for hidden = 2": (4, torch(4, weight_hh_l0=(20, 2))),
    r"weight_hr_l0 must be \[output, hidden\] = \(2, 5\), got shape \(5, 2\)": (
        4, torch(4, weight_hh_l0=(20, 2), weight_hr_l0=(5, 2)),
    ),
    r"weight_ih_l0 must be \[4 \* hidden, features\] = \(20, 3\), got shape \(16, 3\)": (
        4, torch(4, weight_ih_l0=(16, 3)),
    ),
    r"bias_hh_l0 must be \[3 \* hidden\] = \(15,\), got shape \(20,\)": (
        3, torch(3, bias_hh_l0=(20,)),
    ),
    r"state must hold bias_hh_l0 beside weight_ih_l0": (4, torch(4, bias_hh_l0=None)),
    r"state must hold bias_ih_l0 beside": (3, torch(3, bias_ih_l0=None)),
    r"state must hold weight_hh_l0 beside": (4, torch(4, weight_hh_l0=None)),
    r"weight_hh_l0 must be \[4 \* hidden, features or hidden\], got shape \(20,\)": (
        4, torch(4, weight_hh_l0=(20,)),
    ),
    r"state must hold weight_ih_l0, got kernel": (4, {"kernel": np.ones(3)}),
    r"got none; an iterator": (4, iter(())),
}  # fmt: skip


@pytest.mark.parametrize("message", TORCH)
def test_torch(message):
    gates, state = TORCH[message]
    with pytest.raises(ValueError, match=message):
        (convert.lstm_from_torch if gates == 4 else convert.gru_from_torch)(state)


def test_torch_s_layers_and_modules(users_checks):
    with pytest.raises(ValueError, match="must hold weight_ih_l1_reverse, got weight_ih_l0"):
        convert.lstm_from_torch(torch(4), 1, reverse=True)
    with pytest.raises(ValueError, match="layer must be at least 0"):
        convert.lstm_from_torch(torch(4), -1)
    with pytest.raises(TypeError, match=r"layer must be an integer, got 0\.0"):
        convert.gru_from_torch(torch(3), 0.0)
    with pytest.raises(ValueError, match="reverse must be False of a cell"):
        convert.gru_from_torch(torch(3), None, reverse=True)
    with pytest.raises(TypeError, match="weight_ih_l0 must be floating point, got int8"):
        convert.gru_from_torch(torch(3) | {"weight_ih_l0": np.ones((15, 3), np.int8)})

    class Module:
        def state_dict(self):
            return torch(4)

    with pytest.raises(TypeError, match=r"give module\.state_dict\(\)"):
        convert.lstm_from_torch(Module())


FLAX = {
    r"params must hold ii, if, ig, io, .* as an LSTM does, got hn, hr, hz, in, ir, iz": (
        4, flax("rzn"),
    ),
    r"params must hold ir, iz, in, .* as a GRU does, got hf, hg, .*": (3, flax()),
    r"got hf, hn, if, in": (3, flax("fn")),
    r"got params": (4, {"params": flax()}),
    r"got nothing": (4, {}),
    r"got hf, hg, hi, ho, if, ig, io": (4, flax(ii=None)),
    r"dense_h/kernel must be .* which is a GRU's": (4, dense(3)),
    r"dense_h/kernel must be .* which is an LSTM's": (3, dense(4)),
    r"which is a plain RNN's": (4, dense(1)),
    r"dense_i/kernel must be .* = \(3, 20\), got shape \(3, 15\)": (
        4, dense(4) | {"dense_i": dense(3)["dense_i"]},
    ),
    r"ig/kernel must be .* = \(3, 5\), got shape \(4, 5\)": (
        4, flax(ig={"kernel": np.ones((4, 5))}),
    ),
    r"ii/kernel must be .* = \(3, 5\), got shape \(3, 6\)": (
        4, flax(**{f"i{g}": {"kernel": np.ones((3, 6))} for g in "ifgo"}),
    ),
    r"hi/kernel must be .* got shape \(5, 6\)": (
        4, flax(**{f"h{g}": {"kernel": np.ones((5, 6))} for g in "ifgo"}),
    ),
    r"hf/bias must be \[out\] = \(5,\), got shape \(6,\)": (
        4, flax(hf={"kernel": np.ones((5, 5)), "bias": np.ones(6)}),
    ),
    r"hf must hold kernel and bias, got bias": (4, flax(hf={"bias": np.ones(5)})),
}  # fmt: skip


@pytest.mark.parametrize("message", FLAX)
def test_flax(message):
    gates, params = FLAX[message]
    with pytest.raises(ValueError, match=message):
        (convert.lstm_from_flax if gates == 4 else convert.gru_from_flax)(params)


def test_flax_cells_with_other_activations(users_checks, cheap_parameters):
    cell = nnx.GRUCell(3, 2, activation_fn=nnx.relu, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="flax's own activation_fn"):
        convert.gru_from_flax(cell)
    with pytest.raises(TypeError, match="params must be a mapping of names, got LSTMCell"):
        convert.lstm_from_flax(linen.LSTMCell(2))


def ones(*shape):
    return np.ones(shape, np.float32)


def test_parameters_that_do_not_fit_go_nowhere(users_checks):
    lstm = LSTMParameters(ones(3, 20), ones(5, 20), ones(20))
    gru = GRUParameters(ones(3, 15), ones(5, 15), ones(15), ones(15))
    to_lstm = (
        convert.lstm_to_flax,
        convert.lstm_to_flax_optimized,
        convert.lstm_to_keras,
        convert.lstm_to_torch,
    )
    for there in to_lstm:
        with pytest.raises(TypeError, match="must be LSTMParameters, got GRUParameters"):
            there(gru)
        with pytest.raises(ValueError, match="bias must be"):
            there(lstm._replace(bias=ones(19)))
    for there in (convert.gru_to_flax, convert.gru_to_keras, convert.gru_to_torch):
        with pytest.raises(TypeError, match="must be GRUParameters, got LSTMParameters"):
            there(lstm)
        with pytest.raises(ValueError, match="recurrent_kernel must be"):
            there(gru._replace(recurrent_kernel=ones(4, 15)))
    with pytest.raises(ValueError, match="got projection"):
        convert.lstm_to_torch(
            lstm._replace(projection=ones(5, 2), recurrent_kernel=ones(2, 20)), None
        )
