"""What the options of the recurrent modules do, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.kernels import recurrent_layers
from jaxnets.layers import GRU, LSTM

BATCH, TIME, FEATURES, HIDDEN = 4, 6, 3, 5
INPUTS = jax.random.normal(jax.random.key(0), (BATCH, TIME, FEATURES))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("module", [LSTM, GRU])
def test_half_precision(module, dtype):
    layer = module(FEATURES, HIDDEN, dtype=dtype, rngs=nnx.Rngs(0))
    wide = jax.tree.map(lambda array: array.astype(jnp.float32), layer.parameters())
    inputs = INPUTS.astype(dtype)
    outputs, _ = layer(inputs)
    wanted, _ = recurrent_layers(inputs.astype(jnp.float32), None, wide)
    assert outputs.dtype == dtype
    # Outputs below 1 in magnitude, of sums of 8 products and their gates, each rounded.
    np.testing.assert_allclose(
        outputs.astype(jnp.float32), wanted, atol=8 * float(jnp.finfo(dtype).eps)
    )


def test_sizes_of_numpy_s():
    layer = LSTM(np.int64(3), np.int32(5), num_layers=np.int8(2), projection=np.uint8(2),
                 rngs=nnx.Rngs(0))  # fmt: skip
    assert layer(INPUTS)[0].shape == (BATCH, TIME, 2)
    assert type(layer.features) is int


@pytest.mark.parametrize("module", [LSTM, GRU])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
        ({"hidden": 2.0}, r"hidden must be an integer, got 2\.0"),
        ({"features": -3}, "features must be at least 1, got -3"),
        ({"features": True}, "features must be an integer, got True"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_layers": "2"}, "num_layers must be an integer, got '2'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0"),
        ({"recurrent_dropout": 2}, r"recurrent_dropout must lie in"),
        ({"dtype": jnp.int32}, "dtype must be floating point"),
    ],
)
def test_bad_arguments(users_checks, module, changes, message):
    arguments = {"features": FEATURES, "hidden": HIDDEN, "rngs": nnx.Rngs(0)} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        module(**arguments)


def test_bad_projection(users_checks):
    with pytest.raises(ValueError, match="projection must be at least 1, got 0"):
        LSTM(FEATURES, HIDDEN, projection=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_linen_has_every_method_and_dropout(module):
    linen = nnx.bridge.to_linen(module, FEATURES, hidden=HIDDEN, recurrent_dropout=0.5)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = linen.init(keys, INPUTS)
    plain, _ = linen.apply(variables, INPUTS, lengths=jnp.array([6, 1, 0, 4]), deterministic=True)
    parameters = linen.apply(variables, nnx_method="parameters")
    wanted, _ = recurrent_layers(INPUTS, None, parameters, lengths=jnp.array([6, 1, 0, 4]))
    np.testing.assert_array_equal(plain, wanted)
    one, other = (
        linen.apply(variables, INPUTS, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 2)
    )
    assert float(jnp.abs(one - other).max()) > 1e-3
