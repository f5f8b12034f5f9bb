from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxnets.kernels import depthwise_conv
from tests.slopes import assert_slopes

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
    arrays = (rng.normal(size=s).astype(dtype) for s in (shape, kernel))
    return (*arrays, strides)


def with_gradients(inputs, kernel, **options):
    outputs, backward = jax.vjp(partial(depthwise_conv, **options), inputs, kernel)
    return outputs, *backward(jnp.cos(outputs))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.smoke if n == "2d" else ()) for n in CASES]
)
def test_is_xlas_convolution(x64, name):
    *arrays, strides = problem(name)

    @jax.jit
    def every(*arrays):
        return [
            [
                with_gradients(*arrays, implementation=each, strides=strides, padding=padding)
                for each in ("shifts", "convolution")
            ]
            for padding in ("SAME", "VALID")
        ]

    for got, wanted in every(*arrays):
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_the_equation(x64):
    inputs, kernel, _ = problem("2d, strides")
    outputs = depthwise_conv(inputs, kernel, strides=(2, 3), padding="VALID")
    patch = inputs[1, 2:5, 3:5]
    np.testing.assert_allclose(outputs[1, 1, 1], (patch * kernel).sum((0, 1)), rtol=1e-13)


@pytest.mark.parametrize("name", ["1d", "2d, strides"])
def test_numerical_gradients_of_second_order(x64, name):
    """The first order is that of XLA's convolution, above."""
    inputs, kernel, strides = problem(name)

    def gradients(inputs, kernel):
        return with_gradients(inputs, kernel, strides=strides, implementation="shifts")[1:]

    assert_slopes(gradients, (inputs, kernel), 1e-6)


OPTIONS = {
    "dilation": ((2, 11, 9, 3), (3, 2, 3), {"dilation": (2, 3)}),
    "dilation and strides": ((2, 13, 3), (3, 3), {"dilation": 2, "strides": 3}),
    "causal": ((2, 9, 3), (4, 3), {"padding": "CAUSAL", "dilation": 2}),
    "pairs": ((2, 6, 7, 3), (3, 3, 3), {"padding": ((0, 2), (1, 1)), "strides": 2}),
    "wide": ((2, 5, 3), (2, 3), {"padding": 4}),
    "multiplier": ((2, 6, 5, 3), (2, 2, 3, 4), {"depth_multiplier": 4, "strides": [2, 1]}),
    "flat multiplier": ((2, 6, 3), (2, 6), {"depth_multiplier": 2}),
    "valid, stride": ((2, 8, 9, 2), (3, 2, 2), {"padding": "VALID", "strides": np.int64(2)}),
}


def by_hand(inputs, kernel, bias, *, strides=1, dilation=1, padding="SAME", depth_multiplier=1):
    """XLA's general convolution, every option spelled out for it."""
    axes = inputs.ndim - 2
    strides, dilation = (np.broadcast_to(each, axes).tolist() for each in (strides, dilation))
    window = kernel.shape[:axes]
    if isinstance(padding, int):
        padding = [(padding, padding)] * axes
    if padding == "CAUSAL":
        padding = [((window[0] - 1) * dilation[0], 0)]
    letters = "DHW"[3 - axes :]
    outputs = jax.lax.conv_general_dilated(
        inputs, kernel.reshape(*window, 1, -1), strides, padding, rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=inputs.shape[-1],
    )  # fmt: skip
    assert outputs.shape[-1] == inputs.shape[-1] * depth_multiplier
    return outputs + bias


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_xlas(x64, name):
    shape, window, options = OPTIONS[name]
    rng = np.random.default_rng(0)
    outputs = shape[-1] * options.get("depth_multiplier", 1)
    arrays = [rng.normal(size=s) for s in (shape, window, (outputs,))]

    @jax.jit
    def every(*arrays):
        def run(function, **more):
            result, backward = jax.vjp(partial(function, **options, **more), *arrays)
            return result, *backward(jnp.cos(result))

        ours = [run(depthwise_conv, implementation=name) for name in ("shifts", "convolution")]
        first = depthwise_conv(
            jnp.moveaxis(arrays[0], -1, 1), *arrays[1:], channels_first=True, **options
        )
        return run(by_hand), ours, jnp.moveaxis(first, 1, -1)

    wanted, ours, first = every(*arrays)
    for got in ours:
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(first, wanted[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["shifts", "convolution"])
def test_strict_modes(strict_modes, implementation):
    inputs, kernel = np.ones((2, 5, 6, 2), np.float32), np.ones((3, 3, 2), jnp.bfloat16)

    def loss(inputs, kernel, bias):
        return depthwise_conv(inputs, kernel, bias, strides=2, implementation=implementation).sum()

    gradient = jax.jit(jax.grad(loss, (0, 1, 2)))
    gradients = gradient(inputs, kernel, np.ones(2, np.float16))
    assert [g.dtype for g in gradients] == [jnp.float32, jnp.bfloat16, jnp.float16]


@pytest.mark.parametrize("shape", [(0, 5, 5, 3), (2, 0, 5, 3)])
def test_empty_inputs(shape):
    arrays = [np.ones(s, np.float32) for s in (shape, (3, 3, 3), 3)]

    @jax.jit
    def derived(*arrays):
        outputs, backward = jax.vjp(partial(depthwise_conv, strides=2), *arrays)
        return outputs, backward(outputs)

    outputs, gradients = derived(*arrays)
    assert outputs.shape == (shape[0], -(-shape[1] // 2), 3, 3)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient.shape == array.shape
        assert not np.asarray(gradient).any()


@pytest.mark.parametrize(("shape", "window"), [((1, 40, 40, 2), (31, 31)), ((1, 1100, 2), (1024,))])
def test_large_windows_are_not_written_out(shape, window):
    """Which compiled for more than a minute with the gradient: a few operations now."""
    inputs, kernel = np.ones(shape, np.float32), np.ones((*window, 2), np.float32)
    function = jax.grad(lambda x, k: depthwise_conv(x, k).sum(), (0, 1))
    assert jax.jit(function).lower(inputs, kernel).as_text().count("\n") < 100


def test_half_precision():
    inputs, kernel = np.ones((1, 9, 2), jnp.bfloat16), np.ones((9, 2), jnp.bfloat16)
    outputs, *gradients = jax.jit(partial(with_gradients, implementation="shifts"))(inputs, kernel)
    assert {outputs.dtype, *(g.dtype for g in gradients)} == {jnp.dtype(jnp.bfloat16)}
    assert float(outputs[0, 4, 0]) == 9


def test_default_is_by_platform():
    inputs, kernel, _ = problem("2d", np.float32)
    text = jax.jit(depthwise_conv).lower(inputs, kernel).as_text()
    assert ("stablehlo.convolution" in text) == (jax.default_backend() != "cpu")


@pytest.mark.parametrize("implementation", ["shifts", "convolution"])
def test_lowers_for(implementation):
    inputs, kernel, _ = problem("2d", np.float32)
    function = partial(with_gradients, implementation=implementation)
    exported = export.export(jax.jit(function), platforms=["tpu", "cuda"])(inputs, kernel)
    assert exported.platforms == ("tpu", "cuda")


ERRORS = {
    "say depth_multiplier=3": {"inputs": np.ones((2, 5, 3), np.float32)},
    r"kernel must be \[\*window, 5\]": {"inputs": np.ones((2, 3, 5, 5), np.float32)},
    "kernel must be": {"kernel": np.ones(3, np.float32)},
    "inputs must be .batch, ..., channels. with 1 to 3": {"inputs": np.ones((2, 3), np.float32)},
    r"bias must be \[channels \* multiplier\]": {"bias": np.ones(2, np.float32)},
    "dilation must be at least 1": {"dilation": 0},
    "padding must have a number or a pair": {"padding": (1, 2, 3)},
    "padding must be at least 0": {"padding": -1},
    "padding must be": {"padding": "FULL"},
    "strides must be": {"strides": (1, 1, 1)},
    "implementation must be": {"implementation": "cudnn"},
    "at least as large as the window": {
        "inputs": np.ones((1, 2, 2, 3), np.float32),
        "padding": "VALID",
    },
    "kernel must not be empty": {"kernel": np.ones((0, 3, 3), np.float32)},
    "for one spatial axis": {"padding": "CAUSAL"},
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input(users_checks, message):
    arguments = {
        "inputs": np.ones((2, 5, 5, 3), np.float32),
        "kernel": np.ones((3, 3, 3), np.float32),
    }
    with pytest.raises(ValueError, match=message):
        depthwise_conv(**arguments | ERRORS[message])


def test_integers_are_refused(users_checks):
    with pytest.raises(TypeError, match="kernel must be floating"):
        depthwise_conv(np.ones((2, 5, 3), np.float32), np.ones((3, 3), int))
