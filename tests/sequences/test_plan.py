"""Plans: nothing is lost, the order is the seed's, and the figures are those of the batches."""

import json

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import BatchSource, Shape, bucket_plan, pad_batch
from jaxnets.sequences.grain_batches import BucketBatches


@st.composite
def plans(draw):
    """The arguments of a plan: beartype draws random numbers, which a strategy must not."""
    lengths = draw(st.lists(st.integers(0, 15), min_size=1, max_size=40).filter(any))
    boundaries = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5, unique=True))
    boundaries.append(min(length for length in lengths if length))
    options = draw(
        st.sampled_from([{"batch": 6}, {"token_budget": 60}])  # of 12 steps: 5 rows, shared by 3
    )
    options |= {"processes": draw(st.integers(1, 3)), "seed": draw(st.integers(0, 9))}
    return lengths, sorted(set(boundaries)), options


def made(plan):
    lengths, boundaries, options = plan
    return bucket_plan(lengths, boundaries, **options)


@settings(max_examples=150, deadline=None)
@given(plans(), st.integers(0, 3))
def test_every_example_is_there_once_or_reported(plan, epoch):
    plan = made(plan)
    seen = []
    for process in range(plan.processes):
        for shape, examples in plan.epoch(epoch, process=process):
            assert len(examples) == shape.batch
            present = examples[examples >= 0]
            assert (plan.lengths[present] <= shape.times).all()
            seen += present.tolist()
    assert sorted([*seen, *plan.dropped]) == list(range(len(plan.lengths)))
    longest = max(shape.times[0] for shape in plan.shapes)
    for example, why in plan.dropped.items():
        length = plan.lengths[example, 0]
        assert why == "empty" if length == 0 else "fits no bucket" in why
        assert length == 0 or length > longest


@settings(max_examples=50, deadline=None)
@given(plans())
def test_the_figures_are_those_of_the_batches(plan):
    plan = made(plan)
    batches = list(plan.order(0))
    steps = sum(shape.steps for shape, _ in batches)
    real = sum(plan.lengths[e[e >= 0]].sum() for _, e in batches)
    assert plan.batches == len(batches)
    assert plan.cost == steps
    assert plan.padding_share == pytest.approx(1 - real / steps)
    assert plan.compiles == len({shape for shape, _ in batches})


def test_the_order_is_that_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 20, 100)

    def order(seed, epoch, **options):
        plan = bucket_plan(lengths, [10, 20], batch=4, seed=seed)
        return [(shape, tuple(e)) for shape, e in plan.epoch(epoch, **options)]

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert order(1, 2, start=7) == order(1, 2)[7:]  # resumed in the middle


def test_processes_see_the_same_shapes_and_share_the_rows():
    lengths = np.random.default_rng(0).integers(1, 20, 100)
    plan = bucket_plan(lengths, [10, 20], token_budget=130, processes=4)
    shares = [list(plan.epoch(0, process=p)) for p in range(4)]
    for batches in zip(*shares, strict=True):
        assert len({shape for shape, _ in batches}) == 1
    assert {shape.batch for shape in plan.shapes} == {12, 4}


def test_long_buckets_take_smaller_batches():
    plan = bucket_plan([[3, 4], [20, 30]], [(5, 5), (20, 30)], token_budget=100)
    assert plan.shapes == (Shape(10, (5, 5)), Shape(2, (20, 30)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give batch or token_budget, got None and None"),
        ({"batch": 2, "token_budget": 9}, "give batch or token_budget"),
        ({"token_budget": 5}, "a row of .* steps, got 5"),
        ({"batch": 2, "processes": 3}, "each of 3 processes a row"),
    ],
)
def test_bad_options(options, message, users_checks):
    with pytest.raises(ValueError, match=message):
        bucket_plan([3, 9], [10], **options)


def test_bad_boundaries_and_calls(users_checks):
    with pytest.raises(ValueError, match="1 positive lengths a bucket"):
        bucket_plan([3], [(3, 4)], batch=1)
    with pytest.raises(ValueError, match="hold at least one example"):
        bucket_plan([3], [2], batch=1)
    plan = bucket_plan([3], [3], batch=1)
    with pytest.raises(ValueError, match=r"process must lie in \[0, 1\), got 1"):
        next(plan.epoch(0, process=1))
    with pytest.raises(ValueError, match=r"start must lie in \[0, 1\], got 2"):
        next(plan.epoch(0, start=2))
    with pytest.raises(ValueError, match="at most 2 steps, got 3"):
        pad_batch([[np.ones(3)]], np.array([0]), Shape(1, (2,)))


def example_source(epochs=2):
    lengths = np.random.default_rng(0).integers(1, 20, 60)
    words = [np.arange(length) for length in lengths]
    plan = bucket_plan(lengths, [10, 20], batch=4, seed=3)
    return BatchSource(plan, [words], lengths, epochs=epochs)


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
