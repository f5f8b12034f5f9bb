"""What holds for every module of jaxnets.layers and jaxnets.models."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets import layers, models
from tests.inputs import ones

pytestmark = pytest.mark.usefixtures("loops", "cheap_parameters")

SIGNAL = ones((2, 4, 3))
IMAGE = ones((2, 4, 5, 3))
IDS = np.zeros((2, 4), np.int32)
LAYERS = {
    "LSTM": lambda **o: layers.LSTM(3, 4, peepholes=True, **o),
    "LSTM with layer_norm": lambda **o: layers.LSTM(3, 4, projection=2, layer_norm=True, **o),
    "GRU": lambda **o: layers.GRU(3, 4, bidirectional=True, **o),
    "Embedding": lambda **o: layers.Embedding(7, 3, **o),
    "OutputProjection": lambda **o: layers.OutputProjection(3, 7, **o),
    "PointwiseConv": lambda **o: layers.PointwiseConv(3, 4, **o),
    "SeparableConv": lambda **o: layers.SeparableConv(3, 4, (3, 3), **o),
    "ResizeConv": lambda **o: layers.ResizeConv(3, 4, **o),
}
CALLS = {
    "Embedding": lambda layer: layer(jnp.asarray(IDS)),
    "OutputProjection": lambda layer: layer.loss(SIGNAL, jnp.asarray(IDS)),
    "PointwiseConv": lambda layer: layer(IMAGE),
    "SeparableConv": lambda layer: layer(IMAGE),
    "ResizeConv": lambda layer: layer(IMAGE, (7, 3)),
}
FLAX_S = ("Embedding", "OutputProjection", "ResizeConv")  # no draw, or no dtype, of ours
# Few sizes: an array's draw is compiled once for each.
MODELS = {
    "Autoencoder": lambda **o: models.Autoencoder((8, 8), (8, 8), code=3, features=(3, 3), **o),
    "CountRegressor": lambda **o: models.CountRegressor(features=(3,) * 5, hidden_features=3, **o),
    "DigitsCNN": lambda **o: models.DigitsCNN((8, 8), 3, features=(3, 3), hidden_features=3, **o),
    "DiscoGAN": lambda **o: models.DiscoGAN(1, (3, 3), judge_features=(3, 3, 3), **o),
    "ECGClassifier": lambda **o: models.ECGClassifier(1, 3, features=3, hidden_features=4, **o),
    "ImageToImage": lambda **o: models.ImageToImage(1, 3, features=3, blocks=1, **o),
    "SDCNet": lambda **o: models.SDCNet(features=(3,) * 5, hidden_features=3, **o),
    "Seq2Seq": lambda **o: models.Seq2Seq(models.Seq2SeqConfig(20, 20, features=8), **o),
    "SessionGRU": lambda **o: models.SessionGRU(20, 8, **o),
    "TimeSeriesLSTM": lambda **o: models.TimeSeriesLSTM(3, 3, hidden_features=4, **o),
    "UNet": lambda **o: models.UNet(1, 3, features=(3, 3), **o),
}
# Of what runs; all of them are traced.
SMOKE = ("LSTM", "GRU", "Embedding", "OutputProjection", "SessionGRU")


def test_no_module_is_left_out():
    for package, cases in ((layers, LAYERS), (models, MODELS)):
        modules = {
            name
            for name in package.__all__
            if inspect.isclass(getattr(package, name))
            and issubclass(getattr(package, name), nnx.Module)
        }
        assert modules == {name.split(" ")[0] for name in cases}


def outputs_of(name, layer):
    outputs = CALLS.get(name, lambda layer: layer(SIGNAL)[0])(layer)
    return jnp.square(outputs.astype(jnp.float32)).sum()


def own_buffers(tree):
    buffers = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(tree) if array.size]
    return len(set(buffers)) == len(buffers)


@pytest.mark.smoke
def test_every_module_goes_into_eval_shape():
    """Built without a value, and the layers derived, too."""
    for name, make in (LAYERS | MODELS).items():
        module = nnx.eval_shape(lambda make=make: make(rngs=nnx.Rngs(0)))
        graph, params, rest = nnx.split(module, nnx.Param, ...)
        assert params, name
        if name in LAYERS:
            gradient = jax.eval_shape(
                jax.grad(
                    lambda params, graph=graph, rest=rest, name=name: outputs_of(
                        name, nnx.merge(graph, params, rest)
                    )
                ),
                params,
            )
            assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, params), name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.smoke if name in SMOKE else ()) for name in LAYERS],
)
def test_a_layer_s_first_step_can_be_donated(name):
    module = LAYERS[name](rngs=nnx.Rngs(0))
    # The least with a state, which is donated too; flat, for it compiles for less.
    rule = optax.flatten(optax.sgd(1e-3, momentum=0.9))
    graph, params = nnx.split(module)
    state = rule.init(params)
    before = jax.tree.map(np.asarray, params)
    assert own_buffers(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        loss, gradient = jax.value_and_grad(
            lambda params: outputs_of(name, nnx.merge(graph, params))
        )(params)
        updates, state = rule.update(gradient, state)
        return optax.apply_updates(params, updates), state, loss

    after, state, first = step(params, state)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), after, before)
    assert sum(jax.tree.leaves(moved)) >= len(jax.tree.leaves(moved)) - 1
    assert step(after, state)[2] < first


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.smoke if name in SMOKE else ()) for name in MODELS],
)
def test_a_model_can_be_donated(name):
    """The step here is no training: which buffers are whose does not depend on it."""
    _, state, _ = nnx.split(MODELS[name](rngs=nnx.Rngs(0)), nnx.Not(nnx.RngState), ...)
    assert own_buffers(state)
    halved = jax.jit(lambda state: jax.tree.map(lambda a: a / 2, state), donate_argnums=0)(state)
    assert all(array.is_deleted() for array in jax.tree.leaves(state) if array.size)
    assert all(np.isfinite(array).all() for array in jax.tree.leaves(halved))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, "float64"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in FLAX_S])
def test_parameters_of_any_float_dtype(x64, name, dtype):
    module = LAYERS[name](rngs=nnx.Rngs(0), param_dtype=dtype)
    wide = LAYERS[name](rngs=nnx.Rngs(0), param_dtype=jnp.promote_types(dtype, jnp.float32))
    for got, wanted in zip(
        jax.tree.leaves(nnx.state(module)), jax.tree.leaves(nnx.state(wide)), strict=True
    ):
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(got, np.asarray(wanted).astype(jnp.dtype(dtype)))
