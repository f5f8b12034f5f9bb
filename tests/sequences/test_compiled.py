"""Steps over buckets: the compiles are the plan's, and the loss is that of the examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LSTMParameters, lstm
from jaxnets.sequences import (
    Batch,
    BatchSource,
    Shape,
    bucket_plan,
    bucketed_jit,
    length_mask,
    pack,
    pack_arrays,
)
from tests.near import assert_near

FEATURES, HIDDEN = 3, 4
# Loops of at most 8 steps are written out, and compile for longer.
LENGTHS = np.random.default_rng(0).integers(9, 18, 30)
SERIES = [np.random.default_rng(i).normal(size=(n, FEATURES)) for i, n in enumerate(LENGTHS)]


def parameters():
    draw = np.random.default_rng(1)
    shapes = ((FEATURES, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), (4 * HIDDEN,))
    return LSTMParameters(*(jnp.asarray(draw.normal(size=shape)) for shape in shapes))


def padded(weights, batch):
    """The sum of the steps' losses and of the steps: outputs are to be the inputs' sum."""
    (inputs,), (lengths,) = batch.sequences, batch.lengths
    outputs, _ = lstm(inputs, None, weights, lengths=lengths, reverse=True)
    mask = length_mask(lengths, inputs.shape[1])
    return (jnp.square(outputs.sum(-1) - inputs.sum(-1)) * mask).sum()


def packed_sum(weights, inputs, segment_ids):
    outputs, _ = lstm(inputs, None, weights, segment_ids=segment_ids, reverse=True)
    return (jnp.square(outputs.sum(-1) - inputs.sum(-1)) * (segment_ids > 0)).sum()


def test_padded_bucketed_and_packed_have_the_same_loss_and_gradients(x64):
    weights = parameters()

    def total(boundaries):
        plan = bucket_plan(LENGTHS, boundaries, batch=8)
        step = bucketed_jit(jax.value_and_grad(padded), plan.shapes)
        source = BatchSource(plan, [SERIES])
        results = [step(weights, source[i]) for i in range(len(source))]
        assert step.compiles == plan.compiles == len(boundaries)
        # Series by themselves, each in an array of its own length, which the bucket fills.
        one = np.zeros(1, np.int32)
        alone = [
            source[0]._replace(sequences=(a[None],), lengths=(one + len(a),), examples=one)
            for a in SERIES
        ]
        each = [step(weights, batch) for batch in alone]
        assert step.compiles == plan.compiles
        return [jax.tree.map(lambda *parts: np.sum(parts, 0), *found) for found in (results, each)]

    packed = pack_arrays(SERIES, pack(LENGTHS, 34), 34)
    wanted = jax.jit(jax.value_and_grad(packed_sum))(weights, *packed[:2])
    for found in (*total([17]), *total([13, 17])):
        assert_near(found, wanted, 1e-9)


def test_batches_of_any_shape_compile_once_a_bucket():
    step = bucketed_jit(
        lambda factor, batch: factor * batch.sequences[0].sum() + batch.rows["weight"].sum(),
        [Shape(4, (6,)), Shape(2, (12,))],
    )
    for rows, time in ((4, 6), (3, 2), (1, 5), (2, 7), (1, 12), (2, 12)):
        batch = Batch((np.ones((rows, time)),), (np.full(rows, time),), {"weight": np.ones(rows)})
        assert step(2.0, batch) == 2 * rows * time + rows
    assert step.compiles == 2


def test_pairs_take_the_cheapest_bucket_that_holds_both():
    step = bucketed_jit(
        lambda batch: batch.sequences[1].shape[1], [Shape(2, (4, 9)), Shape(2, (9, 4))]
    )
    batch = Batch((np.ones((1, 3)), np.ones((1, 8))), (np.array([3]), np.array([8])))
    assert step(batch) == 9
    with pytest.raises(ValueError, match=r"got 1 rows of \(9, 9\) steps: give the plan a longer"):
        step(Batch((np.ones((1, 9)), np.ones((1, 9))), batch.lengths))
    with pytest.raises(ValueError, match="2 sides as the shapes have, got 1"):
        step(Batch((np.ones((1, 9)),), (np.array([9]),)))
    with pytest.raises(ValueError, match="got 3 rows"):
        step(Batch((np.ones((3, 3)), np.ones((3, 8))), batch.lengths))
    with pytest.raises(TypeError, match="must be a Batch, got tuple"):
        step(())
    assert step.compiles == 1


def test_filling_rows_are_no_examples_and_keep_their_types():
    step = bucketed_jit(lambda batch: batch, [(4, [6])])
    rows = {"there": np.array([True]), "scale": np.float32(2)}
    batch = Batch((np.ones((1, 2)),), (np.array([2]),), rows, np.array([7], np.int32))
    found = step(batch)
    assert found.examples.tolist() == [7, -1, -1, -1]
    assert found.rows["there"].tolist() == [True, False, False, False]
    assert found.rows["there"].dtype == bool
    assert found.rows["scale"] == 2
    assert step(jax.tree.map(jnp.asarray, batch)).examples.tolist() == [7, -1, -1, -1]
    assert step.compiles == 1
    assert [leaf.shape for leaf in jax.tree.leaves(batch)] == [(1, 2), (1,), (), (1,), (1,)]


def test_arrays_of_a_batch_have_one_number_of_rows():
    step = bucketed_jit(lambda batch: batch, [Shape(4, (6,))])
    sequences, lengths = (np.ones((2, 3)),), (np.array([3, 3]),)
    for batch, name in (
        (Batch(sequences, (np.array([3]),)), r"\.lengths\[0\]"),
        (Batch(sequences, lengths, {"y": np.ones(3)}), r"\.rows\['y'\]"),
        (Batch(sequences, lengths, (), np.arange(1)), r"\.examples"),
    ):
        with pytest.raises(ValueError, match=f"2 as its first sequence, got .* for batch{name}"):
            step(batch)
    with pytest.raises(ValueError, match="one number of sides"):
        bucketed_jit(lambda batch: batch, [Shape(4, (6,)), Shape(4, (6, 6))])
    with pytest.raises(ValueError, match="fit one of the shapes"):
        bucketed_jit(lambda batch: batch, [])(Batch(sequences, lengths))


def test_state_is_donated():
    step = bucketed_jit(
        lambda state, batch: state + batch.sequences[0].sum(), [Shape(2, (3,))], donate_argnums=0
    )
    state = jnp.zeros(())
    batch = Batch((jnp.ones((2, 3)),), (jnp.array([3, 3]),))
    new = step(state, batch)
    assert state.is_deleted()
    assert new == 6
