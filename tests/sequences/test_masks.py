"""Lengths and masks: against plain loops, over every integer type, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.sequences import (
    conv_lengths,
    last_step,
    length_mask,
    masked_accuracy,
    masked_max,
    masked_mean,
)
from tests.inputs import INTEGER_TYPES

LENGTHS = [0, 3, 100, 127]


@pytest.mark.parametrize("time", [127, 300])
def test_masks_of_every_integer_type(x64, time):
    expected = np.arange(time) < np.array(LENGTHS)[:, None]
    mask = jax.jit(length_mask, static_argnums=1)
    for dtype in INTEGER_TYPES:
        lengths = np.array(LENGTHS, dtype)
        for found in (length_mask(lengths, time), mask(lengths, time)):
            np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(length_mask(LENGTHS, np.int64(time)), expected)
    assert length_mask([], 3).shape == (0, 3)


def test_convolved_lengths_are_those_of_a_convolution(x64):
    def convolved(n, kernel, stride, padding, dilation):
        padding = {"CAUSAL": [(dilation * (kernel - 1), 0)]}.get(str(padding), padding)
        padding = [(padding, padding)] if isinstance(padding, int) else padding
        padding = [padding] if isinstance(padding, tuple) else padding
        return jax.eval_shape(
            lambda x, w: jax.lax.conv_general_dilated(
                x, w, (stride,), padding, rhs_dilation=(dilation,)
            ),
            jnp.ones((1, 1, n)),
            jnp.ones((1, 1, kernel)),
        ).shape[-1]

    for kernel, stride, dilation in ((5, 2, 1), (3, 3, 4), (1, 2, 1), (2, 1, 7)):
        for padding in ("SAME", "VALID", "CAUSAL", 2, (3, 0)):
            expected = [
                0 if n == 0 else convolved(n, kernel, stride, padding, dilation) for n in LENGTHS
            ]
            for dtype in INTEGER_TYPES[::3]:
                found = conv_lengths(np.array(LENGTHS, dtype), kernel, stride, padding, dilation)
                assert found.tolist() == expected
                assert found.dtype == jnp.int32
    for dtype in INTEGER_TYPES:
        lengths = jnp.array(LENGTHS, dtype)
        assert conv_lengths(lengths, [5], (2,), "same").tolist() == [0, 2, 50, 64]
        assert jax.jit(lambda n: conv_lengths(n, 5, 2))(lengths).tolist() == [0, 2, 50, 64]
    assert conv_lengths(LENGTHS, 5, 2, [(1, 1)]).tolist() == conv_lengths(LENGTHS, 5, 2, 1).tolist()


def test_last_steps_and_their_gradients(x64):
    outputs = np.random.default_rng(0).normal(size=(4, 127, 3))
    beyond = np.arange(127) >= np.array(LENGTHS)[:, None]
    spoiled = jnp.asarray(np.where(beyond[..., None], np.nan, outputs))
    expected = np.array([outputs[i, n - 1] if n else np.zeros(3) for i, n in enumerate(LENGTHS)])
    wanted = np.zeros(outputs.shape)
    for i, n in enumerate(LENGTHS[1:], 1):
        wanted[i, n - 1] = 2 * expected[i]

    def both(outputs, lengths):
        steps = last_step(outputs, lengths)
        return steps, jax.grad(lambda x: jnp.square(last_step(x, lengths)).sum())(outputs)

    for dtype in INTEGER_TYPES:
        lengths = np.array(LENGTHS, dtype)
        for found, gradient in (both(spoiled, lengths), jax.jit(both)(spoiled, lengths)):
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(gradient, wanted)
    assert last_step(outputs[..., 0].astype(np.float16), LENGTHS).dtype == jnp.float16
    assert last_step(jnp.ones((2, 0, 3)), [0, 0]).tolist() == [[0] * 3] * 2
    assert last_step(jnp.ones((0, 4, 3)), []).shape == (0, 3)


def test_a_length_out_of_range_is_an_error_or_nan(users_checks):
    outputs = jnp.ones((3, 4, 2))
    for lengths, wrong in (([4, 5, 1], 1), ([-1, 4, 1], 0)):
        for call in (lambda n: length_mask(n, 4), lambda n: last_step(outputs, n)):
            with pytest.raises(ValueError, match=r"lengths must lie in \[0, time\] = \[0, 4\]"):
                call(lengths)
        found, gradient = jax.jit(
            lambda n: (last_step(outputs, n), jax.grad(lambda x: last_step(x, n).sum())(outputs))
        )(jnp.array(lengths))
        assert np.isnan(found).any(1).tolist() == [row == wrong for row in range(3)]
        assert np.isnan(gradient).any((1, 2)).tolist() == [row == wrong for row in range(3)]
    with pytest.raises(ValueError, match="lengths must lie in"):
        conv_lengths([-1], 3)
    assert jax.jit(lambda n: conv_lengths(n, 3))(jnp.array([-1, 2])).tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: length_mask([0.5], 4), TypeError, "lengths must be integers"),
        (lambda: length_mask([1], 4.0), TypeError, "time must be an integer"),
        (lambda: last_step(jnp.ones((2, 3), int), [1, 1]), TypeError, "outputs must be floating"),
        (lambda: last_step(jnp.ones((2, 3)), [1]), ValueError, r"got \(2, 3\) and \(1,\)"),
        (lambda: conv_lengths([1], 0), ValueError, "kernel_size must be at least 1"),
        (lambda: conv_lengths([1], 3, 0), ValueError, "stride must be at least 1"),
        (lambda: conv_lengths([1], 3, padding="full"), ValueError, 'padding must be "SAME"'),
        (lambda: conv_lengths([1], 3, padding=-1), ValueError, "padding must be at least 0"),
        (lambda: masked_mean(jnp.ones((2, 3)), jnp.ones((2, 1))), ValueError, r"got \(2, 1\)"),
        (lambda: masked_max(jnp.ones(3), jnp.ones((3, 1))), ValueError, r"got \(3, 1\)"),
        (
            lambda: masked_accuracy(jnp.ones((2, 3)), [1], [1]),
            ValueError,
            r"labels must be \(2,\) as the logits are, got \(1,\)",
        ),
    ],
)
def test_bad_input(call, error, message, users_checks):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("axis", [None, 1, (0, 1), -1])
@pytest.mark.parametrize("full", [True, False])
def test_means_and_largest_over_an_axis(x64, axis, full):
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(3, 4, 2)), rng.integers(0, 3, (3, 4, 2) if full else (3, 4))
    weights[1] = 0
    wide = np.broadcast_to(weights.reshape(*weights.shape, *[1] * (3 - weights.ndim)), (3, 4, 2))
    spoiled = jnp.asarray(np.where(wide == 0, np.nan, values))

    def mean(x):
        total = wide.sum(axis)
        return jnp.where(total == 0, 0, (x * wide).sum(axis) / np.maximum(total, 1))

    def largest(x):
        there = (wide != 0).any(axis)
        return jnp.where(there, jnp.where(wide != 0, x, -1e9).max(axis), 0)

    for ours, plain in ((masked_mean, mean), (masked_max, largest)):
        for mask in (weights, weights.astype(np.uint8), weights.tolist()):

            def own(x, ours=ours, mask=mask):
                return ours(x, mask, axis)

            np.testing.assert_allclose(own(spoiled), plain(values), rtol=1e-13)
        found = jax.jit(jax.grad(lambda x, own=own: jnp.sin(own(x)).sum()))(spoiled)
        wanted = jax.grad(lambda x, plain=plain: jnp.sin(plain(x)).sum())(jnp.asarray(values))
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)


def test_nothing_has_the_mean_and_the_largest_zero():
    for function in (masked_mean, masked_max):
        for shape, axis in (((0,), None), ((0, 3), 0), ((3, 0), 1), ((2, 3), 1)):
            values, mask = jnp.ones(shape), np.zeros(shape, bool)
            found, gradient = (
                function(values, mask, axis),
                jax.grad(lambda x, f=function, m=mask, a=axis: f(x, m, a).sum())(values),
            )
            assert not found.any()
            assert not gradient.any()
            assert gradient.shape == shape
    assert masked_max(np.array([-5, -3], np.int8), [True, False]) == -5


def test_labels_of_every_integer_type(x64):
    logits = jax.nn.one_hot(jnp.array([200, 127, 3, 5]), 256)
    for dtype in ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"):
        labels = np.array([200, 127, 4, 5], dtype)
        assert masked_accuracy(logits, labels, np.array([1, 1, 1, 0], dtype)) == np.float32(2 / 3)
    assert masked_accuracy(logits[:0], [], []) == 0


def test_strict_modes(strict_modes):
    values = np.ones((2, 3, 4), np.float32)
    values[:, 2] = np.inf  # times 0 is NaN
    values, mask = jnp.asarray(values), length_mask(np.array([2, 0]), 3)
    for mask_ in (mask, mask.astype(jnp.int8), mask.astype(jnp.float16)):
        for function in (masked_mean, masked_max):
            for axis in (None, 1):
                gradient = jax.jit(
                    jax.grad(lambda x, f=function, a=axis, m=mask_: f(x, m, a).sum())
                )(values)
                assert np.isfinite(gradient).all()
    for dtype in (jnp.int8, jnp.float16):
        assert masked_mean(jnp.ones((2, 3), dtype), mask) == 1
        assert masked_max(jnp.ones((2, 3), dtype), mask) == 1
    last = jax.grad(lambda x, n: last_step(x, n).sum())
    for found in (last, jax.jit(last)):
        assert found(values, jnp.array([2, 0], jnp.uint8)).sum() == 4
    assert jax.vmap(last_step)(values, jnp.array([2, 0], jnp.uint8)).sum() == 4
    assert conv_lengths(np.array([5, 0], np.uint8), 3, 2).tolist() == [3, 0]
    assert masked_accuracy(values[:, 0], np.array([0, 1], np.int16), mask[:, 0]) == 1
