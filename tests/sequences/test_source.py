"""Batches by number and from a stream: what a plan says, once each, resumed anywhere."""

import json
import pickle

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import BatchSource, Shape, bucket_plan
from jaxnets.sequences.grain_batches import BucketBatches
from jaxnets.sequences.plan import Order


def example_source(epochs=2):
    lengths = np.random.default_rng(0).integers(1, 20, 60)
    words = [np.arange(length) for length in lengths]
    plan = bucket_plan(lengths, [10, 20], batch=4, seed=3)
    return BatchSource(plan, [words], lengths, epochs=epochs)


def test_a_source_says_the_counts(users_checks):
    plan = bucket_plan([1] * 150, [1], batch=10)
    sides = [np.ones((150, 1))]
    for call, message in (
        (lambda: BatchSource(plan, sides, np.arange(200)), "the plan's examples, 150, got 200"),
        (lambda: BatchSource(plan, sides, {"y": np.arange(99)}), r"rows\['y'\] .*, 150, got 99"),
        (lambda: BatchSource(plan, [np.ones((151, 1))]), r"sides\[0\] .*, 150, got 151"),
        (lambda: BatchSource(plan, sides * 2), r"sides must be 1 as .* \[examples, 1\], got 2"),
        (lambda: BatchSource(plan, list(sides[0])), "sides must be 1 as .* got 150: a list of one"),
        (lambda: BatchSource(plan, sides, epochs=0), "epochs must be at least 1"),
        (lambda: BatchSource(plan, sides, process=1), r"process must lie in \[0, 1\), got 1"),
        (lambda: BatchSource(plan, sides, process=-1), "got -1"),
        (lambda: plan.order(-1), "epoch must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    for call in (
        lambda: BatchSource(plan, sides, epochs=1.0),
        lambda: BatchSource(plan, sides)[0.0],
        lambda: next(plan.epoch(0, start=0.0)),
    ):
        with pytest.raises(TypeError, match="must be an integer"):
            call()


def test_a_batch_says_which_examples_it_holds():
    source = example_source()
    for number, (shape, examples) in enumerate(source.plan.epoch(0)):
        batch = source[np.uint8(number)]
        assert batch.examples.dtype == np.int32
        assert batch.examples.tolist() == examples.tolist()
        assert batch.examples.shape == (shape.batch,)


def test_epochs_in_any_order_are_made_once(monkeypatch):
    source = example_source(epochs=12)
    plan, made = source.plan, []
    wanted = [source[i] for i in range(len(source))]
    monkeypatch.setattr(
        "jaxnets.sequences.source.Order",
        lambda plan, epoch: made.append(epoch) or Order(plan, epoch),
    )
    source = pickle.loads(
        pickle.dumps(BatchSource(plan, [b.sequences for b in source.sides], source.rows, epochs=12))
    )
    for batch in range(plan.batches):
        for epoch in (5, 0, 3, 11, 0):
            number = epoch * plan.batches + batch
            assert source[number].examples.tolist() == wanted[number].examples.tolist()
    assert made == [5, 0, 3, 11]
    for epoch in range(12):  # the last few are kept
        assert source[epoch * plan.batches] is not None
    assert len(source._orders) == 8
    made.clear()
    assert [source[epoch * plan.batches] is None for epoch in range(4, 12)] == [False] * 8
    assert made == []


def test_a_source_pads_what_the_plan_says():
    source = example_source()
    plan = source.plan
    for number, (shape, examples) in enumerate([*plan.epoch(0), *plan.epoch(1)]):
        batch = source[number]
        assert batch.sequences[0].shape == (shape.batch, *shape.times)
        for row, example in enumerate(examples):
            length = plan.lengths[example, 0] if example >= 0 else 0
            assert batch.lengths[0][row] == batch.rows[row] == length
            assert batch.sequences[0][row].tolist() == [*range(length)] + [0] * (
                shape.times[0] - length
            )
    with pytest.raises(IndexError):
        source[len(source)]


@pytest.mark.smoke
def test_grain_reads_it_prefetches_and_resumes_in_the_middle_of_an_epoch():
    source = example_source()
    plain = [source[i] for i in range(len(source))]

    def pipeline():
        options = grain.ReadOptions(num_threads=2)
        return iter(grain.MapDataset.source(example_source()).to_iter_dataset(options))

    iterator = pipeline()
    batches = [next(iterator) for _ in range(5)]
    state = iterator.get_state()
    rest = list(iterator)
    resumed = pipeline()
    resumed.set_state(state)
    for found in (batches + rest, plain[:5] + list(resumed)):
        assert len(found) == len(plain)
        for a, e in zip(found, plain, strict=True):
            np.testing.assert_array_equal(a.sequences[0], e.sequences[0])
            np.testing.assert_array_equal(a.lengths[0], e.lengths[0])


def stream(lengths, shapes):
    elements = [{"x": np.full(n, i), "label": i} for i, n in enumerate(lengths)]
    parent = grain.MapDataset.source(elements).to_iter_dataset()
    return iter(BucketBatches(parent, shapes, lambda e: (e["x"],), lambda e: e["label"]))


@pytest.mark.smoke
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=25), st.integers(0, 12))
def test_a_stream_is_bucketed_without_loss_and_resumes_anywhere(lengths, taken):
    shapes = [Shape(4, (3,)), Shape(3, (6,)), Shape(2, (9,))]
    whole = list(stream(lengths, shapes))
    seen = []
    for batch in whole:
        present = batch.lengths[0] > 0
        assert Shape(len(present), batch.sequences[0].shape[1:]) in shapes
        seen += batch.rows[present].tolist()
        assert [lengths[i] for i in batch.rows[present]] == batch.lengths[0][present].tolist()
    assert sorted(seen) == list(range(len(lengths)))
    iterator = stream(lengths, shapes)
    first = [next(iterator) for _ in range(min(taken, len(whole)))]
    state = json.loads(json.dumps(iterator.get_state()))  # as a checkpoint keeps it
    resumed = stream(lengths, shapes)
    resumed.set_state(state)
    for found in (first + list(iterator), first + list(resumed)):
        for a, e in zip(found, whole, strict=True):
            np.testing.assert_array_equal(a.sequences[0], e.sequences[0])
            np.testing.assert_array_equal(a.rows, e.rows)


def test_a_stream_refuses_what_fits_no_bucket():
    with pytest.raises(ValueError, match=r"got one of \(5,\) steps: filter or split it before"):
        list(stream([2, 5], [Shape(2, (4,))]))
