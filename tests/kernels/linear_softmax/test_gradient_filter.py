"""Tiles of small softmaxes left out of the gradient: just those, and the error that is stated."""

from functools import partial

import jax
import numpy as np
import pytest

from jaxnets.kernels import Tiles, VocabSharding, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss
from tests.near import assert_near

FILTER, TOKENS, FEATURES, VOCAB = 2**-6, 16, 4, 24
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=(TOKENS, FEATURES))
HIDDEN[8:] = 2 * HIDDEN[0] + 0.1 * HIDDEN[8:]  # tokens that are sure of the same classes
WEIGHT = DRAW.normal(size=(VOCAB, FEATURES))
BIAS = 4 - np.arange(VOCAB) / 2  # sorted by frequency
LABELS = DRAW.integers(0, VOCAB, TOKENS)
WEIGHTS = DRAW.uniform(0.5, 2, TOKENS)
WEIGHTS[3] = 0
TILES = Tiles(token_tile=4, vocab_tile=6)


def loss(hidden, weight, bias, **options):
    return linear_softmax_cross_entropy(
        hidden, weight, LABELS, bias=bias, token_weights=WEIGHTS, tiles=TILES, **options
    )


def filtered():
    """The gradients of hidden states and table tile by tile, and the share left out of each."""
    logits = HIDDEN @ WEIGHT.T + BIAS
    e = np.exp(logits)
    p, factors = e / e.sum(1, keepdims=True), (WEIGHTS / WEIGHTS.sum())[:, None]
    onehot = np.eye(VOCAB)[LABELS]
    d_hidden, d_weight = -factors * onehot @ WEIGHT, -(factors * onehot).T @ HIDDEN
    left_out = np.zeros(2)
    for token in range(0, TOKENS, 4):
        rows = np.arange(token, token + 4)
        counted = rows[WEIGHTS[rows] != 0]
        for start in range(0, VOCAB, 6):
            classes = slice(start, start + 6)
            part = factors[rows] * p[rows, classes]
            so_far = e[counted, : start + 6].sum(1, keepdims=True)
            if (e[counted, classes] / so_far >= FILTER).any():
                d_hidden[rows] += part @ WEIGHT[classes]
            else:
                left_out[0] += 1 / 16
            if (p[counted, classes] >= FILTER).any():
                d_weight[classes] += part.T @ HIDDEN[rows]
            else:
                left_out[1] += 1 / 16
    return (d_hidden, d_weight), left_out


def test_tiles_below_the_filter_are_left_out(x64):
    gradient = jax.value_and_grad(partial(loss, gradient_filter=FILTER), (0, 1, 2))
    hidden = np.where(WEIGHTS[:, None] == 0, np.nan, HIDDEN)
    value, (*got, d_bias) = jax.jit(gradient)(hidden, WEIGHT, BIAS)
    factors = WEIGHTS / WEIGHTS.sum()
    losses, _, backward = exact_loss(HIDDEN, WEIGHT, LABELS, BIAS)
    exact, (*rest, whole_bias) = (factors * losses).sum(), backward(factors)[:3]
    wanted, left_out = filtered()
    assert ((left_out > 0.1) & (left_out < 0.9)).all()
    assert_near(got, wanted, 1e-12)
    assert_near((value, d_bias), (exact, whole_bias), 1e-14)
    # The error that is stated.
    of_hidden, of_weight = (
        np.linalg.norm(np.asarray(a) - np.asarray(b), axis=1)
        for a, b in zip(got, rest, strict=True)
    )
    assert of_weight.max() > 0
    assert of_hidden.max() > 0
    norms = [np.linalg.norm(array, axis=1) for array in (HIDDEN, WEIGHT)]
    assert (of_weight <= FILTER * (factors * norms[0]).sum()).all()
    assert (of_hidden <= FILTER * factors * norms[1].sum()).all()


def test_over_devices_it_is_the_same_table_gradient():
    mesh = jax.make_mesh((2, 2), ("data", "vocab"))
    split = VocabSharding(mesh, "vocab", "data")
    arrays = [array.astype(np.float32) for array in (HIDDEN, WEIGHT, BIAS)]
    gradient = jax.grad(partial(loss, gradient_filter=FILTER, sharding=split), 1)
    (_, wanted), _ = filtered()
    assert_near(jax.jit(gradient)(*arrays), wanted, 1e-5)


@pytest.mark.usefixtures("users_checks")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_filter": 1.0}, r"gradient_filter must lie in \(0, 1\), got 1.0"),
        ({"reduction": "none"}, "gradient_filter must be None where the gradient takes two passes"),
        ({"return_log_sum_exp": True}, "where the gradient takes two passes"),
        ({"soft_cap": 3.0, "label_smoothing": 0.1}, "where the gradient takes two passes"),
        ({"implementation": "pallas"}, "'tiled' or None with gradient_filter, got 'pallas'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        loss(HIDDEN, WEIGHT, BIAS, **{"gradient_filter": FILTER, **options})
