from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.test_util import check_grads

from jaxnets.kernels import depthwise_conv

CASES = {
    "1d": ((2, 11, 3), (4, 3), 1),
    "2d": ((2, 6, 7, 3), (3, 3, 3), 1),
    "2d, strides": ((2, 8, 7, 3), (3, 2, 3), (2, 3)),
    "2d, strides past the window": ((2, 9, 9, 3), (2, 2, 3), 4),
    "3d": ((2, 4, 5, 3, 2), (3, 1, 2, 2), 2),
}


def problem(name, dtype=np.float64):
    shape, kernel, strides = CASES[name]
    rng = np.random.default_rng(0)
    arrays = (jnp.asarray(rng.normal(size=s), dtype) for s in (shape, kernel))
    return (*arrays, strides)


def with_gradients(inputs, kernel, **options):
    outputs, backward = jax.vjp(partial(depthwise_conv, **options), inputs, kernel)
    return outputs, *backward(jnp.cos(outputs))


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("name", CASES)
def test_is_xlas_convolution(x64, name, padding):
    inputs, kernel, strides = problem(name)
    options = {"strides": strides, "padding": padding}
    got = with_gradients(inputs, kernel, implementation="shifts", **options)
    wanted = with_gradients(inputs, kernel, implementation="convolution", **options)
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_equation(x64):
    inputs, kernel, _ = problem("2d, strides")
    outputs = depthwise_conv(inputs, kernel, strides=(2, 3), padding="VALID")
    patch = inputs[1, 2:5, 3:5]
    np.testing.assert_allclose(outputs[1, 1, 1], (patch * kernel).sum((0, 1)), rtol=1e-13)


@pytest.mark.parametrize("name", ["1d", "2d, strides"])
def test_numerical_gradients(x64, users_checks, name):
    inputs, kernel, strides = problem(name)
    function = partial(depthwise_conv, strides=strides, implementation="shifts")
    check_grads(function, (inputs, kernel), order=2, modes=["rev"])


def test_half_precision():
    inputs, kernel = jnp.ones((1, 9, 2), jnp.bfloat16), jnp.ones((9, 2), jnp.bfloat16)
    outputs, *gradients = with_gradients(inputs, kernel, implementation="shifts")
    assert {outputs.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(jnp.bfloat16)}
    assert float(outputs[0, 4, 0]) == 9


def test_default_is_by_platform():
    inputs, kernel, _ = problem("2d", np.float32)
    text = jax.jit(depthwise_conv).lower(inputs, kernel).as_text()
    assert ("stablehlo.convolution" in text) == (jax.default_backend() != "cpu")


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("implementation", ["shifts", "convolution"])
def test_lowers_for(platform, implementation):
    inputs, kernel, _ = problem("2d", np.float32)
    function = partial(with_gradients, implementation=implementation)
    exported = export.export(jax.jit(function), platforms=[platform])(inputs, kernel)
    assert exported.platforms == (platform,)


ERRORS = {
    "inputs must be .batch, ..., channels. with 2 spatial axes": {"inputs": jnp.ones((2, 5, 3))},
    "channels = 3": {"inputs": jnp.ones((2, 3, 5, 5))},
    "kernel must be": {"kernel": jnp.ones(3)},
    "padding must be": {"padding": "FULL"},
    "strides must be": {"strides": (1, 1, 1)},
    "implementation must be": {"implementation": "cudnn"},
    "at least as large as the window": {"inputs": jnp.ones((1, 2, 2, 3)), "padding": "VALID"},
    "must not be empty": {"inputs": jnp.ones((0, 5, 5, 3))},
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input(users_checks, message):
    arguments = {"inputs": jnp.ones((2, 5, 5, 3)), "kernel": jnp.ones((3, 3, 3))}
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**arguments | ERRORS[message])


def test_integers_are_refused(users_checks):
    with pytest.raises(TypeError, match="kernel must be floating"):
        depthwise_conv(jnp.ones((2, 5, 3)), jnp.ones((3, 3), int))
