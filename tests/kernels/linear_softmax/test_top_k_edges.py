"""Top-k at its edges: infinite logits, NaN and its sign, equal logits, no tokens."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import Tiles, linear_top_k
from tests.inputs import changed

OUT = -jnp.inf


@pytest.mark.parametrize(
    ("dtype", "k", "tile"),
    [("float32", 3, 1), ("bfloat16", 7, 3), ("float32", 3, np.int64(100))],
)
def test_infinite_logits_and_nan_name_different_classes(dtype, k, tile):
    """As of all logits at once, whatever the tile: the lower id first among equals."""
    rows = np.array([
        [OUT, OUT, 3, OUT, 1, OUT, OUT],
        [OUT] * 7,
        [np.nan] * 7,
        [2, np.nan, OUT, np.inf, 2, np.nan, 0],
    ])  # fmt: skip
    hidden, none = np.ones((2, 1)).astype(dtype), np.zeros((7, 1)).astype(dtype)
    for bias in rows:
        order = sorted(range(7), key=lambda c, b=bias: (not np.isnan(b[c]), -np.nan_to_num(b[c])))
        found = linear_top_k(
            hidden, none, np.int64(k), bias=bias.astype(dtype), tiles=Tiles(vocab_tile=tile)
        )
        assert np.asarray(found.ids).tolist() == [order[:k]] * 2
        np.testing.assert_array_equal(found.logits.astype("float32"), [bias[order[:k]]] * 2)


@pytest.mark.smoke
def test_signs_of_nan_and_zero_do_not_matter():
    """What comes of 0 times infinity has its sign bit set on x86."""
    bias = np.array([0.0, np.copysign(np.nan, -1), -0.0, OUT, 0.0, np.nan], np.float32)
    for tile in (1, 4, 6):
        _, ids = linear_top_k(
            np.ones((1, 2), np.float32), np.zeros((6, 2), np.float32), 6, bias=bias,
            tiles=Tiles(vocab_tile=tile),
        )  # fmt: skip
        assert ids.tolist() == [[1, 5, 0, 2, 4, 3]]
        hidden = np.array([[0.0, np.inf]], np.float32)
        weight = changed(np.ones((6, 2), np.float32), (2, 1), 0)
        values, ids = linear_top_k(
            hidden, weight, 6, bias=changed(np.zeros(6, np.float32), 4, OUT),
            tiles=Tiles(vocab_tile=tile),
        )  # fmt: skip
        assert ids.tolist() == [[2, 4, 0, 1, 3, 5]]
        np.testing.assert_array_equal(values, [[np.nan, np.nan, *[np.inf] * 4]])


def test_of_no_tokens_and_in_strict_modes(strict_modes):
    hidden, weight = np.ones((6, 5)).astype(jnp.bfloat16), np.ones((32, 5)).astype(jnp.bfloat16)
    bias = np.where(np.arange(32) < 8, np.float32(OUT), np.float32(0))
    for tokens in (0, 6):
        found = linear_top_k(hidden[:tokens], weight, 3, bias=bias, tiles=Tiles(vocab_tile=5))
        assert [a.shape for a in found] == [(tokens, 3), (tokens, 3)]
