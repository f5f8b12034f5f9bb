"""What the 1x1 convolution is given: empty, of NumPy, under strict modes, refused; batch norms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.kernels import fold_batch_norm, pointwise_conv
from tests.kernels.pointwise.test_pointwise import problem, run


@pytest.mark.parametrize(
    ("groups", "shape"), [(1, (0, 5, 32)), (2, (2, 0, 32)), (16, (0, 5, 32)), (16, (2, 0, 32))]
)
def test_empty_inputs(shape, groups):
    arrays = [np.ones(s, np.float32) for s in (shape, (32 // groups, 16), 16)]

    @jax.jit
    def derived(*arrays):
        outputs, backward = jax.vjp(partial(run, groups=groups, activation="silu"), *arrays)
        return outputs, backward(outputs)

    outputs, gradients = derived(*arrays)
    assert outputs.shape == (*shape[:2], 16)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient.shape == array.shape
        assert not np.asarray(gradient).any()


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 16}, {"channels_first": True}])
def test_strict_modes(strict_modes, options):
    first = options.get("channels_first", False)
    inputs = np.ones((2, 32, 5) if first else (2, 5, 32), np.float32)
    kernel = np.ones((32 // options.get("groups", 1), 16), jnp.bfloat16)
    residual = np.ones((2, 16, 5) if first else (2, 5, 16), np.float16)

    def loss(*arrays):
        return run(*arrays, activation="gelu", **options).sum()

    arrays = inputs, kernel, np.ones(16, np.float32), residual
    gradients = jax.jit(jax.grad(loss, range(4)))(*arrays)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient.dtype == array.dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_folding_under_strict_modes(strict_modes):
    kernel = jnp.asarray(np.ones((32, 16), jnp.bfloat16))
    folded, _ = fold_batch_norm(kernel, None, *np.ones((4, 16), np.float32))
    assert folded.dtype == jnp.float32


def test_strides_of_any_sort_and_arrays_of_numpy():
    inputs, kernel, bias = problem(residual=False)
    inputs, kernel, bias = map(jnp.asarray, (inputs, kernel, bias))
    wanted = run(inputs, kernel, bias, strides=(2, 2))
    for strides in (2, np.int64(2), [2, 2], np.array([2, 2])):
        np.testing.assert_array_equal(run(inputs, kernel, bias, strides=strides), wanted)
    np.testing.assert_array_equal(run(*map(np.asarray, (inputs, kernel, bias)), strides=2), wanted)


@pytest.mark.smoke
def test_folded_batch_norm_is_batch_norm():
    convolution, _ = nnx.split(nnx.eval_shape(lambda: nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))))
    options = {"epsilon": 1e-3, "use_running_average": True}
    norm, _ = nnx.split(nnx.eval_shape(lambda: nnx.BatchNorm(8, **options, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    names = "bias", "mean", "scale", "var"
    of_norm = dict(zip(names, rng.normal(size=(4, 8)).astype(np.float32), strict=True))
    of_norm["var"] = rng.uniform(0.5, 2, 8).astype(np.float32)
    images, kernel, bias = (
        rng.normal(size=shape).astype(np.float32) for shape in ((2, 9, 9, 3), (3, 3, 3, 8), 8)
    )
    kernel /= 27**0.5

    @jax.jit
    def both(images, kernel, bias, of_norm):
        folded_kernel, folded_bias = fold_batch_norm(
            kernel, bias, *(of_norm[name] for name in ("mean", "var", "scale", "bias")),
            epsilon=1e-3,
        )  # fmt: skip
        folded = nnx.merge(convolution, {"kernel": folded_kernel, "bias": folded_bias})
        plain = nnx.merge(convolution, {"kernel": kernel, "bias": bias})
        return folded(images), nnx.merge(norm, of_norm)(plain(images))

    # Sums of 28 terms in float32, in another order.
    np.testing.assert_allclose(*both(images, kernel, bias, of_norm), atol=28 * 6e-8 * 10)


ERRORS = {
    "inputs must be floating": ({"inputs": np.ones((2, 5, 6), int)}, TypeError),
    "kernel must be .in // groups, out., got shape .1, 1, 6, 4.; give": (
        {"kernel": np.ones((1, 1, 6, 4), np.float32)},
        ValueError,
    ),
    "say channels_first=True": ({"inputs": np.ones((2, 6, 5), np.float32)}, ValueError),
    "say channels_first=False": ({"channels_first": True}, ValueError),
    "looks transposed": ({"kernel": np.ones((4, 6), np.float32), "bias": None}, ValueError),
    "groups must divide out = 4, got 3": ({"groups": 3}, ValueError),
    "groups = 12": ({"groups": 2}, ValueError),
    "bias must be .out.": ({"bias": np.ones(6, np.float32)}, ValueError),
    "strides must be": ({"strides": (1, 2)}, ValueError),
    "strides must be at least 1": ({"strides": 0}, ValueError),
    "activation must be None or one of": ({"activation": "swish"}, ValueError),
    "residual must have the output's shape": (
        {"residual": np.ones((2, 5, 6), np.float32)},
        ValueError,
    ),
    "residual must be floating": ({"residual": np.ones((2, 5, 4), int)}, TypeError),
    "implementation must be": ({"implementation": "im2col"}, ValueError),
    "kernel must not be empty": (
        {"inputs": np.ones((2, 5, 0), np.float32), "kernel": np.ones((0, 4), np.float32)},
        ValueError,
    ),
    "strides must be an integer or 1 of them, got 2.0": ({"strides": 2.0}, TypeError),
    "groups must be an integer": ({"groups": 1.0}, TypeError),
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input(users_checks, message):
    changed, error = ERRORS[message]
    arguments = {
        "inputs": np.ones((2, 5, 6), np.float32),
        "kernel": np.ones((6, 4), np.float32),
        "bias": np.ones(4, np.float32),
    }
    with pytest.raises(error, match=message):
        pointwise_conv(**arguments | changed)


@pytest.mark.parametrize("name", ["bias", "mean", "variance", "scale", "offset"])
def test_bad_folding(users_checks, name):
    vectors = dict.fromkeys(["bias", "mean", "variance", "scale", "offset"], np.ones(4, np.float32))
    with pytest.raises(ValueError, match=f"{name} must be .out. = .4,., got .3,."):
        fold_batch_norm(np.ones((6, 4), np.float32), **vectors | {name: np.ones(3, np.float32)})
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        fold_batch_norm(np.ones((6, 4), np.float32), **vectors, epsilon=0)
