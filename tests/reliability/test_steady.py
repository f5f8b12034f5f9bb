"""In a training loop: the same numbers for the same key, on any device."""

import jax
import numpy as np
import pytest

from jaxnets.kernels import LogUniform, Uniform, draw_samples, lstm, recurrent_layers
from jaxnets.kernels.recurrent.parameters import LSTMParameters


def ones(*shape):
    return np.ones(shape, np.float32)


PARAMETERS = LSTMParameters(ones(3, 8) / 3, ones(2, 8) / 2, 0 * ones(8))
DRAWS = {
    "sample": lambda key: draw_samples(LogUniform(500), key, 20, np.arange(3)).ids,
    "sample for each token": lambda key: (
        draw_samples(Uniform(500), key, 20, np.arange(3), per_token=True, unique=False).ids
    ),
    "recurrent dropout": lambda key: lstm(
        ones(4, 5, 3), None, PARAMETERS, recurrent_dropout=0.5, key=key, implementation="reference"
    )[0],
    "dropout between layers": lambda key: recurrent_layers(
        ones(4, 5, 3),
        None,
        [[PARAMETERS], [PARAMETERS._replace(input_kernel=ones(2, 8))]],
        dropout=0.5,
        key=key,
        implementation="reference",
    )[0],
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_key_is_all_that_chance_depends_on(name):
    """Eagerly, and under jit on another device in x64; another key gives something else."""
    draw, keys = DRAWS[name], [jax.random.key(n) for n in range(2)]
    first = np.asarray(draw(keys[0]))
    with jax.default_device(jax.devices()[1]), jax.enable_x64(True):
        there = jax.jit(draw)(keys[0])
    assert there.devices() == {jax.devices()[1]}
    np.testing.assert_allclose(there, first, rtol=1e-6)
    assert not np.allclose(draw(keys[1]), first)
