import math
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax

from jaxnets.kernels import fold_batch_norm, pointwise_conv
from jaxnets.kernels.pointwise import xla
from jaxnets.kernels.pointwise.activations import ACTIVATIONS
from tests.slopes import assert_slopes

SHAPES = {0: (), 1: (7,), 2: (5, 6), 3: (3, 4, 5)}


def problem(axes=2, features=6, out=4, groups=1, dtype=np.float32, residual=True, strides=1):
    rng = np.random.default_rng(0)
    shape = SHAPES[axes]
    positions = tuple(-(-size // strides) for size in shape)
    return [
        jnp.asarray(rng.normal(size=s), dtype)
        for s in ((2, *shape, features), (features // groups, out), (out,), (2, *positions, out))
    ][: 4 if residual else 3]


def run(inputs, kernel, bias, residual=None, **options):
    return pointwise_conv(inputs, kernel, bias, residual=residual, **options)


def with_gradients(function, arrays, **options):
    def loss(*arrays):
        outputs = function(*arrays, **options)
        waves = np.cos(np.arange(outputs.size)).reshape(outputs.shape).astype(outputs.dtype)
        return (outputs * waves).sum(), outputs

    (_, outputs), gradients = jax.value_and_grad(loss, range(len(arrays)), has_aux=True)(*arrays)
    return outputs, *gradients


def assert_close(got, wanted, tolerance):
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        scale = np.abs(np.asarray(b, np.float64)).max()
        error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
        assert error <= tolerance * scale


def beside_the_reference(arrays, **options):
    return [
        with_gradients(partial(run, implementation=name), arrays, **options)
        for name in (None, "reference")
    ]


@pytest.mark.parametrize(
    ("axes", "groups", "strides", "activations"),
    [
        (2, 1, 1, (None, "relu", "sigmoid", "tanh", "silu", "gelu", "gelu_exact")),
        pytest.param(2, 2, 2, ("relu", "gelu"), marks=pytest.mark.smoke),
        (1, 2, 1, (None, "silu")),
        (3, 1, 2, ("tanh", "gelu_exact")),
    ],
)
def test_value_and_gradients_are_the_references(x64, axes, groups, strides, activations):
    """Every activation, and what goes into one by several; in one program."""

    @jax.jit
    def all_of_them(*arrays):
        return [
            beside_the_reference(arrays, groups=groups, strides=strides, activation=activation)
            for activation in activations
        ]

    arrays = problem(axes, groups=groups, dtype=np.float64, strides=strides)
    for got, wanted in all_of_them(*arrays):
        assert_close(got, wanted, 1e-13)


def test_fewer_and_more_channels_out_than_in(x64):
    problems = [problem(out=out, dtype=np.float64) for out in (1, 3, 6, 40)]
    for got, wanted in jax.jit(lambda all_: [beside_the_reference(a) for a in all_])(problems):
        assert_close(got, wanted, 1e-13)


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_first_is_the_same_transposed(x64, groups):
    options = {"groups": groups, "activation": "tanh"}

    def channels_first(inputs, kernel, bias, residual):
        first = (jnp.moveaxis(a, -1, 1) for a in (inputs, residual))
        inputs, residual = first
        outputs = run(inputs, kernel, bias, residual, channels_first=True, **options)
        return jnp.moveaxis(outputs, 1, -1)

    @jax.jit
    def both(problems):
        return [
            (with_gradients(channels_first, arrays), with_gradients(run, arrays, **options))
            for arrays in problems
        ]

    axes = range(4) if groups == 1 else [2]
    for got, wanted in both([problem(n, groups=groups, dtype=np.float64) for n in axes]):
        assert_close(got, wanted, 1e-13)


@pytest.mark.parametrize("channels_first", [False, True])
def test_many_groups_are_one_matmul(x64, channels_first):
    groups = 32
    rng = np.random.default_rng(0)
    shape = (2, 64, 5) if channels_first else (2, 5, 64)
    wide = (2, 96, 5) if channels_first else (2, 5, 96)
    arrays = [jnp.asarray(rng.normal(size=s)) for s in (shape, (2, 96), (96,), wide)]
    options = {"groups": np.int64(groups), "channels_first": channels_first, "activation": "tanh"}
    got, wanted = jax.jit(lambda arrays: beside_the_reference(arrays, **options))(arrays)
    assert_close(got, wanted, 1e-13)
    step = jax.jit(jax.grad(lambda x, w: run(x, w, None, **options).sum(), (0, 1)))
    assert step.lower(*arrays[:2]).as_text().count("dot_general") <= 3


@pytest.mark.parametrize(
    ("groups", "shape"), [(1, (0, 5, 32)), (2, (2, 0, 32)), (16, (0, 5, 32)), (16, (2, 0, 32))]
)
def test_empty_inputs(shape, groups):
    arrays = jnp.ones(shape), jnp.ones((32 // groups, 16)), jnp.ones(16)
    outputs, backward = jax.vjp(partial(run, groups=groups, activation="silu"), *arrays)
    assert outputs.shape == (*shape[:2], 16)
    for gradient, array in zip(backward(outputs), arrays, strict=True):
        assert gradient.shape == array.shape
        assert not bool(gradient.any())


@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 16}, {"channels_first": True}])
def test_strict_modes(strict_modes, options):
    first = options.get("channels_first", False)
    inputs = jnp.ones((2, 32, 5) if first else (2, 5, 32))
    kernel = jnp.ones((32 // options.get("groups", 1), 16), jnp.bfloat16)
    residual = jnp.ones((2, 16, 5) if first else (2, 5, 16), jnp.float16)

    def loss(*arrays):
        return run(*arrays, activation="gelu", **options).sum()

    arrays = inputs, kernel, jnp.ones(16), residual
    gradients = jax.jit(jax.grad(loss, range(4)))(*arrays)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient.dtype == array.dtype
        assert np.isfinite(np.asarray(gradient, np.float32)).all()
    folded, _ = fold_batch_norm(kernel, None, *np.ones((4, 16), np.float32))
    assert folded.dtype == jnp.float32


def test_strides_of_any_sort_and_arrays_of_numpy():
    inputs, kernel, bias = problem(residual=False)
    wanted = run(inputs, kernel, bias, strides=(2, 2))
    for strides in (2, np.int64(2), [2, 2], np.array([2, 2])):
        np.testing.assert_array_equal(run(inputs, kernel, bias, strides=strides), wanted)
    np.testing.assert_array_equal(run(*map(np.asarray, (inputs, kernel, bias)), strides=2), wanted)


@pytest.mark.smoke
def test_is_flax_conv():
    inputs, kernel, bias = problem(residual=False)
    conv = nnx.Conv(6, 4, kernel_size=(1, 1), strides=(2, 2), rngs=nnx.Rngs(0))
    conv.kernel[...], conv.bias[...] = kernel[None, None], bias
    # 6 products and a bias in float32: eight roundings of 6e-8 each.
    np.testing.assert_allclose(
        run(inputs, kernel, bias, strides=2), conv(inputs), atol=8 * 6e-8 * 10
    )


@pytest.mark.parametrize(("groups", "shape"), [(1, (6, 4)), (2, (3, 4))])
def test_is_xla_convolution_with_groups(groups, shape):
    inputs, kernel, bias = problem(groups=groups, residual=False)
    wanted = lax.conv_general_dilated(
        inputs, kernel[None, None], (1, 1), "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip
    assert kernel.shape == shape
    np.testing.assert_allclose(
        run(inputs, kernel, bias, groups=groups), wanted + bias, atol=8 * 6e-8 * 10
    )


def test_exact_gelu_is_pytorch_s_and_gelu_its_tanh_form():
    x = np.linspace(-9, 9, 3001)
    exact = np.array([value * 0.5 * math.erfc(-value / 2**0.5) for value in x])
    with_tanh = x * 0.5 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    slope = exact / np.where(x == 0, 1, x) + x * np.exp(-x * x / 2) / (2 * np.pi) ** 0.5
    slope[x == 0] = 0.5

    @partial(jax.jit, static_argnums=1)
    def run(x, name):
        def activated(x):
            return pointwise_conv(x[:, None], jnp.ones((1, 1)), activation=name)

        outputs, transposed = jax.vjp(activated, x)
        return outputs[:, 0], transposed(jnp.ones_like(outputs))[0]

    x32 = jnp.asarray(x, jnp.float32)
    outputs, gradient = run(x32, "gelu_exact")
    # The rounding of x itself, and of a few operations, in float32.
    np.testing.assert_allclose(outputs, exact, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=0, atol=1e-6)
    in_kernel = ACTIVATIONS["gelu_exact"].in_kernel
    np.testing.assert_allclose(in_kernel(x32), exact, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(run(x32, "gelu")[0], with_tanh, rtol=0, atol=2e-6)
    assert np.abs(exact - with_tanh).max() > 4e-4


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "gelu_exact"])
def test_numerical_gradients_of_second_order(x64, activation):
    """The first order is the reference's, above, by JAX's own derivatives."""
    # A relu bends at 0, where differences are no gradient: no sum lies within 1e-3 of it.
    arrays = problem(axes=1, dtype=np.float64)
    sums = run(*arrays)
    assert activation != "relu" or np.abs(sums).min() > 1e-3
    function = partial(run, activation=activation)

    def gradients(*arrays):
        outputs, backward = jax.vjp(function, *arrays)
        return backward(jnp.sin(outputs))

    assert_slopes(gradients, arrays, 1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_accumulated_in_float32(dtype):
    inputs = jnp.ones((1, 4, 4096), dtype)
    outputs, _, kernel_gradient = with_gradients(
        lambda x, w: pointwise_conv(x, w), [inputs, jnp.full((4096, 2), 1 / 4096, dtype)]
    )
    assert outputs.dtype == kernel_gradient.dtype == dtype
    np.testing.assert_array_equal(outputs.astype(np.float32), 1)  # in bfloat16 it would stop early


def test_a_gradient_keeps_only_inputs_and_outputs(x64):
    arrays = problem(dtype=np.float64)
    _, backward = jax.vjp(partial(run, activation="relu"), *arrays)
    inputs, kernel, _, outputs = arrays
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept <= inputs.size + kernel.size + outputs.size


def test_composes():
    arrays = problem(residual=False)
    mapped = jax.vmap(run, in_axes=(0, None, None))(np.stack([arrays[0]] * 3), *arrays[1:])
    np.testing.assert_allclose(mapped[1], run(*arrays), rtol=1e-6, atol=1e-6)
    relu = partial(run, activation="relu")
    rematerialized, plain = jax.jit(
        lambda arrays: [with_gradients(each, arrays) for each in (jax.checkpoint(relu), relu)]
    )(arrays)
    assert_close(rematerialized, plain, 1e-6)


def test_the_hlo_has_matmuls_and_no_convolution():
    arrays = problem(residual=False)

    def step(*arrays):
        outputs, backward = jax.vjp(run, *arrays)
        return backward(outputs)

    text = jax.jit(step).lower(*arrays).compile().as_text()
    assert text is not None
    assert " convolution(" not in text
    assert " dot(" in text


def test_channels_first_copies_no_activations():
    inputs, kernel = jnp.ones((4, 64, 32, 32)), jnp.ones((64, 32))
    function = jax.jit(partial(pointwise_conv, channels_first=True))
    memory = function.lower(inputs, kernel).compile().memory_analysis()
    assert memory is not None
    # The kernel, repeated for each image, and the outputs before their bias at most.
    assert memory.temp_size_in_bytes <= 4 * 64 * 32 * 4 + 4 * 32 * 32 * 32 * 4
    assert memory.temp_size_in_bytes < inputs.nbytes


def test_channels_first_in_a_loop_costs_what_it_does_outside():
    """jax#12868: lax.conv took 16 s for two iterations in a loop, 3 ms outside."""
    inputs, kernel = jnp.ones((4, 64, 4096)), jnp.eye(64)
    convolve = partial(pointwise_conv, kernel=kernel, channels_first=True)
    rounds = 4

    @jax.jit
    def inside(inputs):
        return lax.fori_loop(0, rounds, lambda _, x: convolve(x), inputs)

    def outside(inputs):
        for _ in range(rounds):
            inputs = convolve(inputs)
        return inputs

    np.testing.assert_array_equal(inside(inputs), outside(inputs))

    def seconds(function):
        start = time.perf_counter()
        jax.block_until_ready(function(inputs))
        return time.perf_counter() - start

    # The best of many, in turn: other work on the machine only adds. Twice is far below 5,000
    # times, and far above the spread of the best.
    times = [(seconds(inside), seconds(outside)) for _ in range(15)]
    best_inside, best_outside = (min(column) for column in zip(*times, strict=True))
    assert best_inside < 2 * best_outside


@pytest.mark.parametrize("channels_first", [False, True])
def test_lowers_for(channels_first):
    inputs = np.ones((2, 8, 4, 8), np.float32)
    function = partial(pointwise_conv, channels_first=channels_first, activation="gelu")
    gradient = jax.grad(lambda *arrays: function(*arrays).sum(), (0, 1))
    kernel = np.ones((8, 3), np.float32)
    exported = export.export(jax.jit(gradient), platforms=["tpu", "cuda"])(inputs, kernel)
    assert exported.platforms == ("tpu", "cuda")


@pytest.mark.smoke
def test_folded_batch_norm_is_batch_norm():
    conv = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
    norm = nnx.BatchNorm(8, epsilon=1e-3, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    norm.mean[...], norm.scale[...], norm.bias[...] = jnp.asarray(rng.normal(size=(3, 8)))
    norm.var[...] = jnp.asarray(rng.uniform(0.5, 2, 8))
    norm.eval()
    images = jnp.asarray(rng.normal(size=(2, 9, 9, 3)), jnp.float32)
    wanted = norm(conv(images))
    folded = fold_batch_norm(
        conv.kernel[...], conv.bias[...], norm.mean[...], norm.var[...], norm.scale[...],
        norm.bias[...], epsilon=1e-3,
    )  # fmt: skip
    conv.kernel[...], conv.bias[...] = folded
    # Sums of 28 terms in float32, in another order.
    np.testing.assert_allclose(conv(images), wanted, atol=28 * 6e-8 * 10)


ERRORS = {
    "inputs must be floating": ({"inputs": jnp.ones((2, 5, 6), int)}, TypeError),
    "kernel must be .in // groups, out., got shape .1, 1, 6, 4.; give": (
        {"kernel": jnp.ones((1, 1, 6, 4))},
        ValueError,
    ),
    "say channels_first=True": ({"inputs": jnp.ones((2, 6, 5))}, ValueError),
    "say channels_first=False": ({"channels_first": True}, ValueError),
    "looks transposed": ({"kernel": jnp.ones((4, 6)), "bias": None}, ValueError),
    "groups must divide out = 4, got 3": ({"groups": 3}, ValueError),
    "groups = 12": ({"groups": 2}, ValueError),
    "bias must be .out.": ({"bias": jnp.ones(6)}, ValueError),
    "strides must be": ({"strides": (1, 2)}, ValueError),
    "strides must be at least 1": ({"strides": 0}, ValueError),
    "activation must be None or one of": ({"activation": "swish"}, ValueError),
    "residual must have the output's shape": ({"residual": jnp.ones((2, 5, 6))}, ValueError),
    "residual must be floating": ({"residual": jnp.ones((2, 5, 4), int)}, TypeError),
    "implementation must be": ({"implementation": "im2col"}, ValueError),
    "kernel must not be empty": (
        {"inputs": jnp.ones((2, 5, 0)), "kernel": jnp.ones((0, 4))},
        ValueError,
    ),
    "strides must be an integer or 1 of them, got 2.0": ({"strides": 2.0}, TypeError),
    "groups must be an integer": ({"groups": 1.0}, TypeError),
}


@pytest.mark.parametrize("message", ERRORS)
def test_bad_input(users_checks, message):
    changed, error = ERRORS[message]
    arguments = {"inputs": jnp.ones((2, 5, 6)), "kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}
    with pytest.raises(error, match=message):
        pointwise_conv(**arguments | changed)


@pytest.mark.parametrize("name", ["bias", "mean", "variance", "scale", "offset"])
def test_bad_folding(users_checks, name):
    vectors = dict.fromkeys(["bias", "mean", "variance", "scale", "offset"], jnp.ones(4))
    with pytest.raises(ValueError, match=f"{name} must be .out. = .4,., got .3,."):
        fold_batch_norm(jnp.ones((6, 4)), **vectors | {name: jnp.ones(3)})
    with pytest.raises(ValueError, match="epsilon must be positive, got 0"):
        fold_batch_norm(jnp.ones((6, 4)), **vectors, epsilon=0)


@pytest.mark.parametrize("options", [{}, {"activation": "relu"}, {"strides": 2}])
def test_a_backward_in_tiles_is_the_whole_one(monkeypatch, options):
    """Tiles that divide the rows, that leave some over, and one for all; first and second order."""
    inputs, kernel, bias = problem(features=4, out=9, residual=False)

    def loss(*arrays):
        return jnp.sin(pointwise_conv(*arrays, **options)).sum()

    def derivatives():
        jax.clear_caches()

        @jax.jit
        def both(inputs, kernel, bias):
            first = jax.grad(loss, (0, 1, 2))(inputs, kernel, bias)
            second = jax.grad(lambda w: (jax.grad(loss)(inputs, w, bias) ** 2).sum())(kernel)
            return *first, second

        return both(inputs, kernel, bias)

    wanted = derivatives()
    monkeypatch.setattr(xla, "_TILED_BYTES", 0)
    for tile_bytes in (400, 1000, 10**6) if not options else (400,):
        monkeypatch.setattr(xla, "_TILE_BYTES", tile_bytes)
        # Sums of at most 60 rows, in another order.
        assert_close(derivatives(), wanted, 8 * 60**0.5 * 1.2e-7)


def test_a_large_widening_gradient_runs_in_tiles():
    """A loop in the compiled program, and none where the outputs are the narrower side."""
    wide, narrow = (jnp.ones((1, 20_000, features)) for features in (128, 8))

    def text(inputs, out):
        kernel = jnp.ones((inputs.shape[2], out))
        step = jax.jit(jax.grad(lambda x, w: (pointwise_conv(x, w) ** 2).sum(), (0, 1)))
        return step.lower(inputs, kernel).compile().as_text()

    assert " while(" in text(narrow, 128)
    assert " while(" not in text(wide, 8)
