import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.convert import conv_to_dense, convolutionalise, dense_to_conv
from jaxnets.layers import PointwiseConv

# Sums of at most 4 * 5 * 3 = 60 products in float32, in another order.
TOLERANCE = {"rtol": 0, "atol": 60 * 6e-8 * 10}


def images(*shape):
    return jax.random.normal(jax.random.key(0), shape)


@pytest.mark.parametrize("window", [(5,), (4, 5), (2, 3, 2)])
@pytest.mark.parametrize("flattened", ["channels_last", "channels_first"])
def test_dense_over_a_map_is_a_convolution_of_its_size(window, flattened):
    maps = images(2, *window, 3)
    flat = (jnp.moveaxis(maps, -1, 1) if flattened == "channels_first" else maps).reshape(2, -1)
    dense = nnx.Linear(flat.shape[1], 7, rngs=nnx.Rngs(0))
    dense.bias[...] = jnp.arange(7.0)
    conv = convolutionalise(dense, window, flattened=flattened)
    outputs = conv(maps)
    assert outputs.shape == (2, *(1 for _ in window), 7)
    np.testing.assert_allclose(outputs.reshape(2, 7), dense(flat), **TOLERANCE)


def test_a_classifier_slides_over_a_larger_image():
    dense = nnx.Linear(4 * 5 * 3, 7, rngs=nnx.Rngs(0))
    image = images(1, 9, 8, 3)
    slid = convolutionalise(dense, (4, 5))(image)
    assert slid.shape == (1, 6, 4, 7)
    for row in range(6):
        for column in range(4):
            patch = image[0, row : row + 4, column : column + 5]
            np.testing.assert_allclose(slid[0, row, column], dense(patch.ravel()), **TOLERANCE)


def test_dense_at_each_position_is_a_1x1_convolution():
    dense = nnx.Linear(3, 7, rngs=nnx.Rngs(0))
    image = images(2, 4, 5, 3)
    np.testing.assert_allclose(convolutionalise(dense, (1, 1))(image), dense(image), **TOLERANCE)
    pointwise = PointwiseConv(3, 7, rngs=nnx.Rngs(0))
    pointwise.kernel[...] = dense.kernel[...]
    np.testing.assert_allclose(pointwise(image), dense(image), **TOLERANCE)


@pytest.mark.parametrize("flattened", ["channels_last", "channels_first"])
def test_there_and_back(flattened):
    kernel = images(4 * 5 * 3, 7)
    conv = dense_to_conv(kernel, (4, 5), flattened=flattened)
    np.testing.assert_array_equal(conv_to_dense(conv, flattened=flattened), kernel)


def test_without_bias():
    conv = convolutionalise(nnx.Linear(12, 2, use_bias=False, rngs=nnx.Rngs(0)), (2, 2))
    assert conv.bias is None


def test_bad_input(users_checks):
    with pytest.raises(ValueError, match="window must divide the kernel's in = 60"):
        dense_to_conv(jnp.ones((60, 7)), (7, 7))
    with pytest.raises(ValueError, match="flattened must be one of"):
        dense_to_conv(jnp.ones((60, 7)), (4, 5), flattened="NCHW")
    with pytest.raises(ValueError, match="window must have positive sizes"):
        dense_to_conv(jnp.ones((60, 7)), ())
