import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.kernels import pointwise_conv
from jaxnets.layers import PointwiseConv, SeparableConv


def test_calls_the_kernel():
    layer = PointwiseConv(6, 4, strides=2, groups=2, activation="gelu", rngs=nnx.Rngs(0))
    layer.bias[...] = jnp.arange(4.0)
    inputs, residual = jnp.ones((2, 5, 5, 6)), jnp.ones((2, 3, 3, 4))
    wanted = pointwise_conv(
        inputs, layer.kernel[...], layer.bias[...], residual=residual, strides=2, groups=2,
        activation="gelu",
    )  # fmt: skip
    np.testing.assert_array_equal(layer(inputs, residual), wanted)


def test_channels_first():
    layer = PointwiseConv(3, 4, channels_first=True, use_bias=False, rngs=nnx.Rngs(0))
    assert layer(jnp.ones((2, 3, 5, 7))).shape == (2, 4, 5, 7)


def test_folds_batch_norm_and_then_its_activation():
    rngs = nnx.Rngs(0)
    layer, norm = PointwiseConv(6, 4, use_bias=False, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
    inputs = jax.random.normal(jax.random.key(1), (2, 5, 5, 6))
    for _ in range(3):
        norm(3 * layer(inputs) + 1)
    norm.eval()
    folded = layer.fold(norm)
    folded.activation = "relu"
    # Sums of six products in float32, scaled.
    np.testing.assert_allclose(folded(inputs), nnx.relu(norm(layer(inputs))), atol=6e-8 * 100)


def test_folding_is_refused_behind_an_activation():
    layer = PointwiseConv(6, 4, activation="relu", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="activation must be None to fold"):
        layer.fold(nnx.BatchNorm(4, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="groups must divide"):
        PointwiseConv(6, 4, groups=4, rngs=nnx.Rngs(0))


def test_separable_is_a_convolution_of_rank_one_kernels():
    layer = SeparableConv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    full = nnx.Conv(3, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    full.kernel[...] = layer.depthwise[...][..., None] * layer.pointwise.kernel[...]
    # Sums of 27 products in float32.
    np.testing.assert_allclose(layer(images), full(images), atol=27 * 6e-8 * 10)


def test_trains():
    layer = SeparableConv(3, 2, (3, 3), activation="silu", rngs=nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    gradients = nnx.grad(lambda layer: (layer(images) ** 2).mean())(layer)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))


def test_bridges_to_linen():
    linen = nnx.bridge.to_linen(PointwiseConv, 3, out_features=4)
    variables = linen.init(jax.random.key(0), jnp.ones((2, 5, 5, 3)))
    assert linen.apply(variables, jnp.ones((2, 5, 5, 3))).shape == (2, 5, 5, 4)
