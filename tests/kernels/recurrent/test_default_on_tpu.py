"""On TPU the persistent kernel is the LSTM's default: so it has what the scan has."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxnets.kernels import LSTMParameters, compiling_for, explain, lstm
from tests.near import assert_near
from tests.recurrence import by_hand, curvature, curvature_by_hand

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


PARAMETERS = LSTMParameters(normal(3, 20) / 2, normal(5, 20) / 2, normal(20) / 8)
INPUTS, CARRY = normal(2, 4, 3), (np.zeros((2, 5), np.float32),) * 2


def test_second_derivatives_are_those_by_hand(loops):
    arrays, options = (INPUTS, CARRY, PARAMETERS), {"lengths": np.array([4, 2]), "reverse": True}
    with compiling_for("tpu", interpret=True):
        got = jax.jit(partial(curvature, partial(lstm, **options)))(arrays)
    assert_near(got, curvature_by_hand(arrays, **options), 1e-5)


def test_vmap_is_a_loop():
    both = np.stack([INPUTS, 2 * INPUTS])
    with compiling_for("tpu", interpret=True):
        got = jax.jit(jax.vmap(lambda inputs: lstm(inputs, None, PARAMETERS).outputs))(both)
    wanted = [by_hand((inputs, CARRY, PARAMETERS))[0][0] for inputs in both]
    assert_near(got, np.stack(wanted), 1e-6)


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
