"""LSTM and GRU modules: thin over the kernels, trainable, and the same in linen."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets.kernels import recurrent_layers
from jaxnets.layers import GRU, LSTM
from tests.traced import traced

BATCH, TIME, FEATURES, HIDDEN = 4, 6, 3, 5
INPUTS = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
LENGTHS = np.array([6, 1, 0, 4])
pytestmark = pytest.mark.usefixtures("loops", "cheap_parameters")
OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True},
    {"projection": 2, "layer_norm": True},
    {"peepholes": True},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_module_is_one_call_of_the_kernel(options):
    layer = LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **options)

    def kernel(layer, carry=None):
        return recurrent_layers(INPUTS, carry, layer.parameters(), lengths=LENGTHS)

    def module(layer, carry=None):
        return layer(INPUTS, carry, lengths=LENGTHS)

    outputs, carry = nnx.eval_shape(module, layer)
    directions = 2 if options.get("bidirectional") else 1
    assert outputs.shape[2] == directions * options.get("projection", HIDDEN)
    carry = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), carry)
    assert traced(module, layer) == traced(kernel, layer)
    assert traced(module, layer, carry) == traced(kernel, layer, carry) != traced(kernel, layer)


def test_dropout_is_off_after_eval_and_new_at_each_call():
    layer = LSTM(
        FEATURES, HIDDEN, num_layers=2, dropout=0.5, recurrent_dropout=0.3, rngs=nnx.Rngs(0)
    )
    calls = [layer(INPUTS)[0] for _ in range(2)]
    assert not np.allclose(*calls)
    layer.eval()
    plain = traced(lambda layer: recurrent_layers(INPUTS, None, layer.parameters()), layer)
    assert traced(lambda layer: layer(INPUTS), layer) == plain


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_a_transposed_layout_is_refused_by_name(module, users_checks):
    layer = module(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match=r"look like \[batch, features, time\]: give \[batch, time"
    ):
        layer(jnp.ones((BATCH, FEATURES, TIME)))
    with pytest.raises(
        ValueError, match=r"features = 3 as the layer declares, got shape \(4, 6, 7"
    ):
        layer(jnp.ones((BATCH, TIME, 7)))


def test_the_forget_gate_starts_open():
    bias = LSTM(FEATURES, 2, rngs=nnx.Rngs(0)).parameters()[0][0].bias
    assert bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_learns_to_remember_the_first_step(module):
    """The sign of the first input, after steps of noise."""
    layer = module(1, 8, rngs=nnx.Rngs(0))
    head = nnx.Linear(8, 1, rngs=nnx.Rngs(1))
    model = nnx.List([layer, head])
    optimizer = nnx.Optimizer(model, optax.adam(0.02), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, inputs, labels):
        def loss(model):
            logits = model[1](model[0](inputs)[0][:, -1])[:, 0]
            right = ((logits > 0) == (labels > 0)).mean()
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean(), right

        (_, right), gradient = nnx.value_and_grad(loss, has_aux=True)(model)
        optimizer.update(model, gradient)
        return right

    draw = np.random.default_rng(2)
    for _ in range(100):
        inputs = draw.normal(size=(64, 6, 1)).astype(np.float32)
        right = step(model, optimizer, inputs, (inputs[:, 0, 0] > 0).astype(np.float32))
    assert right > 0.9  # of chance at 0.5


def test_linen_through_the_bridge():
    class Outputs(nnx.Module):
        def __init__(self, rngs):
            self.lstm = LSTM(FEATURES, HIDDEN, rngs=rngs)

        def __call__(self, inputs, lengths):
            return self.lstm(inputs, lengths=lengths)[0]

    linen = nnx.bridge.to_linen(Outputs)
    variables = linen.init(jax.random.key(0), INPUTS, LENGTHS)

    @jax.jit
    @jax.grad
    def gradient(variables):
        outputs = linen.apply(variables, INPUTS, LENGTHS)
        assert outputs.shape == (BATCH, TIME, HIDDEN)
        return jnp.square(outputs).sum()

    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradient(variables)))


def test_parameters_have_names_that_checkpoints_can_keep():
    paths = {
        "/".join(map(str, path))
        for path, _ in nnx.to_flat_state(nnx.state(LSTM(FEATURES, HIDDEN, rngs=nnx.Rngs(0))))
    }
    names = ("bias", "input_kernel", "recurrent_kernel")
    assert paths == {f"layers/{0}/{0}/{name}" for name, _ in itertools.product(names, [0])}
