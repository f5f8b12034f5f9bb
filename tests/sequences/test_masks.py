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
from tests.every_number import every_number
from tests.inputs import INTEGER_TYPES

LENGTHS = [0, 3, 100, 127]


def of_every_type(values):
    return {dtype: np.array(values, dtype) for dtype in INTEGER_TYPES}


@pytest.mark.parametrize("time", [127, 300])
def test_masks_of_every_integer_type(x64, time):
    expected = np.arange(time) < np.array(LENGTHS)[:, None]
    given = of_every_type(LENGTHS)
    traced = jax.jit(lambda given: [length_mask(lengths, time) for lengths in given.values()])
    for found in (*(length_mask(lengths, time) for lengths in given.values()), *traced(given)):
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
            *(jax.ShapeDtypeStruct((1, 1, size), jnp.float32) for size in (n, kernel)),
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

    def of_a_net(lengths):
        return conv_lengths(lengths, [5], (2,), "same"), conv_lengths(lengths, 5, 2)

    traced = jax.jit(lambda given: [of_a_net(lengths) for lengths in given.values()])
    known = of_a_net(jnp.asarray(np.array(LENGTHS, np.uint64)))
    for found in (*known, *jax.tree.leaves(traced(of_every_type(LENGTHS)))):
        assert found.tolist() == [0, 2, 50, 64]
    assert conv_lengths(LENGTHS, 5, 2, [(1, 1)]).tolist() == conv_lengths(LENGTHS, 5, 2, 1).tolist()


def test_last_steps_and_their_gradients(x64):
    outputs = np.random.default_rng(0).normal(size=(4, 127, 3))
    beyond = np.arange(127) >= np.array(LENGTHS)[:, None]
    spoiled = np.where(beyond[..., None], np.nan, outputs)
    expected = np.array([outputs[i, n - 1] if n else np.zeros(3) for i, n in enumerate(LENGTHS)])
    wanted = np.zeros(outputs.shape)
    for i, n in enumerate(LENGTHS[1:], 1):
        wanted[i, n - 1] = 2 * expected[i]

    def both(outputs, lengths):
        steps = last_step(outputs, lengths)
        return steps, jax.grad(lambda x: jnp.square(last_step(x, lengths)).sum())(outputs)

    known = of_every_type(LENGTHS)

    @jax.jit
    def program(outputs, traced):
        found = [both(outputs, n) for given in (known, traced) for n in given.values()]
        narrow = last_step(outputs[..., 0].astype(np.float16), LENGTHS)
        nothing = last_step(outputs[:2, :0], [0, 0]), last_step(outputs[:0], [])
        return found, narrow, nothing

    found, narrow, nothing = program(spoiled, known)
    for steps, gradient in found:
        np.testing.assert_array_equal(steps, expected)
        np.testing.assert_array_equal(gradient, wanted)
    assert narrow.dtype == jnp.float16
    assert nothing[0].tolist() == [[0] * 3] * 2
    assert nothing[1].shape == (0, 3)


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


@pytest.mark.parametrize("full", [True, False])
def test_means_and_largest_over_an_axis(x64, full):
    """For each, by NumPy: its value, and the gradient of the sum of its sines."""
    rng = np.random.default_rng(1)
    values, weights = rng.normal(size=(3, 4, 2)), rng.integers(0, 3, (3, 4, 2) if full else (3, 4))
    weights[1] = 0
    wide = np.broadcast_to(weights.reshape(*weights.shape, *[1] * (3 - weights.ndim)), (3, 4, 2))
    masks = weights, weights.astype(np.uint8), weights.tolist()
    axes = None, 1, (0, 1), -1

    def mean(axis):
        total = np.maximum(wide.sum(axis, keepdims=True), 1)
        found = (values * wide).sum(axis, keepdims=True) / total
        return found.squeeze(axis), np.cos(found) * wide / total

    def largest(axis):
        kept = np.where(wide != 0, values, -np.inf)
        highest = kept.max(axis, keepdims=True)
        found = np.where(np.isinf(highest), 0, highest)
        return found.squeeze(axis), np.cos(found) * (kept == found)

    @jax.jit
    def program(x):
        def sines(x, ours, axis):
            found = ours(x, masks[0], axis)
            return jnp.sin(found).sum(), found

        return [
            (
                [ours(x, mask, axis) for mask in masks[1:]],
                jax.value_and_grad(sines, has_aux=True)(x, ours, axis),
            )
            for ours in (masked_mean, masked_max)
            for axis in axes
        ]

    found = program(np.where(wide == 0, np.nan, values))
    wanted = [plain(axis) for plain in (mean, largest) for axis in axes]
    for (others, ((_, first), slope)), (value, gradient) in zip(found, wanted, strict=True):
        for each in (first, *others):
            np.testing.assert_allclose(each, value, rtol=1e-13)
        np.testing.assert_allclose(slope, gradient, rtol=1e-12, atol=1e-14)


def test_nothing_has_the_mean_and_the_largest_zero():
    cases = [
        (function, shape, axis)
        for function in (masked_mean, masked_max)
        for shape, axis in (((0,), None), ((0, 3), 0), ((3, 0), 1), ((2, 3), 1))
    ]

    @jax.jit
    def program(*arrays):
        def of(values, function, axis):
            found = function(values, np.zeros(values.shape, bool), axis)
            return found.sum(), found

        of = jax.value_and_grad(of, has_aux=True)
        negative = masked_max(np.array([-5, -3], np.int8), [True, False])
        return [of(x, f, axis) for x, (f, _, axis) in zip(arrays, cases, strict=True)], negative

    found, negative = program(*(np.ones(shape, np.float32) for _, shape, _ in cases))
    for ((_, value), gradient), (_, shape, axis) in zip(found, cases, strict=True):
        assert value.shape == np.zeros(shape).sum(axis).shape
        assert not value.any()
        assert not gradient.any()
        assert gradient.shape == shape
    assert negative == -5


def test_labels_of_every_integer_type(x64):
    logits = np.eye(256)[[200, 127, 3, 5]]
    dtypes = ("uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    given = [(np.array([200, 127, 4, 5], d), np.array([1, 1, 1, 0], d)) for d in dtypes]

    @jax.jit
    def program(logits):
        of_none = masked_accuracy(logits[:0], [], [])
        return [masked_accuracy(logits, *each) for each in given], of_none

    found, of_none = program(logits)
    assert found == [np.float32(2 / 3)] * len(dtypes)
    assert of_none == 0


def test_strict_modes(strict_modes):
    values = np.ones((2, 3, 4), np.float32)
    values[:, 2] = np.inf  # times 0 is NaN
    lengths, mask = np.array([2, 0], np.uint8), np.array([[True, True, False], [False] * 3])

    @jax.jit
    def gradients(values, mask):
        # Each function over each axis, by masks of which each meets both.
        of = jax.grad(lambda x, f, mask, axis: f(x, mask, axis).sum())
        axes = {np.bool_: (None, 1), np.int8: (1, None), np.float16: (None, 1)}
        return [
            of(values, f, mask.astype(dtype), axis)
            for dtype, both in axes.items()
            for f, axis in zip((masked_mean, masked_max), both, strict=True)
        ]

    def last(x, n):
        return jax.grad(lambda x: last_step(x, n).sum())(x)

    def numbers(values, mask, lengths):
        ones = [np.ones((2, 3), dtype) for dtype in (np.int8, np.float16)]
        return (
            [f(each, mask) for f in (masked_mean, masked_max) for each in ones],
            masked_accuracy(values[:, 0], np.array([0, 1], np.int16), mask[:, 0]),
            last(values, lengths).sum(),
            last(values, np.array([2, 0], np.uint8)).sum(),  # known where it is traced
            jax.vmap(last_step)(values, lengths).sum(),
            conv_lengths(np.array([5, 0], np.uint8), 3, 2),
        )

    for gradient in gradients(values, mask):
        assert np.isfinite(gradient).all()
    ones, accuracy, *sums, convolved = every_number(numbers, values, mask, lengths)
    assert ones == [1] * 4
    assert accuracy == 1
    assert sums == [4, 4, 4]
    assert convolved.tolist() == [3, 0]
