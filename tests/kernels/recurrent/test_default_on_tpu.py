"""On TPU the persistent kernel is the LSTM's default: so it has what the scan has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LSTMParameters, compiling_for, explain, lstm
from tests.near import assert_near

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RANDOM.normal(size=shape), jnp.float32)


PARAMETERS = LSTMParameters(normal(3, 20) / 2, normal(5, 20) / 2, normal(20) / 8)
INPUTS, WEIGHTS = normal(2, 4, 3), normal(2, 4, 5)


def curvature(inputs, parameters, lengths):
    """A second derivative: the squared gradient's."""

    def loss(inputs, parameters):
        results = lstm(inputs, None, parameters, lengths=lengths, reverse=True)
        return (results.outputs * WEIGHTS).sum() + (results.carry[0] ** 2).sum()

    def squares(inputs, parameters):
        gradients = jax.grad(loss, (0, 1))(inputs, parameters)
        return sum((leaf**2).sum() for leaf in jax.tree.leaves(gradients))

    return jax.jit(jax.value_and_grad(squares, (0, 1)))(inputs, parameters)


def test_second_derivatives_are_the_scan_s():
    lengths = jnp.array([4, 2])
    expected = curvature(INPUTS, PARAMETERS, lengths)
    with compiling_for("tpu", interpret=True):
        got = curvature(INPUTS, PARAMETERS, lengths)
    assert_near(got, expected, 1e-5)


def test_vmap_is_a_loop():
    both = jnp.stack([INPUTS, 2 * INPUTS])
    with compiling_for("tpu", interpret=True):
        got = jax.vmap(lambda inputs: lstm(inputs, None, PARAMETERS).outputs)(both)
    assert_near(got, jnp.stack([lstm(inputs, None, PARAMETERS).outputs for inputs in both]), 1e-6)


@pytest.mark.parametrize(
    ("platform", "sizes", "chosen"),
    [
        ("tpu", {}, "pallas"),
        ("tpu", {"hidden": 4096}, "scan"),  # more than VMEM
        ("tpu", {"extras": ("projection",)}, "scan"),
        ("tpu", {"extras": ("segment_ids", "recurrent_dropout")}, "pallas"),
        ("gpu", {}, "scan"),
        ("cpu", {}, "scan"),
    ],
)
def test_which_runs_by_default(platform, sizes, chosen):
    sizes = {"batch": 8, "time": 16, "features": 8, "hidden": 128} | sizes
    with compiling_for(platform):
        assert f"{chosen}: chosen (the default" in explain("lstm", **sizes)
