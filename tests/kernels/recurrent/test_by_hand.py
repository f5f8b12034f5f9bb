"""What all implementations are compared with is itself right: also test_recurrent_peers.py."""

import jax
import numpy as np
import pytest

from tests.kernels.recurrent.test_recurrent import HIDDEN, assert_close, problem
from tests.recurrence import by_hand, drawn_factors, steps
from tests.tape import STEP, array_of, gradients, tracked


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("peepholes projection", {"reverse": True, "masked_outputs": "repeat"}),
        ("layer norm", {}),
        ("gru", {"reset_after": False}),
    ],
)
def test_gradients_are_derivatives(x64, kind, options):
    """Along one direction that is drawn, of the sum that the gradients are of."""
    layer, *arrays = problem(kind, "segments", batch=3, time=6)
    arrays = jax.tree.map(np.float64, arrays)
    options = options | layer.keywords
    draw = np.random.default_rng(7)
    along = jax.tree.map(lambda a: draw.normal(size=a.shape), arrays)
    moved = jax.tree.map(lambda a, v: a + STEP * 1j * v, arrays, along)
    results, _ = by_hand(moved, **options)
    terms = zip(jax.tree.leaves(results), drawn_factors(results), strict=True)
    slope = sum((np.sin(leaf) * each).sum() for leaf, each in terms).imag / STEP
    _, gradients = by_hand(arrays, slope=np.cos, **options)
    products = jax.tree.map(np.vdot, gradients, along)
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), slope, rtol=1e-12)


def test_a_padded_row_is_the_row_alone(x64):
    layer, inputs, (c, h), weights = problem("lstm", "lengths")
    (outputs, (last_c, last_h)), _ = by_hand((inputs, (c, h), weights), **layer.keywords)
    for row, length in enumerate(layer.keywords["lengths"].tolist()):
        if not length:
            continue
        one = slice(row, row + 1)
        (own, (own_c, own_h)), _ = by_hand((inputs[one, :length], (c[one], h[one]), weights))
        assert_close((outputs[one, :length], last_c[one], last_h[one]), (own, own_c, own_h))
        assert not outputs[one, length:].any()


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rows_are_separate_sequences(x64, reverse):
    _, inputs, carry, weights = problem("lstm", batch=1)
    zeros = jax.tree.map(np.zeros_like, carry)
    segment_ids = np.array([[1] * 4 + [2] + [3] * 6 + [0] * 2])
    (packed, _), _ = by_hand((inputs, zeros, weights), segment_ids=segment_ids, reverse=reverse)
    alone = [
        by_hand((inputs[:, start:end], zeros, weights), reverse=reverse)[0][0]
        for start, end in ((0, 4), (4, 5), (5, 11))
    ]
    assert_close(packed, np.concatenate([*alone, np.zeros((1, 2, HIDDEN))], 1))


def test_truncation_cuts_the_gradient_and_nothing_else():
    _, *arrays = problem("lstm")
    arguments = tracked(arrays)
    outputs, carry = steps(*arguments, truncate_steps=4)
    expected, _ = by_hand(arrays)
    assert_close(jax.tree.map(array_of, (outputs, carry)), expected, steps=0)
    last = np.zeros(outputs.array.shape)
    last[:, -1] = 1
    d_inputs, *_ = gradients(outputs, last, arguments)
    reached = np.abs(d_inputs).max((0, 2)) > 0
    assert reached.tolist() == [False] * 12 + [True]  # the last window holds the last step alone
