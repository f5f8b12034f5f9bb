"""LSTM and GRU against their equations: values, gradients, and second derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.kernels import GRUParameters, LayerNorm, LSTMParameters, gru, lstm
from tests.near import assert_near
from tests.recurrence import (
    along_by_hand,
    by_hand,
    curvature,
    curvature_by_hand,
    jitted,
    value_and_gradients,
)

BATCH, TIME, FEATURES, HIDDEN, OUTPUT = 9, 13, 3, 5, 4


def parameters(kind="lstm", features=FEATURES, hidden=HIDDEN, dtype=jnp.float64):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing

    def normal(*shape, mean=0.0):
        return (mean + 0.4 * draw.normal(size=shape)).astype(dtype)

    if kind == "gru":
        return GRUParameters(
            normal(features, 3 * hidden),
            normal(hidden, 3 * hidden),
            normal(3 * hidden),
            normal(3 * hidden),
        )
    output, gates = OUTPUT if "projection" in kind else hidden, 4 * hidden
    return LSTMParameters(
        normal(features, gates),
        normal(output, gates),
        normal(gates),
        normal(hidden, output) if "projection" in kind else None,
        normal(3, hidden) if "peepholes" in kind else None,
        LayerNorm(*(normal(size, mean=1) for size in (gates, gates, hidden)), normal(hidden))
        if "layer norm" in kind
        else None,
    )


def problem(kind, marks=None, batch=BATCH, time=TIME, dtype=jnp.float64):
    draw = np.random.default_rng(1)
    weights = parameters(kind, dtype=dtype)
    shapes = (
        (batch, time, FEATURES), (batch, HIDDEN), (batch, weights.recurrent_kernel.shape[0])
    )  # fmt: skip
    inputs, c, h = (draw.normal(size=shape).astype(dtype) for shape in shapes)
    lengths = draw.integers(0, time + 1, batch)
    lengths[0] = 0
    options = {}
    if marks == "lengths":
        options["lengths"] = jnp.asarray(lengths)
    if marks == "segments":
        changes = np.cumsum(draw.random((batch, time)) < 0.3, axis=1)
        inside = np.arange(time) < lengths[:, None]
        options["segment_ids"] = jnp.asarray(np.where(inside, 1 + changes, 0))
    carry = h if kind == "gru" else (c, h)
    return functools.partial(gru if kind == "gru" else lstm, **options), inputs, carry, weights


def assert_close(actual, expected, steps=TIME, dtype=jnp.float64):
    """Each of ``steps`` steps rounds sums of a few dozen terms; gradients add up over them all."""
    assert_near(actual, expected, 100 * steps * float(jnp.finfo(dtype).eps), 1)


# Every two options that go together are in one of these; with the padding run first, from a carry,
# and the gates computed again, every kind. A cell and the loop around it know nothing of each
# other, so a kind need not meet every option. The reference, of two such parts, meets every option.
VARIANTS = [
    pytest.param("lstm", None, {}, [], marks=pytest.mark.smoke),
    (
        "lstm",
        "lengths",
        {"recurrent_dropout": 0.3, "truncate_steps": 4, "reverse": True},
        [],
    ),
    ("layer norm", "lengths", {"reverse": True, "remat": True, "chunk_size": 4, "batch": 17}, []),
    # Chunks that divide the time, so that each is written out.
    ("lstm", "segments", {"reverse": True, "remat": False, "chunk_size": 3, "time": 12}, []),
    (
        "peepholes projection",
        "lengths",
        {"reverse": True, "remat": True, "truncate_steps": 4, "recurrent_dropout": 0.3},
        ["reference"],
    ),
    (
        "layer norm projection",
        "segments",
        {"remat": False, "chunk_size": 5, "recurrent_dropout": 0.3},
        ["reference"],
    ),
    ("gru", None, {"remat": True, "truncate_steps": 5, "recurrent_dropout": 0.3}, ["reference"]),
    pytest.param(
        "gru", "lengths", {"reverse": True, "remat": True, "chunk_size": 4}, [],
        marks=pytest.mark.smoke,
    ),
    ("gru", "segments", {"remat": False, "chunk_size": 3}, []),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "marks", "options", "others"), VARIANTS)
def test_values_and_gradients_are_those_by_hand(x64, kind, marks, options, others):
    """With NaN in the padding, which has no effect and leaves no trace."""
    options = dict(options)
    if "recurrent_dropout" in options:
        options["key"] = jax.random.key(3)
    sizes = {name: options.pop(name) for name in ("batch", "time") if name in options}
    layer, *arrays = problem(kind, marks, **sizes)
    plain = {k: v for k, v in options.items() if k not in ("chunk_size", "remat")}
    expected = by_hand(arrays, **layer.keywords, **plain)
    inside = steps_that_count(layer, arrays[0])
    dirty = np.where(inside[:, :, None], arrays[0], np.nan), *arrays[1:]
    runs = [jitted(layer, **options)]
    runs += [jitted(layer, implementation=name, **plain) for name in others]
    for run in runs:
        found = run(dirty)
        assert_close(found, expected)
        ((outputs, carry), (d_inputs, *_)) = found
        assert not np.asarray(outputs)[~inside].any()
        assert not np.asarray(d_inputs)[~inside].any()
        # Without a step the initial carry comes back; else that at the row's own last step.
        jax.tree.map(
            lambda end, start: np.testing.assert_array_equal(
                np.asarray(end)[~inside.any(1)], np.asarray(start)[~inside.any(1)]
            ),
            carry, arrays[1],
        )  # fmt: skip


def steps_that_count(layer, inputs):
    marks, inside = layer.keywords, True
    if "lengths" in marks:
        inside = np.arange(inputs.shape[1]) < np.asarray(marks["lengths"])[:, None]
    if "segment_ids" in marks:
        inside = np.asarray(marks["segment_ids"]) != 0
    return np.broadcast_to(inside, inputs.shape[:2])


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rows_without_a_gradient(x64, reverse):
    """A segment of one step, and padding, in chunks that end in either."""
    inputs = np.random.default_rng(2).normal(size=(1, 11, FEATURES))
    segment_ids = np.array([[1] * 4 + [2] + [3] * 4 + [0] * 2])
    options = {"segment_ids": segment_ids, "reverse": reverse}
    carry, weights = (np.zeros((1, HIDDEN)),) * 2, parameters()
    packed = jax.jit(functools.partial(lstm, chunk_size=3, **options))(inputs, None, weights)
    (outputs, end), _ = by_hand((inputs, carry, weights), **options)
    assert_close(packed, (outputs, end))


# A GRU's, of segments: test_recurrent_options.py.
def test_second_derivatives(x64, loops):
    """Of the fast path too: its gradient is differentiated by way of the plain loop."""
    layer, *arrays = problem("lstm", batch=3, time=5)
    mask = np.array([[0, 0, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 0]], bool)
    found = jax.jit(functools.partial(curvature, functools.partial(layer, mask=mask)))(arrays)
    assert_close(found, curvature_by_hand(arrays, mask=mask), steps=5)


def test_forward_mode_and_second_derivatives_of_the_reference(x64):
    """It is a loop as JAX has them; the fast path says what it does not have."""
    layer, *arrays = problem("lstm", "lengths", batch=3, time=11)
    ones = jax.tree.map(lambda array: np.ones(array.shape), arrays)
    reference = functools.partial(layer, implementation="reference")
    both = functools.partial(value_and_gradients, reference)
    _, forward = jax.jit(lambda arrays: jax.jvp(both, (arrays,), (ones,)))(arrays)
    assert_close(forward, along_by_hand(arrays, ones, **layer.keywords), steps=11)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(layer, arrays, ones)


def test_vmap_equals_a_loop(x64):
    layer, inputs, carry, weights = problem("lstm", "lengths", batch=4, time=9)
    several = np.stack([inputs, 2 * np.asarray(inputs)])
    batched = jax.jit(
        jax.vmap(lambda inputs: value_and_gradients(layer, (inputs, carry, weights)))
    )(several)
    for i, inputs in enumerate(several):
        found = jax.tree.map(lambda a, i=i: np.asarray(a)[i], batched)
        assert_close(found, by_hand((inputs, carry, weights), **layer.keywords))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lstm", jnp.bfloat16), ("gru", jnp.float16), ("lstm", jnp.float16),
                        ("gru", jnp.bfloat16)]
)  # fmt: skip
def test_half_precision_is_accumulated_in_float32(kind, dtype):
    """Each kind and each dtype has its gradients here, and every two of them their values."""
    layer, *arrays = problem(kind, dtype=dtype)
    derive = (kind, dtype) in (("lstm", jnp.bfloat16), ("gru", jnp.float16))
    expected = by_hand(arrays)
    found = jitted(layer)(arrays) if derive else (jax.jit(layer)(*arrays),)
    outputs, carry = found[0]
    assert outputs.dtype == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(carry))
    # h is rounded at each step and the gates' gradients once: a few units in the last place each,
    # which the contraction of the gates keeps from adding up over more than about four steps.
    assert_near(found, expected[: len(found)], 4 * float(jnp.finfo(dtype).eps))


def test_carries_continue_a_sequence(x64):
    layer, inputs, carry, weights = problem("projection", time=22)
    layer = jax.jit(layer)
    first, second = np.split(np.asarray(inputs), 2, axis=1)  # of one shape: one program
    first, middle = layer(first, carry, weights)
    second, end = layer(second, middle, weights)
    expected, _ = by_hand((inputs, carry, weights))
    assert_close((np.concatenate([first, second], 1), end), expected)


# One row and step, in one chunk; chunks that leave steps over, in two stages; chunks of one step.
SHAPES = [(1, 1, 3), (12, 9, 4), (3, 7, 1)]


@functools.cache
def compiled(batch, time, chunk):
    """The arrays, and one program of them for all lengths."""
    _, *arrays = problem("lstm", batch=batch, time=time)

    @jax.jit
    def run(lengths):
        layer = functools.partial(lstm, lengths=lengths, chunk_size=chunk)
        return value_and_gradients(layer, arrays)

    return arrays, run


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from(SHAPES), data=st.data())
def test_one_program_serves_any_lengths(shape, data):
    batch, time, _ = shape
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    with jax.enable_x64(True):
        arrays, run = compiled(*shape)
        found = run(np.array(lengths))
        assert_close(found, by_hand(arrays, lengths=lengths), steps=time)
    assert run._cache_size() == 1
