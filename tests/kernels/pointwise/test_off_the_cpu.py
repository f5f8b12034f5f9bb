"""The 1x1 convolution that XLA compiles for TPU and GPU: its axes of positions stay as they are."""

import jax
import numpy as np
import pytest

from jaxnets.kernels import compiling_for, pointwise_conv
from tests.near import assert_near

RANDOM = np.random.default_rng(0)


def normal(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


ARRAYS = normal(2, 5, 7, 6), normal(6, 4), normal(4), normal(2, 3, 4, 4)


def value_and_gradients(activation):
    def loss(images, kernel, bias, residual):
        outputs = pointwise_conv(
            images, kernel, bias, strides=2, activation=activation, residual=residual
        )
        return (outputs**2).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))


@pytest.mark.parametrize("activation", [None, "relu"])
def test_values_and_gradients_are_those_on_cpu(activation):
    expected = value_and_gradients(activation)(*ARRAYS)
    with compiling_for("tpu"):
        got = value_and_gradients(activation)(*ARRAYS)
    assert_near(got, expected, 1e-6)


def test_no_axis_of_positions_is_merged():
    """On TPU that would copy, wherever a row of an image fills no whole tile."""

    def merged(platform):
        with compiling_for(platform):
            text = value_and_gradients(None).lower(*ARRAYS).as_text()
        return "-> tensor<24x" in text  # 2 images of 3 x 4 positions

    assert merged("cpu")
    assert not merged("tpu")
