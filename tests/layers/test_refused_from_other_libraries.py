"""What other libraries' layers say of themselves, and which of them are refused; their tables."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from jaxnets.convert import carries_from_keras, carries_from_torch
from jaxnets.layers import GRU, LSTM, Embedding, OutputProjection
from tests.layers.test_from_other_libraries import (
    FEATURES,
    HIDDEN,
    equal,
    figures,
    near,
    random,
    rnn,
)

pytestmark = pytest.mark.usefixtures("cheap_parameters")


class KerasLayer:
    """What is asked of a Keras layer."""

    def __init__(self, weights, **config):
        self.weights = weights
        activations = {"activation": "tanh", "recurrent_activation": "sigmoid"}
        self.config = activations | {"go_backwards": False} | config

    def get_weights(self):
        return self.weights

    def get_config(self):
        return self.config


def keras_layer(name, *args, **config):
    return type(name, (KerasLayer,), {})(*args, **config)


def both(layer, **config):
    inner = {"class_name": type(layer).__name__, "config": layer.config}
    return keras_layer("Bidirectional", layer.weights * 2, layer=inner, **config)


BEFORE = [random(FEATURES, 15), random(HIDDEN, 15), random(15)]


def test_what_keras_s_layers_say_of_themselves(users_checks):
    before = keras_layer("GRU", BEFORE, reset_after=False)
    upper = keras_layer("GRU", [random(HIDDEN, 15), *BEFORE[1:]], reset_after=False)
    layer = GRU.from_keras([both(before, merge_mode="ave"), upper])
    assert (layer.reset_after, layer.merge_mode, len(layer.layers[1])) == (False, "ave", 1)
    equal(layer.to_keras(), [BEFORE * 2, upper.weights])
    for there in (layer.to_torch, layer.to_flax):
        with pytest.raises(ValueError, match="reset_after must be True for"):
            there()
    after = keras_layer("GRU", BEFORE, reset_after=True)
    bad = {
        "layer must be a Keras LSTM or a Bidirectional of one, got GRU": lambda: (
            LSTM.from_keras(both(before, merge_mode="sum"))
        ),
        "layer must be a Keras GRU or a Bidirectional of one, got Dense": lambda: (
            GRU.from_keras(keras_layer("Dense", BEFORE))
        ),
        "recurrent_activation must be 'sigmoid'": lambda: GRU.from_keras(
            keras_layer("GRU", BEFORE, reset_after=False, recurrent_activation="hard_sigmoid")
        ),
        "^activation must be 'tanh', got 'relu'": lambda: GRU.from_keras(
            BEFORE, reset_after=False, activation="relu"
        ),
        "go_backwards=True": lambda: GRU.from_keras(
            keras_layer("GRU", BEFORE, reset_after=False, go_backwards=True)
        ),
        "merge_mode=None": lambda: GRU.from_keras(both(before, merge_mode=None)),
        "merge_mode must be one of all layers, .* got 'mul' and 'sum'": lambda: GRU.from_keras(
            both(before, merge_mode="sum"), merge_mode="mul"
        ),
        "reset_after must be one of both directions": lambda: GRU.from_keras(
            both(before, merge_mode="sum", backward_layer={
                "class_name": "GRU", "config": after.config
            })
        ),
        "got a bias of shape": lambda: GRU.from_keras(BEFORE),
        "got 4 for hidden|got 5 arrays": lambda: GRU.from_keras([*BEFORE, *BEFORE[:2]]),
        r"layers\[1\] must take the 5 features .* got 3": lambda: GRU.from_keras(
            [before, before]
        ),
        "layers must hold one layer or more": lambda: GRU.from_keras([]),
    }  # fmt: skip
    for message, call in bad.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_what_flax_s_modules_must_not_be(users_checks):
    half = rnn(nnx.GRUCell)
    with pytest.raises(ValueError, match="got an RNN with reverse=True"):
        GRU.from_flax(nnx.RNN(half.cell, reverse=True))
    with pytest.raises(ValueError, match=r"merge_mode must be given where .* of its own"):
        GRU.from_flax(nnx.Bidirectional(half, half, merge_fn=lambda a, b: a))
    with pytest.raises(ValueError, match="flax's own activation_fn"):
        GRU.from_flax(rnn(nnx.GRUCell, activation_fn=nnx.relu))
    layer = GRU.from_flax(half)
    with pytest.raises(ValueError, match=r"style must be one of \('linen', 'nnx'\), got 'haiku'"):
        layer.to_flax("haiku")
    layer.layers[0][0].recurrent_bias[...] += 1
    with pytest.raises(ValueError, match="recurrent_bias must be 0 for n"):
        layer.to_flax("nnx")


def test_what_has_no_name_elsewhere_and_what_does_not_fit(users_checks):
    plain = LSTM.from_keras([random(FEATURES, 20), random(HIDDEN, 20), random(20)])
    ((parameters,),) = plain.parameters()
    wide = LSTM.from_parameters([[parameters._replace(peepholes=jnp.ones((3, HIDDEN)))]])
    for there in (wide.to_torch, wide.to_keras, wide.to_flax):
        with pytest.raises(ValueError, match="got peepholes"):
            there()
    state = figures("torch_lstm", "weights/")
    del state["weight_ih_l1_reverse"]
    with pytest.raises(ValueError, match="every layer from 0 on, all in as many directions"):
        LSTM.from_torch(state)
    with pytest.raises(ValueError, match="rngs must be given with dropout"):
        LSTM.from_torch(figures("torch_lstm", "weights/"), dropout=0.5)
    with pytest.raises(TypeError, match="LSTM has no option 'num_layers' beside its parameters"):
        LSTM.from_parameters(wide.parameters(), num_layers=1)
    with pytest.raises(TypeError, match="layers must hold GRUParameters, got LSTMParameters"):
        GRU.from_parameters(wide.parameters())
    with pytest.raises(ValueError, match=r"states must be .h_n, c_n. .* got 3 arrays"):
        carries_from_torch([np.ones((1, 2, 3))] * 3)
    with pytest.raises(ValueError, match=r"states must be \[layers \* 2, batch, hidden\]"):
        carries_from_torch(np.ones((3, 2, 3)), bidirectional=True)
    with pytest.raises(ValueError, match=r"states must be h and c .* got 3 arrays"):
        carries_from_keras([np.ones((2, 3))] * 3)


def test_tables_of_every_library(users_checks):
    table, bias = random(11, 4), random(11, seed=1)
    state = {"embed.weight": table, "head.weight": table, "head.bias": bias}
    embeddings = (
        Embedding.from_torch(state, prefix="embed"),
        Embedding.from_keras(keras_layer("Embedding", [table])),
        Embedding.from_flax({"embedding": table}),
        Embedding.from_flax(Embedding.from_keras([table])),
    )
    for embedding in embeddings:
        equal(embedding([[3, 10]]), table[[[3, 10]]])
        equal(embedding.to_torch(prefix="embed"), {"embed.weight": table})
        equal(embedding.to_keras(), [table])
        equal(embedding.to_flax(), {"embedding": table})
    hidden, heads = random(2, 4), (
        OutputProjection.from_torch(state, prefix="head"),
        OutputProjection.from_keras(keras_layer("Dense", [table.T, bias], activation="softmax")),
    )  # fmt: skip
    for head in heads:
        near(head(hidden), hidden @ table.T + bias)
        equal(head.to_torch(prefix="head"), {"head.weight": table, "head.bias": bias})
        equal(head.to_keras(), [table.T, bias])
    half = OutputProjection.from_torch({"weight": table.astype(ml_dtypes.bfloat16)})
    assert half.bias is None
    assert half.weight.dtype == half.to_keras()[0].dtype == jnp.bfloat16
    assert OutputProjection(4, 11, tied=embeddings[0]).weight is embeddings[0].embedding

    bad = {
        "state must hold one weight, or prefix": lambda: Embedding.from_torch(state),
        "state must hold one weight of 'tail'": lambda: OutputProjection.from_torch(
            state, prefix="tail"
        ),
        r"bias must be \[vocab\] = \(11,\)": lambda: OutputProjection.from_torch(
            {"weight": table, "bias": bias[1:]}
        ),
        "source must be a Keras Dense, got Embedding": lambda: OutputProjection.from_keras(
            keras_layer("Embedding", [table], activation="linear")
        ),
        "activation must be 'linear' or 'softmax', got 'relu'": lambda: OutputProjection.from_keras(
            keras_layer("Dense", [table], activation="relu")
        ),
        "source must hold .embeddings., as Embedding does, got 2": lambda: Embedding.from_keras(
            [table, bias]
        ),
        "source must hold embedding, got kernel": lambda: Embedding.from_flax({"kernel": table}),
        r"embedding must be \[vocab, features\]": lambda: Embedding.from_flax({"embedding": bias}),
    }
    for message, call in bad.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match=r"source must be an nnx.Embed or params, got ndarray"):
        Embedding.from_flax(table)
