"""The 1x1 convolution against its equation: values, gradients, and second derivatives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxnets.kernels import pointwise_conv
from jaxnets.kernels.pointwise import xla
from jaxnets.kernels.pointwise.activations import ACTIVATIONS
from tests import exact_pointwise
from tests.exact_pointwise import gelu, gelu_exact
from tests.slopes import assert_slopes

SHAPES = {0: (), 1: (7,), 2: (5, 6), 3: (3, 4, 5)}


def problem(axes=2, features=6, out=4, groups=1, dtype=np.float32, residual=True, strides=1):
    rng = np.random.default_rng(0)
    shape = SHAPES[axes]
    positions = tuple(-(-size // strides) for size in shape)
    return [
        rng.normal(size=s).astype(dtype)
        for s in ((2, *shape, features), (features // groups, out), (out,), (2, *positions, out))
    ][: 4 if residual else 3]


def run(inputs, kernel, bias, residual=None, **options):
    return pointwise_conv(inputs, kernel, bias, residual=residual, **options)


def with_gradients(function, arrays, **options):
    def loss(*arrays):
        outputs = function(*arrays, **options)
        return (outputs * waves(outputs).astype(outputs.dtype)).sum(), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, range(len(arrays)), has_aux=True)(*arrays)
    return outputs, *gradients


def assert_close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = np.abs(np.asarray(b, np.float64)).max()
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= tolerance * scale


def waves(outputs):
    return np.cos(np.arange(outputs.size)).reshape(outputs.shape)


def by_hand(arrays, **options):
    """What ``with_gradients`` gives of ``run``."""
    return exact_pointwise.by_hand(arrays, waves, **options)


@pytest.mark.parametrize(
    ("axes", "groups", "strides", "activations", "implementation"),
    [
        (2, 1, 1, (None, "relu", "sigmoid", "tanh", "silu", "gelu", "gelu_exact"), None),
        pytest.param(2, 2, 2, ("relu", "gelu"), None, marks=pytest.mark.smoke),
        (1, 2, 1, (None, "silu"), None),
        (3, 1, 2, ("tanh", "gelu_exact"), None),
        (2, 2, 2, (None, "sigmoid"), "reference"),
        (3, 1, 1, ("relu",), "reference"),
    ],
)
def test_value_and_gradients_are_those_by_hand(
    x64, axes, groups, strides, activations, implementation
):
    """Every activation, and what goes into one by several; in one program."""
    options = {"groups": groups, "strides": strides}

    @jax.jit
    def all_of_them(*arrays):
        function = partial(run, implementation=implementation, **options)
        return [with_gradients(function, arrays, activation=each) for each in activations]

    arrays = problem(axes, dtype=np.float64, **options)
    for activation, got in zip(activations, all_of_them(*arrays), strict=True):
        assert_close(got, by_hand(arrays, activation=activation, **options), 1e-13)


def test_fewer_and_more_channels_out_than_in(x64):
    problems = [problem(out=out, dtype=np.float64) for out in (1, 3, 6, 40)]
    every = jax.jit(lambda problems: [with_gradients(run, arrays) for arrays in problems])
    for got, arrays in zip(every(problems), problems, strict=True):
        assert_close(got, by_hand(arrays), 1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_first_is_the_same_transposed(x64, groups):
    options = {"groups": groups, "activation": "tanh"}

    def channels_first(inputs, kernel, bias, residual):
        first = (jnp.moveaxis(a, -1, 1) for a in (inputs, residual))
        inputs, residual = first
        outputs = run(inputs, kernel, bias, residual, channels_first=True, **options)
        return jnp.moveaxis(outputs, 1, -1)

    axes = range(4) if groups == 1 else [2]
    problems = [problem(n, groups=groups, dtype=np.float64) for n in axes]
    every = jax.jit(lambda problems: [with_gradients(channels_first, a) for a in problems])
    for got, arrays in zip(every(problems), problems, strict=True):
        assert_close(got, by_hand(arrays, **options), 1e-13)


@pytest.mark.parametrize("channels_first", [False, True])
def test_many_groups_are_one_matmul(x64, channels_first):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=s) for s in ((2, 5, 64), (2, 96), (96,), (2, 5, 96))]
    options = {"groups": np.int64(32), "channels_first": channels_first, "activation": "tanh"}
    turn = partial(np.moveaxis, source=-1, destination=1) if channels_first else np.asarray
    given = turn(arrays[0]), *arrays[1:3], turn(arrays[3])

    def step(*arrays):
        def loss(*arrays):
            outputs = run(*arrays, **options)
            # The same weights of the sum, whatever the order of the axes.
            return (outputs * turn(waves(np.empty((2, 5, 96))))).sum(), outputs

        (_, outputs), gradients = jax.value_and_grad(loss, range(4), has_aux=True)(*arrays)
        return outputs, *gradients

    got = jax.jit(step)(*given)
    outputs, d_inputs, *others, d_residual = by_hand(arrays, groups=32, activation="tanh")
    assert_close(got, (turn(outputs), turn(d_inputs), *others, turn(d_residual)), 1e-13)
    step = jax.jit(jax.grad(lambda x, w: run(x, w, None, **options).sum(), (0, 1)))
    assert step.lower(*given[:2]).as_text().count("dot_general") <= 3


@pytest.mark.smoke
def test_is_flax_conv():
    inputs, kernel, bias = problem(residual=False)
    options = {"kernel_size": (1, 1), "strides": (2, 2)}
    graph, _ = nnx.split(nnx.eval_shape(lambda: nnx.Conv(6, 4, **options, rngs=nnx.Rngs(0))))

    @jax.jit
    def both(inputs, kernel, bias):
        conv = nnx.merge(graph, {"kernel": kernel[None, None], "bias": bias})
        return run(inputs, kernel, bias, strides=2), conv(inputs)

    # 6 products and a bias in float32: eight roundings of 6e-8 each.
    np.testing.assert_allclose(*both(inputs, kernel, bias), atol=8 * 6e-8 * 10)


@pytest.mark.parametrize(("groups", "shape"), [(1, (6, 4)), (2, (3, 4))])
def test_is_xla_convolution_with_groups(groups, shape):
    inputs, kernel, bias = problem(groups=groups, residual=False)

    @jax.jit
    def both(inputs, kernel, bias):
        wanted = lax.conv_general_dilated(
            inputs, kernel[None, None], (1, 1), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
        )  # fmt: skip
        return run(inputs, kernel, bias, groups=groups), wanted + bias

    assert kernel.shape == shape
    np.testing.assert_allclose(*both(inputs, kernel, bias), atol=8 * 6e-8 * 10)


def test_exact_gelu_is_pytorch_s_and_gelu_its_tanh_form():
    x = np.linspace(-9, 9, 3001)
    exact, slope = gelu_exact(x)
    with_tanh, _ = gelu(x)

    @partial(jax.jit, static_argnums=1)
    def run(x, name):
        def activated(x):
            return pointwise_conv(x[:, None], np.ones((1, 1), np.float32), activation=name)

        outputs, transposed = jax.vjp(activated, x)
        return outputs[:, 0], transposed(jnp.ones_like(outputs))[0]

    x32 = x.astype(np.float32)
    outputs, gradient = run(x32, "gelu_exact")
    # The rounding of x itself, and of a few operations, in float32.
    np.testing.assert_allclose(outputs, exact, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-6)
    in_kernel = jax.jit(ACTIVATIONS["gelu_exact"].in_kernel)
    np.testing.assert_allclose(in_kernel(x32), exact, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(run(x32, "gelu")[0], with_tanh, rtol=0, atol=2e-6)
    assert np.abs(exact - with_tanh).max() > 4e-4


@pytest.mark.parametrize("activations", [("relu", "gelu"), ("tanh", "gelu_exact")])
def test_numerical_gradients_of_second_order(x64, activations):
    """The first order is that by hand, above."""
    # A relu bends at 0, where differences are no gradient: no sum lies within 1e-3 of it.
    arrays = problem(axes=1, dtype=np.float64)
    assert np.abs(by_hand(arrays)[0]).min() > 1e-3

    def gradients(*arrays):
        for activation in activations:
            outputs, backward = jax.vjp(partial(run, activation=activation), *arrays)
            yield backward(jnp.sin(outputs))

    assert_slopes(lambda *arrays: list(gradients(*arrays)), arrays, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    inputs, kernel = np.ones((1, 4, 4096), dtype), np.full((4096, 2), 1 / 4096, dtype)
    outputs, _, kernel_gradient = jax.jit(
        lambda x, w: with_gradients(lambda x, w: pointwise_conv(x, w), (x, w))
    )(inputs, kernel)
    assert outputs.dtype == kernel_gradient.dtype == dtype
    # In bfloat16 it would stop early.
    np.testing.assert_array_equal(np.asarray(outputs, np.float32), 1)


def test_composes():
    arrays = problem(residual=False)
    mapped = jax.vmap(run, in_axes=(0, None, None))(np.stack([arrays[0]] * 3), *arrays[1:])
    np.testing.assert_allclose(mapped[1], run(*arrays), rtol=1e-6, atol=1e-6)
    relu = partial(run, activation="relu")
    rematerialized, plain = jax.jit(
        lambda arrays: [with_gradients(each, arrays) for each in (jax.checkpoint(relu), relu)]
    )(arrays)
    assert_close(rematerialized, plain, 1e-6)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"strides": 2}])
def test_a_backward_in_tiles_is_by_hand(monkeypatch, options):
    """Tiles that divide the rows, that leave some over, and one for all; first and second order."""
    inputs, kernel, _ = arrays = problem(features=4, out=9, residual=False)

    def loss(*arrays):
        return jnp.sin(pointwise_conv(*arrays, **options)).sum()

    @jax.jit
    def both(inputs, kernel, bias):
        first = jax.grad(loss, (0, 1, 2))(inputs, kernel, bias)
        second = jax.grad(lambda w: (jax.grad(loss)(inputs, w, bias) ** 2).sum())(kernel)
        return *first, second

    outputs, *first, d_sums = exact_pointwise.by_hand((*arrays, 0), np.cos, **options)
    stride = options.get("strides", 1)
    x, d_x = (a[:, ::stride, ::stride] for a in (inputs, first[0]))
    # Of the sum of squares of d_x = d_sums @ kernel.T, in which d_sums is cos(outputs) where the
    # activation has a slope: by the kernel there, and by the outputs.
    through = 2 * d_x @ kernel * (d_sums != 0) * -np.sin(outputs)
    second = np.einsum("bpqi,bpqo->io", 2 * d_x, d_sums) + np.einsum("bpqi,bpqo->io", x, through)
    wanted = [np.float32(a) for a in (*first, second)]
    monkeypatch.setattr(xla, "_TILED_BYTES", 0)
    for tile_bytes in (400, 1000, 10**6) if not options else (400,):
        monkeypatch.setattr(xla, "_TILE_BYTES", tile_bytes)
        jax.clear_caches()
        # Sums of at most 60 rows, in another order.
        assert_close(both(*arrays), wanted, 8 * 60**0.5 * 1.2e-7)
