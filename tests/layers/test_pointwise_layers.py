from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.kernels import depthwise_conv, pointwise_conv
from jaxnets.layers import PointwiseConv, ResizeConv, SeparableConv

pytestmark = pytest.mark.usefixtures("cheap_parameters")


def images(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def ones(*shape):
    return jnp.asarray(np.ones(shape, np.float32))


def test_calls_the_kernel():
    layer = PointwiseConv(6, 4, strides=2, groups=2, activation="gelu", rngs=nnx.Rngs(0))
    layer.bias[...] = np.arange(4, dtype=np.float32)
    inputs, residual = ones(2, 5, 5, 6), ones(2, 3, 3, 4)
    wanted = pointwise_conv(
        inputs, layer.kernel[...], layer.bias[...], residual=residual, strides=2, groups=2,
        activation="gelu",
    )  # fmt: skip
    np.testing.assert_array_equal(layer(inputs, residual), wanted)


def test_channels_first():
    layer = PointwiseConv(3, 4, channels_first=True, use_bias=False, rngs=nnx.Rngs(0))
    assert jax.eval_shape(layer, ones(2, 3, 5, 7)).shape == (2, 4, 5, 7)


def test_folds_batch_norm_and_then_its_activation():
    rngs = nnx.Rngs(0)
    layer, norm = PointwiseConv(6, 4, use_bias=False, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
    inputs = images(2, 5, 5, 6)
    for vector, seed in ((norm.mean, 0), (norm.var, 1), (norm.scale, 2), (norm.bias, 3)):
        vector[...] = np.random.default_rng(seed).uniform(0.5, 2, 4).astype(np.float32)
    norm.eval()
    folded = layer.fold(norm)
    folded.activation = "relu"
    # Sums of six products in float32, scaled.
    wanted = nnx.jit(lambda layer, norm, inputs: nnx.relu(norm(layer(inputs))))(layer, norm, inputs)
    np.testing.assert_allclose(folded(inputs), wanted, atol=6e-8 * 100)


def test_folding_is_refused_behind_an_activation():
    layer = PointwiseConv(6, 4, activation="relu", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="activation must be None to fold"):
        layer.fold(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="groups must divide"):
        PointwiseConv(6, 4, groups=4, rngs=nnx.Rngs(0))


def test_separable_is_a_convolution_of_rank_one_kernels():
    layer = SeparableConv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    full = nnx.Conv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    depthwise, pointwise = map(np.asarray, (layer.depthwise[...], layer.pointwise.kernel[...]))
    full.kernel[...] = depthwise[..., None] * pointwise
    both = nnx.jit(lambda layer, full, inputs: (layer(inputs), full(inputs)))
    # Sums of 27 products in float32.
    np.testing.assert_allclose(*both(layer, full, images(2, 8, 8, 3)), atol=27 * 6e-8 * 10)


def test_trains():
    layer = SeparableConv(3, 2, (3, 3), activation="silu", rngs=nnx.Rngs(0))
    gradient = nnx.jit(nnx.grad(lambda layer, inputs: (layer(inputs) ** 2).mean()))
    gradients = gradient(layer, images(2, 8, 8, 3))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


@pytest.mark.smoke
def test_every_method_bridges_to_linen():
    linen = nnx.bridge.to_linen(PointwiseConv, 3, out_features=4)
    inputs, residual = images(2, 5, 5, 3), ones(2, 5, 5, 4)
    variables = linen.init(jax.random.key(0), inputs)
    outputs = linen.apply(variables, inputs, residual)
    layer = PointwiseConv(3, 4, rngs=nnx.Rngs(0))
    layer.kernel[...] = variables["params"]["kernel"]
    np.testing.assert_array_equal(outputs, layer(inputs, residual))
    norm = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    norm.mean[...] = np.arange(4, dtype=np.float32)
    folded = linen.apply(variables, norm, nnx_method="fold")
    np.testing.assert_array_equal(folded(inputs), layer.fold(norm)(inputs))

    separable = nnx.bridge.to_linen(SeparableConv, 3, out_features=4, kernel_size=(3, 3))
    variables = separable.init(jax.random.key(0), inputs)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(separable.apply(v, inputs)).sum()))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    resize = nnx.bridge.to_linen(ResizeConv, 3, out_features=4)
    variables = resize.init(jax.random.key(0), inputs, (3, 7))
    assert resize.apply(variables, inputs, [3, 7]).shape == (2, 3, 7, 4)


def test_sizes_of_numpy_s():
    inputs = ones(2, 6, 6, 3)
    one, two, three = np.int64(1), np.int32(2), np.uint8(3)
    pointwise = PointwiseConv(three, two, strides=two, groups=one, rngs=nnx.Rngs(0))
    assert jax.eval_shape(pointwise, inputs).shape == (2, 3, 3, 2)
    separable = SeparableConv(three, two, [three, three], strides=[two, one], rngs=nnx.Rngs(0))
    assert jax.eval_shape(separable, inputs).shape == (2, 3, 6, 2)
    resized = ResizeConv(three, two, kernel_size=three, rngs=nnx.Rngs(0))
    resize = partial(resized, size=[two, np.int64(4)])
    assert jax.eval_shape(resize, inputs).shape == (2, 2, 4, 2)


RNGS = nnx.Rngs(0)
BAD = {
    "in_features must be at least 1, got 0": lambda: PointwiseConv(0, 4, rngs=RNGS),
    r"out_features must be an integer, got 4\.0": lambda: SeparableConv(3, 4.0, (3, 3), rngs=RNGS),
    "groups must divide": lambda: PointwiseConv(3, 4, groups=0, rngs=RNGS),
    "strides must be at least 1, got 0": lambda: PointwiseConv(3, 4, strides=(1, 0), rngs=RNGS),
    r"strides must be an integer, got 1\.5": lambda: SeparableConv(
        3, 4, (3, 3), strides=1.5, rngs=RNGS
    ),
    "dtype must be floating point": lambda: PointwiseConv(3, 4, dtype=int, rngs=RNGS),
    "param_dtype must be floating": lambda: PointwiseConv(3, 4, param_dtype=int, rngs=RNGS),
    r"kernel_size must be an integer or 2 of them, got \(3,\)": lambda: ResizeConv(
        3, 4, kernel_size=(3,), rngs=RNGS
    ),
    r"size must be an integer, got 2\.0": lambda: ResizeConv(3, 4, rngs=RNGS)(
        ones(2, 4, 4, 3), (2.0, 4)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(users_checks, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BAD[message]()


@pytest.mark.parametrize(
    ("shape", "window", "options"),
    [
        ((2, 9, 3), 3, {"padding": "CAUSAL", "dilation": np.int64(2)}),
        ((2, 8, 7, 3), [2, 3], {"strides": [2, 1], "depth_multiplier": 2, "use_bias": False}),
        ((2, 8, 7, 3), (3, 3), {"padding": [[0, 1], 2]}),
    ],
)
def test_separable_options_in_both_layouts(shape, window, options):
    layer = SeparableConv(3, 4, window, activation="relu", rngs=nnx.Rngs(0), **options)
    first = SeparableConv(
        3, 4, window, activation="relu", channels_first=True, rngs=nnx.Rngs(0), **options
    )
    use_bias = options.get("use_bias", True)
    assert (layer.pointwise.bias is not None) == use_bias

    @nnx.jit
    def every(layer, first, inputs):
        own = {name: value for name, value in options.items() if name != "use_bias"}
        wanted = depthwise_conv(inputs, layer.depthwise[...], **own)
        wanted = pointwise_conv(wanted, layer.pointwise.kernel[...], activation="relu")
        return wanted, layer(inputs), jnp.moveaxis(first(jnp.moveaxis(inputs, -1, 1)), 1, -1)

    wanted, got, turned = every(layer, first, images(*shape))
    np.testing.assert_allclose(got, wanted, atol=1e-6)
    # A sum of at most 18 products of numbers near 1, twice, in float32.
    np.testing.assert_allclose(turned, wanted, atol=1e-5)


def test_an_integer_window_is_one_axis():
    with pytest.raises(ValueError, match=r"with 2 axes of the window"):
        SeparableConv(3, 4, 3, rngs=nnx.Rngs(0))(ones(2, 5, 5, 3))
