"""Padding of recurrent layers: lengths, ids of segments and masks, of any type and anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import GRUParameters, LSTMParameters, compiling_for, gru, lstm
from jaxnets.kernels.recurrent import reference
from tests.inputs import INTEGER_TYPES
from tests.near import assert_near

BATCH, TIME, FEATURES, HIDDEN = 5, 7, 3, 4
KINDS = {"lstm": lstm, "gru": gru}
IMPLEMENTATIONS = ["scan", "reference", "pallas"]
MASK = np.array(
    [
        [0, 0, 1, 1, 1, 1, 1],
        [1, 0, 1, 0, 0, 1, 1],
        [1, 1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 1, 0],
    ],
    bool,
)
# The second row's segments have padding between and within them.
IDS = np.array([[0, 0, 1, 1, 2, 2, 2], [3, 0, 3, 0, 0, 1, 1], [1, 2, 3, 0, 0, 0, 0], [0] * 7,
                [0, 9, 4, 4, 0, 4, 0]])  # fmt: skip


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def problem(kind, batch=BATCH, time=TIME, dtype=jnp.float32):
    """Inputs, carry and parameters."""
    gates = {"lstm": 4, "gru": 3}[kind] * HIDDEN
    kernels = normal(0, FEATURES, gates, dtype=dtype), normal(1, HIDDEN, gates, dtype=dtype)
    biases = normal(2, gates, dtype=dtype), normal(3, gates, dtype=dtype)
    c, h = normal(4, batch, HIDDEN, dtype=dtype), normal(5, batch, HIDDEN, dtype=dtype)
    inputs = normal(6, batch, time, FEATURES, dtype=dtype)
    if kind == "gru":
        return inputs, h, GRUParameters(*kernels, *biases)
    return inputs, (c, h), LSTMParameters(*kernels, biases[0])


def value_and_gradients(layer, arrays):
    """Results of ``layer(inputs, carry, parameters)`` and the gradients of their weighted sum."""

    def loss(*arrays):
        results = layer(*arrays)
        leaves = jax.tree.leaves(results)
        total = sum((jnp.sin(leaf) * normal(i, *leaf.shape)).sum() for i, leaf in enumerate(leaves))
        return total, results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(*arrays)
    return results, gradients


def by_steps(kind, mask, ids, reverse, repeat, inputs, carry, parameters):
    """The equations and the rules of padding, a step at a time."""
    step = reference.lstm_step if kind == "lstm" else reference.gru_step
    state = carry if kind == "lstm" else (carry,)
    last_id, outputs = jnp.full(len(mask), -1), [None] * mask.shape[1]
    for t in reversed(range(mask.shape[1])) if reverse else range(mask.shape[1]):
        valid = jnp.asarray(mask[:, t])[:, None]
        start = state
        if ids is not None:
            reset = (ids[:, t] != last_id) & (last_id != -1)
            start = tuple(jnp.where(reset[:, None], 0, s) for s in state)
            last_id = jnp.where(valid[:, 0], ids[:, t], last_id)
        new = step(parameters, inputs[:, t], *start)
        new = new if kind == "lstm" else (new,)
        outputs[t] = jnp.where(valid, new[-1], state[-1] if repeat else 0)
        state = tuple(jnp.where(valid, n, s) for n, s in zip(new, state, strict=True))
    return jnp.stack(outputs, 1), state if kind == "lstm" else state[0]


@pytest.mark.parametrize(
    ("kind", "marks", "reverse", "masked_outputs"),
    [
        ("lstm", "mask", True, "repeat"),
        ("gru", "mask", False, "zero"),
        ("lstm", "segment_ids", False, "zero"),
        ("gru", "segment_ids", True, "repeat"),
        ("gru", "lengths", False, "repeat"),
    ],
)
def test_padding_anywhere(kind, marks, reverse, masked_outputs):
    """Values and gradients, in every implementation, eager and jitted; NaN in the padding."""
    mask = np.arange(TIME) < np.array([7, 3, 0, 1, 5])[:, None] if marks == "lengths" else MASK
    arrays = problem(kind)
    plain = functools.partial(
        by_steps, kind, mask, IDS if marks == "segment_ids" else None, reverse,
        masked_outputs == "repeat",
    )  # fmt: skip
    wanted = value_and_gradients(plain, arrays)
    dirty = jnp.where(mask[:, :, None], arrays[0], jnp.nan), *arrays[1:]
    given = {"mask": mask, "segment_ids": IDS, "lengths": mask.sum(1)}[marks]
    for name in IMPLEMENTATIONS[: 3 if kind == "lstm" else 2]:

        def layer(*arrays, name=name, given=given):
            return KINDS[kind](
                *arrays, **{marks: given}, reverse=reverse, masked_outputs=masked_outputs,
                implementation=name,
            )  # fmt: skip

        with compiling_for("tpu" if name == "pallas" else "cpu", interpret=name == "pallas"):
            got = jax.jit(functools.partial(value_and_gradients, layer))(dirty)
            assert_near(got, wanted, 1e-5)
            if name == "scan":
                assert_near(layer(*dirty), wanted[0], 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_of_any_type(implementation):
    """100 of 300 steps: in eight bits the time does not fit, and 100 is of every type."""
    _, carry, parameters = problem("lstm", batch=2)
    inputs = normal(6, 2, 300, FEATURES)
    pallas = implementation == "pallas"

    def run(lengths):
        layer = functools.partial(lstm, lengths=lengths, implementation=implementation)
        return value_and_gradients(layer, (inputs, carry, parameters))

    with compiling_for("tpu" if pallas else "cpu", interpret=pallas):
        wanted = run([100, 7])
        reached = jnp.abs(wanted[1][0]).max(2) > 0
        assert reached.sum(1).tolist() == [100, 7]
        jitted = jax.jit(lambda n: lstm(inputs, carry, parameters, lengths=n))
        for dtype in INTEGER_TYPES:
            given = np.array([100, 7], dtype)
            assert_near(run(given), wanted, 1e-6)
            if implementation == "scan":  # one program for 32 and 64 bits, which are the same here
                assert_near(jitted(given), wanted[0], 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_any_type(kind):
    inputs, carry, parameters = problem(kind)
    run = functools.partial(KINDS[kind], inputs, carry, parameters)
    ids, mask = run(segment_ids=IDS), run(mask=MASK)
    for dtype in INTEGER_TYPES:  # each with both kinds, and with both marks
        if kind == "lstm":
            assert_near(run(segment_ids=IDS.astype(dtype)), ids, 1e-6)
        else:
            assert_near(run(mask=MASK.astype(dtype)), mask, 1e-6)
    assert_near(run(segment_ids=IDS.tolist()), ids, 1e-6)
    for given in (MASK.tolist(), MASK.astype(np.float32), MASK.astype(int).tolist()):
        assert_near(run(mask=given), mask, 1e-6)


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        (kind, name)
        for kind in KINDS
        for name in IMPLEMENTATIONS
        if (kind, name) != ("gru", "pallas")
    ],
)
def test_what_only_values_tell_is_nan_under_jit(kind, implementation):
    """In that row's outputs and carry, and in the gradients; the other rows are as they were."""
    inputs, carry, parameters = problem(kind)
    pallas = implementation == "pallas"

    layer = functools.partial(KINDS[kind], inputs, carry, parameters, implementation=implementation)

    @jax.jit
    def run(lengths):
        layer = functools.partial(KINDS[kind], implementation=implementation, lengths=lengths)
        return value_and_gradients(layer, (inputs, carry, parameters))

    with compiling_for("tpu" if pallas else "cpu", interpret=pallas):
        good, _ = run(jnp.array([7, 3, 0, 1, 5]))
        bad, gradients = run(jnp.array([7, 3, -1, 1, 8]))
        half = jnp.asarray(MASK, jnp.float32).at[1, 3].set(0.5)
        half = jax.jit(lambda mask: layer(mask=mask))(half)
    rows = jnp.array([0, 1, 3])
    for wrong, right in zip(jax.tree.leaves(bad), jax.tree.leaves(good), strict=True):
        assert bool(jnp.isnan(wrong[jnp.array([2, 4])]).all())
        assert_near(wrong[rows], right[rows], 1e-6)
    assert bool(jnp.isnan(gradients[2].input_kernel).all())
    for leaf in jax.tree.leaves(half):
        assert jnp.isnan(leaf).reshape(BATCH, -1).all(1).tolist() == [False, True] + [False] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("number", "batch", "time"), [(0, 0, 7), (1, 5, 0), (2, 0, 0)])
def test_empty_input(kind, number, batch, time):
    """Every two of shape, implementation and marks."""
    arrays = problem(kind, batch, time)
    marks = [{}, {"lengths": np.zeros(batch, int)}, {"mask": np.ones((batch, time))}]
    for each, name in enumerate(IMPLEMENTATIONS[: 3 if kind == "lstm" else 2]):
        options = {"implementation": name} | marks[(number + each) % 3]
        with compiling_for("tpu" if name == "pallas" else "cpu", interpret=name == "pallas"):
            layer = functools.partial(KINDS[kind], **options)
            (outputs, carry), gradients = value_and_gradients(layer, arrays)
        assert outputs.shape == (batch, time, HIDDEN)
        jax.tree.map(np.testing.assert_array_equal, carry, arrays[1])
        assert all(not leaf.any() for leaf in jax.tree.leaves(gradients[2]))
