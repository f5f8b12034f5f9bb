import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.convert import conv_to_dense, convolutionalize, dense_to_conv
from jaxnets.layers import PointwiseConv

# Sums of at most 4 * 5 * 3 = 60 products in float32, in another order.
TOLERANCE = {"rtol": 0, "atol": 60 * 6e-8 * 10}
pytestmark = pytest.mark.usefixtures("cheap_parameters")


def images(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("window", [(5,), (4, 5), (2, 3, 2)])
@pytest.mark.parametrize("flattened", ["channels_last", "channels_first"])
def test_dense_over_a_map_is_a_convolution_of_its_size(window, flattened):
    maps = images(2, *window, 3)
    flat = (np.moveaxis(maps, -1, 1) if flattened == "channels_first" else maps).reshape(2, -1)
    dense = nnx.Linear(flat.shape[1], 7, rngs=nnx.Rngs(0))
    dense.bias[...] = np.arange(7, dtype=np.float32)
    conv = convolutionalize(dense, window, flattened=flattened)
    outputs = np.asarray(conv(maps))
    assert outputs.shape == (2, *(1 for _ in window), 7)
    wanted = flat @ np.asarray(dense.kernel[...]) + np.arange(7)
    np.testing.assert_allclose(outputs.reshape(2, 7), wanted, **TOLERANCE)


def test_a_classifier_slides_over_a_larger_image():
    dense = nnx.Linear(4 * 5 * 3, 7, rngs=nnx.Rngs(0))
    image = images(1, 9, 8, 3)
    slid = convolutionalize(dense, (4, 5))(image)
    assert slid.shape == (1, 6, 4, 7)
    assert not np.asarray(dense.bias[...]).any()
    slid = np.asarray(slid)[0]
    for row in range(6):
        for column in range(4):
            patch = image[0, row : row + 4, column : column + 5].ravel()
            wanted = patch @ np.asarray(dense.kernel[...])
            np.testing.assert_allclose(slid[row, column], wanted, **TOLERANCE)


def test_dense_at_each_position_is_a_1x1_convolution():
    dense = nnx.Linear(3, 7, rngs=nnx.Rngs(0))
    image = jnp.asarray(images(2, 4, 5, 3))
    wanted = dense(image)
    np.testing.assert_allclose(convolutionalize(dense, (1, 1))(image), wanted, **TOLERANCE)
    pointwise = PointwiseConv(3, 7, rngs=nnx.Rngs(0))
    pointwise.kernel[...] = dense.kernel[...]
    np.testing.assert_allclose(pointwise(image), wanted, **TOLERANCE)


@pytest.mark.parametrize("flattened", ["channels_last", "channels_first"])
def test_there_and_back(flattened):
    kernel = jnp.asarray(images(4 * 5 * 3, 7))
    conv = dense_to_conv(kernel, (4, 5), flattened=flattened)
    np.testing.assert_array_equal(conv_to_dense(conv, flattened=flattened), kernel)


def test_without_bias():
    conv = convolutionalize(nnx.Linear(12, 2, use_bias=False, rngs=nnx.Rngs(0)), (2, 2))
    assert conv.bias is None


def test_a_convolution_computes_as_its_dense_layer_and_holds_buffers_of_its_own():
    dense = nnx.Linear(12, 2, dtype=jnp.bfloat16, precision="highest", rngs=nnx.Rngs(0))
    conv = convolutionalize(dense, (np.int64(2), 2))
    maps = images(2, 2, 2, 3)
    of_dense = jax.eval_shape(dense, maps.reshape(2, -1))
    assert jax.eval_shape(conv, maps).dtype == of_dense.dtype == jnp.bfloat16
    assert conv.precision == "highest"
    buffers = [array.unsafe_buffer_pointer() for array in jax.tree.leaves(nnx.state((dense, conv)))]
    assert len(set(buffers)) == 4
    half = convolutionalize(nnx.Linear(12, 2, param_dtype=jnp.float16, rngs=nnx.Rngs(0)), (2, 2))
    assert half.kernel.dtype == half.bias.dtype == jnp.float16


def ones(*shape):
    return np.ones(shape, np.float32)


BAD = {
    "window must divide the kernel's in = 60": lambda: dense_to_conv(ones(60, 7), (7, 7)),
    "flattened must be one of": lambda: dense_to_conv(ones(60, 7), (4, 5), flattened="NCHW"),
    "window must have positive sizes": lambda: dense_to_conv(ones(60, 7), ()),
    r"window must have positive sizes, got \(4, 0\)": lambda: dense_to_conv(ones(60, 7), (4, 0)),
    r"window must be an integer, got 4\.0": lambda: dense_to_conv(ones(60, 7), (4.0, 5)),
    "window must hold a size for each spatial axis": lambda: dense_to_conv(ones(60, 7), 4),
    r"kernel must be \[in, out\], got shape \(4, 5, 3, 7\)": lambda: dense_to_conv(
        ones(4, 5, 3, 7), (4, 5)
    ),
    "kernel must be floating point, got int32": lambda: dense_to_conv(
        np.ones((60, 7), np.int32), (4, 5)
    ),
    r"kernel must be \[\*window, channels, out\], got shape \(60, 7\)": lambda: conv_to_dense(
        ones(60, 7)
    ),
    "dense must be an nnx.Linear, got Conv": lambda: convolutionalize(
        nnx.Conv(3, 7, (1, 1), rngs=nnx.Rngs(0)), (1, 1)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(users_checks, message):
    with pytest.raises((TypeError, ValueError), match=message):
        BAD[message]()
