"""The one pass as TPUs run it: exponentials side by side, in columns. Here, by XLA for CPU."""

import jax
import numpy as np
import pytest

from jaxnets.kernels import Tiles, compiling_for, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss

TOKENS, FEATURES, VOCAB = 5, 3, 150
TILES = Tiles(token_tile=2, vocab_tile=64)  # neither divides what there is
LABELS = np.array([0, 149, 70, 3, 100])
OPTIONS = (
    {"label_smoothing": 0.2, "z_loss": 0.01},
    {"soft_cap": 3.0, "temperature": 1.5},
)


def problem(rise):
    """Logits of the last classes lie ``rise`` higher; a class is out, and it is no label."""
    draw = np.random.default_rng(0)
    sizes = (TOKENS, FEATURES), (VOCAB, FEATURES), VOCAB
    hidden, weight, bias = (draw.normal(size=size).astype(np.float32) for size in sizes)
    bias[100:] += rise
    bias[90] = -np.inf
    return hidden, weight, bias


def ours(hidden, weight, bias):
    """Of each of the options, of a filter that leaves nothing out, and of a table the other way."""

    def loss(hidden, weight, bias, **options):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, tiles=TILES, **options
        )

    every = [*OPTIONS, {"gradient_filter": 1e-30}]
    found = [
        jax.value_and_grad(lambda *arrays, o=options: loss(*arrays, **o), (0, 1, 2))(
            hidden, weight, bias
        )
        for options in every
    ]
    turned = jax.value_and_grad(
        lambda *arrays: loss(*arrays, features_first=True), (0, 1, 2)
    )(hidden, weight.T, bias)  # fmt: skip
    return found, turned


@pytest.fixture(scope="module")
def program():
    with compiling_for("tpu"):
        lowered = jax.jit(ours).lower(*problem(0))
    assert "tensor<2x192xf32>" in lowered.as_text()  # what is kept of two tokens
    return lowered.compile()


# Within the range of the sums, and beyond it, where the shift is raised and all is done again.
@pytest.mark.parametrize("rise", [0, 80])
def test_value_and_gradients_equal_the_equation(program, rise):
    arrays = problem(rise)
    found, (value, (d_hidden, d_weight, d_bias)) = program(*arrays)
    by_options = zip(
        [*OPTIONS, {}, {}], [*found, (value, (d_hidden, d_weight.T, d_bias))], strict=True
    )
    for options, (value, gradients) in by_options:
        losses, _, backward = exact_loss(*arrays[:2], LABELS, arrays[2], **options)
        np.testing.assert_allclose(value, losses.mean(), rtol=1e-6, atol=1e-6 * max(1, rise))
        for actual, exact in zip(gradients, backward(1 / TOKENS), strict=False):
            np.testing.assert_allclose(actual, exact, atol=1e-6 * max(1, rise))


def test_second_derivatives():
    """Along a direction, against differences of the gradient by hand."""
    arrays = problem(80)

    def gradient(*arrays):
        def loss(*arrays):
            return linear_softmax_cross_entropy(
                arrays[0], arrays[1], LABELS, bias=arrays[2], tiles=TILES
            )

        return jax.grad(loss, 0)(*arrays)

    directions = tuple(np.ones_like(a) for a in arrays)
    with compiling_for("tpu"):
        along = jax.jit(lambda *arrays: jax.jvp(gradient, arrays, directions)[1])(*arrays)

    def by_hand(step):
        moved = (a.astype(np.float64) + step for a in arrays)
        hidden, weight, bias = moved
        return exact_loss(hidden, weight, LABELS, bias)[2](1 / TOKENS)[0]

    wanted = (by_hand(1e-5) - by_hand(-1e-5)) / 2e-5
    np.testing.assert_allclose(along, wanted, atol=1e-4)
