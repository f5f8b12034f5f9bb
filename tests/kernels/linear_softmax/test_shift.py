"""The one-pass loss where a token's logits rise far above those of the first classes."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxnets.kernels import Tiles, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss

TOKENS, FEATURES, VOCAB = 5, 3, 150
TILES = [Tiles(token_tile=2, vocab_tile=64), Tiles(token_tile=TOKENS, vocab_tile=64)]
LABELS = np.array([0, 149, 70, 3, 100])


@partial(jax.jit, static_argnums=3)
def value_and_gradients(hidden, weight, bias, tiles=TILES[0]):
    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(hidden, weight, LABELS, bias=bias, tiles=tiles)

    return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias)


def problem():
    draw = np.random.default_rng(0)
    sizes = (TOKENS, FEATURES), (VOCAB, FEATURES), VOCAB
    return [draw.normal(size=size).astype(np.float32) for size in sizes]


# How far, in logits: within the range of the sums, beyond it, and beyond float32's exponentials.
@pytest.mark.parametrize("rise", [0, 40, 80, 1000, 1e30, -1000])
@pytest.mark.parametrize("tiles", TILES)
def test_the_last_classes_are_far_above_the_first(tiles, rise):
    hidden, weight, bias = problem()
    bias[100:] += np.float32(rise)
    value, gradients = value_and_gradients(hidden, weight, bias, tiles)
    wanted, _, backward = exact_loss(hidden, weight, LABELS, bias)
    scale = max(1, abs(rise))  # logits are rounded
    np.testing.assert_allclose(value, wanted.mean(), rtol=1e-6, atol=1e-6 * min(scale, 1e3))
    for found, exact in zip(gradients, backward(1 / TOKENS), strict=False):
        np.testing.assert_allclose(found, exact, atol=1e-6 * min(scale, 1e3))


def test_one_token_rises_beside_others():
    """Its tile of tokens is done again, and the other token of it loses nothing."""
    hidden, weight, bias = problem()
    weight[120] = 0, 0, 90
    hidden[1] = 0, 0, 3
    value, gradients = value_and_gradients(hidden, weight, bias)
    wanted, _, backward = exact_loss(hidden, weight, LABELS, bias)
    np.testing.assert_allclose(value, wanted.mean(), rtol=1e-6)
    for found, exact in zip(gradients, backward(1 / TOKENS), strict=False):
        np.testing.assert_allclose(found, exact, atol=1e-6 * np.abs(exact).max())


def test_what_is_not_finite_ends():
    hidden, weight, bias = problem()
    for at, number in ((1, np.nan), (140, np.nan), (140, np.inf)):
        spoilt = bias.copy()
        spoilt[at] = number
        value, _ = value_and_gradients(hidden, weight, spoilt)
        assert not np.isfinite(value)
    value, _ = value_and_gradients(hidden, weight, np.full_like(bias, -np.inf))
    assert not np.isfinite(value)


def test_the_mean_of_many_tokens_in_float16():
    """A factor of 1 / 4,096 times a small softmax and hidden state is below float16's range."""
    draw = np.random.default_rng(1)
    hidden = (0.05 * draw.normal(size=(4096, 4))).astype(np.float16)
    weight = draw.normal(size=(250, 4)).astype(np.float16)
    labels = draw.integers(0, 10, 4096)  # what others get is of the softmax alone

    def loss(hidden, weight):
        return linear_softmax_cross_entropy(hidden, weight, labels)

    value, found = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, weight)
    assert (value.dtype, *(g.dtype for g in found)) == ("float32", "float16", "float16")
    losses, _, backward = exact_loss(hidden, weight, labels)
    of_hidden, exact = backward(1 / 4096)[:2]
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    error = np.abs(np.asarray(found[0], np.float64) - of_hidden).max()
    assert error < 2 * np.finfo(np.float16).eps * np.abs(of_hidden).max()
    rare = np.abs(exact[10:])
    assert rare.max() < 2**-14  # float16's least normal number
    # Each of eight tiles of tokens is rounded.
    np.testing.assert_allclose(found[1][10:], exact[10:], atol=8 * 2**-25)


@pytest.mark.parametrize("rise", [0, 80])
def test_second_derivatives_in_both_modes(rise):
    """Through the tries, whose number only values tell, those of whole logits."""
    arrays = problem()
    arrays[2][100:] += rise

    def plain(step, directions):
        """The gradient by hand, of arrays that are moved."""
        hidden, weight, bias = (
            np.asarray(a, np.float64) + step * d for a, d in zip(arrays, directions, strict=True)
        )
        return exact_loss(hidden, weight, LABELS, bias)[2](1 / TOKENS)[:3]

    def along(directions):
        """The Hessian times the directions, by central differences in float64."""
        ends = zip(plain(1e-5, directions), plain(-1e-5, directions), strict=True)
        return tuple((a - b) / 2e-5 for a, b in ends)

    def ours(*arrays):
        tiles = Tiles(TOKENS, VOCAB // 2)
        return linear_softmax_cross_entropy(*arrays[:2], LABELS, bias=arrays[2], tiles=tiles)

    @jax.jit
    def derived(arrays):
        def gradient(arrays):
            return jax.grad(lambda arrays: ours(*arrays), 0)(arrays)

        def square(arrays):
            return sum((g**2).sum() for g in gradient(arrays))

        return jax.grad(square)(arrays), jax.jvp(gradient, (arrays,), (arrays,))[1]

    of_square, tangents = derived(tuple(arrays))
    wanted = tuple(2 * h for h in along(plain(0, arrays))), along(arrays)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (of_square, tangents), wanted
    )
