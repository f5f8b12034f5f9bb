"""Padding of recurrent layers: lengths, ids of segments and masks, of any type and anywhere."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import GRUParameters, LSTMParameters, compiling_for, gru, lstm
from jaxnets.kernels.recurrent.padding import Given, padding_of
from tests.inputs import INTEGER_TYPES, on_device
from tests.near import assert_near
from tests.recurrence import by_hand, jitted, steps, value_and_gradients
from tests.tape import tracked
from tests.traced import traced

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
    draw = np.random.default_rng(seed)  # of NumPy, which compiles nothing
    return on_device(draw.normal(size=shape), dtype)


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


# The way there and back through padding is one for all implementations, of which each meets every
# kind of marks here, or without padding in front in the tests of its own. The first has gradients.
@pytest.mark.parametrize(
    ("kind", "marks", "reverse", "masked_outputs", "implementations"),
    [
        ("lstm", "mask", True, "repeat", ["scan", "pallas"]),
        ("gru", "mask", False, "zero", ["reference"]),
        ("lstm", "segment_ids", False, "zero", ["reference", "pallas"]),
        ("gru", "segment_ids", True, "repeat", ["scan", "reference"]),
        ("gru", "lengths", False, "repeat", ["scan"]),
    ],
)
def test_padding_anywhere(loops, kind, marks, reverse, masked_outputs, implementations):
    """NaN in the padding."""
    mask = np.arange(TIME) < np.array([7, 3, 0, 1, 5])[:, None] if marks == "lengths" else MASK
    arrays = problem(kind)
    given = {marks: {"mask": mask, "segment_ids": IDS, "lengths": mask.sum(1)}[marks]}
    given |= {"reverse": reverse, "masked_outputs": masked_outputs}
    wanted = by_hand(arrays, **given)
    dirty = np.where(mask[:, :, None], arrays[0], np.float32(np.nan)), *arrays[1:]
    for number, name in enumerate(implementations):
        layer = functools.partial(KINDS[kind], implementation=name, **given)
        platform = ("tpu" if reverse else "gpu") if name == "pallas" else "cpu"
        with compiling_for(platform, interpret=name == "pallas"):
            found = jax.jit(layer)(*dirty) if number else jitted(layer)(dirty)
        assert_near(found, wanted[0] if number else wanted, 1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_of_any_type(implementation):
    """100 of 300 steps: in eight bits the time does not fit, and 100 is of every type."""
    _, carry, parameters = problem("lstm", batch=2)
    inputs = normal(6, 2, 300, FEATURES)
    pallas = implementation == "pallas"

    def run(lengths, *arrays):
        return lstm(*arrays, lengths=lengths, implementation=implementation)

    arrays = inputs, carry, parameters
    with compiling_for("tpu" if pallas else "cpu", interpret=pallas):
        wanted = traced(functools.partial(run, [100, 7]), *arrays)
        for dtype in INTEGER_TYPES:
            given = np.array([100, 7], dtype)
            assert traced(functools.partial(run, given), *arrays) == wanted
    if implementation == "scan":
        by_steps, _ = steps(*tracked(arrays), lengths=[100, 7])
        several = [np.array([100, 7], dtype) for dtype in ("int8", "uint8", "uint32")]
        for found in jax.jit(lambda *given: [run(n, *arrays).outputs for n in given])(*several):
            assert_near(found, by_steps.array, 1e-6)
            assert (np.asarray(found) != 0).any(2).sum(1).tolist() == [100, 7]


@pytest.mark.parametrize("kind", KINDS)
def test_marks_of_any_type(kind):
    arrays = problem(kind)

    def run(**marks):
        layer = functools.partial(KINDS[kind], implementation="reference", **marks)
        return traced(layer, *arrays)

    ids = run(segment_ids=IDS)
    for dtype in INTEGER_TYPES:
        assert run(segment_ids=IDS.astype(dtype)) == ids
    assert run(segment_ids=IDS.tolist()) == ids
    assert run(mask=MASK.tolist()) == run(mask=MASK)
    ones = run(mask=MASK.astype(int).tolist())
    assert run(mask=MASK.astype(int)) == ones

    @jax.jit
    def by_masks(*arrays):
        masks = MASK, MASK.astype(int), MASK.astype(np.float32)
        return [KINDS[kind](*arrays, mask=mask, implementation="reference") for mask in masks]

    wanted, *found = by_masks(*arrays)
    assert_near(found, [wanted] * 2, 1e-6)


def test_steps_that_count_by_masks_of_any_type():
    masks = [MASK.astype(dtype) for dtype in (*INTEGER_TYPES, "float16", "float32")]

    @jax.jit
    def paddings(*masks):
        found = [padding_of(Given(mask=mask), TIME, reverse=False) for mask in masks]
        # All else is found of what is valid.
        return found[0], found[-1], [(padding.valid, padding.wrong) for padding in found[1:]]

    wanted, last, found = paddings(MASK, *masks)
    np.testing.assert_array_equal(wanted.valid, MASK)
    jax.tree.map(np.testing.assert_array_equal, last._replace(wrong=None), wanted)
    for valid, wrong in found:
        np.testing.assert_array_equal(valid, MASK)
        assert not np.asarray(wrong).any()


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        (kind, name)
        for kind in KINDS
        for name in IMPLEMENTATIONS
        if (kind, name) != ("gru", "pallas")
    ],
)
def test_what_only_values_tell_is_nan_under_jit(loops, kind, implementation):
    """In that row's outputs and carry, and in the scan's gradients; other rows are as they were."""
    inputs, carry, parameters = problem(kind)
    pallas = implementation == "pallas"

    @jax.jit
    def run(lengths):
        layer = functools.partial(KINDS[kind], implementation=implementation, lengths=lengths)
        if implementation != "scan":
            return layer(inputs, carry, parameters), None
        return value_and_gradients(layer, (inputs, carry, parameters))

    with compiling_for("tpu" if pallas else "cpu", interpret=pallas):
        good, _ = run(np.array([7, 3, 0, 1, 5]))
        bad, gradients = run(np.array([7, 3, -1, 1, 8]))
    rows = np.array([0, 1, 3])
    for wrong, right in zip(jax.tree.leaves(bad), jax.tree.leaves(good), strict=True):
        assert np.isnan(np.asarray(wrong)[[2, 4]]).all()
        assert_near(np.asarray(wrong)[rows], np.asarray(right)[rows], 1e-6)
    if gradients is not None:
        assert np.isnan(gradients[2].input_kernel).all()
    if implementation != "reference":  # the carry is NaN, whatever said so and wherever it goes
        return
    layer = functools.partial(KINDS[kind], inputs, carry, parameters, implementation=implementation)
    half = np.asarray(MASK, np.float32)
    half[1, 3] = 0.5
    for leaf in jax.tree.leaves(jax.jit(lambda mask: layer(mask=mask))(half)):
        row_is_nan = np.isnan(leaf).reshape(BATCH, -1).all(1)
        assert row_is_nan.tolist() == [False, True] + [False] * 3


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
            (outputs, carry), gradients = jitted(layer)(arrays)
        assert outputs.shape == (batch, time, HIDDEN)
        jax.tree.map(np.testing.assert_array_equal, carry, arrays[1])
        assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradients[2]))


@pytest.mark.parametrize("layer", [lstm, gru])
def test_strict_promotion_where_integers_are_64_bits_wide(x64, strict_modes, layer):
    """Traced only: a loop's index is int64 then, lengths int32; each option in both dtypes."""
    dtypes = ["float32", "float64"] if layer is lstm else ["float64", "float32"]
    shapes = ((3, 8), (2, 8), 8) if layer is lstm else ((3, 6), (2, 6), 6, 6)
    given = (
        {"lengths": jnp.array([3, 2])},
        {"segment_ids": jnp.array([[1, 1, 0, 2]] * 2)},
        {"mask": jnp.array([[1, 0, 1, 1]] * 2)},
        {"lengths": jnp.array([3, 2]), "reverse": True, "masked_outputs": "repeat"},
        {"remat": True, "truncate_steps": 2},
        {"recurrent_dropout": 0.5, "key": jax.random.key(0)},
    )
    for number, options in enumerate(given):
        dtype = dtypes[number % 2]
        kind = LSTMParameters if layer is lstm else GRUParameters
        weights = kind(*(np.ones(shape, dtype) for shape in shapes))

        def total(weights, inputs, options=options):
            return layer(inputs, None, weights, **options).outputs.sum()

        inputs = jax.ShapeDtypeStruct((2, 4, 3), dtype)
        gradient, _ = jax.eval_shape(jax.grad(total, (0, 1)), weights, inputs)
        assert gradient.bias.dtype == dtype
