"""The gradient of a table of bfloat16: no float32 copy, where few tiles of tokens add to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    Tiles,
    compiling_for,
    linear_divergence,
    linear_softmax_cross_entropy,
)
from jaxnets.kernels.linear_softmax.tile_sizes import MOST_ROUNDINGS, Sizes, chosen_tiles
from tests.inputs import on_device

TOKENS, FEATURES, VOCAB = 64, 24, 90  # the last of the tiles of 32 classes is moved back
RANDOM = np.random.default_rng(0)


def gradient_of(tokens_of_a_tile, **options):
    def loss(weight, hidden, labels):
        tiles = Tiles(tokens_of_a_tile, 32)
        return linear_softmax_cross_entropy(hidden, weight, labels, tiles=tiles, **options)

    return jax.jit(jax.grad(loss))


def problem(dtype):
    hidden = on_device(RANDOM.normal(size=(TOKENS, FEATURES)), dtype)
    weight = on_device(RANDOM.normal(size=(VOCAB, FEATURES)) / 4, dtype)
    # Half the tokens have one label: their rows are added before they are rounded.
    labels = np.where(np.arange(TOKENS) % 2 == 0, 7, RANDOM.integers(0, VOCAB, TOKENS))
    return weight, hidden, labels


def reference(weight, hidden, labels):
    """By the equation in float64: (softmax - onehot)^T hidden / tokens."""
    weight, hidden = np.asarray(weight, np.float64), np.asarray(hidden, np.float64)
    p = np.exp(hidden @ weight.T)
    p /= p.sum(1, keepdims=True)
    p[np.arange(TOKENS), labels] -= 1
    return p.T @ hidden / TOKENS


@pytest.mark.parametrize(
    ("tiles", "features_first"),
    [(1, False), (MOST_ROUNDINGS, True), (2 * MOST_ROUNDINGS, False)],
)
def test_each_tile_rounds_it_once(tiles, features_first):
    weight, hidden, labels = problem(jnp.bfloat16)
    given = weight.T if features_first else weight
    gradient = gradient_of(TOKENS // tiles, features_first=features_first)
    got = gradient(given, hidden, labels)
    assert got.dtype == jnp.bfloat16
    got = np.asarray(got.T if features_first else got, np.float64)
    wanted = reference(weight, hidden, labels)
    # A row's sums never exceed the largest entry by much; the operands are rounded too.
    roundings = 2 * tiles if tiles <= MOST_ROUNDINGS else 1  # of a tile's classes, of its labels
    tolerance = (roundings + 2) * 2.0**-9
    np.testing.assert_allclose(got, wanted, atol=tolerance * np.abs(wanted).max())


def carried_in_float32(gradient, *arrays):
    """Whether a loop carries an array of the table's shape in float32."""
    lines = gradient.lower(*arrays).as_text().splitlines()
    loops = [line for line in lines if "stablehlo.while" in line]
    assert any(f"tensor<{VOCAB}x{FEATURES}x" in line for line in loops)
    return any(f"tensor<{VOCAB}x{FEATURES}xf32>" in line for line in loops)


def test_there_is_a_float32_copy_only_with_many_tiles():
    arrays = problem(jnp.bfloat16)
    assert not carried_in_float32(gradient_of(TOKENS // MOST_ROUNDINGS), *arrays)
    assert carried_in_float32(gradient_of(TOKENS // MOST_ROUNDINGS // 2), *arrays)


def test_off_the_cpu_the_default_has_few_tiles():
    for tokens in (1, 2048, 100_000):
        tile, _ = chosen_tiles(Tiles(), "tpu", Sizes(tokens, FEATURES, VOCAB, *2 * ["bfloat16"]))
        assert tile * MOST_ROUNDINGS >= tokens
    weight, hidden, labels = problem(jnp.bfloat16)

    def loss(weight, hidden, labels):
        return linear_softmax_cross_entropy(hidden, weight, labels)

    many = jnp.tile(hidden, (100, 1)), jnp.tile(labels, 100)
    for platform, copied in (("cpu", True), ("tpu", False), ("gpu", False)):
        with compiling_for(platform):
            assert carried_in_float32(jax.jit(jax.grad(loss)), weight, *many) == copied


def test_in_two_passes_each_tile_of_classes_is_rounded_once():
    weight, hidden, labels = problem(jnp.bfloat16)

    def loss(weight, hidden, labels):
        tiles = Tiles(vocab_tile=32)
        losses = linear_softmax_cross_entropy(hidden, weight, labels, reduction="none", tiles=tiles)
        return losses.mean()

    gradient = jax.jit(jax.grad(loss))
    assert not carried_in_float32(gradient, weight, hidden, labels)
    got = np.asarray(gradient(weight, hidden, labels), np.float64)
    wanted = reference(weight, hidden, labels)
    # Of a tile, of the labels' rows, and the gradient's of the logits.
    np.testing.assert_allclose(got, wanted, atol=4 * 2.0**-9 * np.abs(wanted).max())


def test_a_divergence_has_no_float32_copy():
    weight, hidden, _ = problem(jnp.bfloat16)

    def loss(weight, hidden):
        return linear_divergence((hidden, weight), (hidden, weight + 1), tiles=Tiles(vocab_tile=32))

    assert not carried_in_float32(jax.jit(jax.grad(loss)), weight, hidden)
