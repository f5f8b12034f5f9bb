"""Plans: nothing is lost, the order is the seed's, and the figures are those of the batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import BatchSource, Shape, bucket_plan, pad_batch
from tests.inputs import INTEGER_TYPES


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


@pytest.mark.smoke
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


@pytest.mark.parametrize(
    ("lengths", "boundaries", "options", "error", "message"),
    [
        ([-5, 1], [3], {}, ValueError, "lengths must be at least 0, got -5"),
        ([1.0, 2.0], [3], {}, TypeError, "lengths must be integers, got dtype float64"),
        ([1, np.nan], [3], {}, TypeError, "lengths must be integers"),
        ([True], [3], {}, TypeError, "lengths must be integers"),
        ([[1, 2], [3]], [3], {}, ValueError, "lengths must be an array of integers"),
        ([2**40], [3], {}, ValueError, "lengths must be at most 2147483647"),
        ([1], [3.5], {}, TypeError, "boundaries must be integers"),
        ([1], [0, 3], {}, ValueError, "boundaries must be at least 1, got 0"),
        ([1], [], {}, ValueError, "1 positive lengths a bucket"),
        ([1], 3, {}, ValueError, "1 positive lengths a bucket, got 3"),
        ([1], None, {}, TypeError, "boundaries must be integers"),
        ([1], [3], {"batch": 2.0}, TypeError, "batch must be an integer, got 2.0"),
        ([1], [3], {"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ([1], [3], {"batch": True}, TypeError, "batch must be an integer, got True"),
        ([1], [3], {"token_budget": 0}, ValueError, "token_budget must be at least 1, got 0"),
        ([1], [3], {"token_budget": 9.0}, TypeError, "token_budget must be an integer"),
        ([1], [3], {"processes": 0}, ValueError, "processes must be at least 1, got 0"),
        ([1], [3], {"processes": -1}, ValueError, "processes must be at least 1, got -1"),
        ([1], [3], {"processes": 1.0}, TypeError, "processes must be an integer"),
        ([1], [3], {"seed": -1}, ValueError, "seed must be at least 0"),
        ([1], [3], {"seed": 0.5}, TypeError, "seed must be an integer"),
        ([1], [3], {"longer": "split"}, ValueError, 'longer must be "raise"'),
        ([1], [3], {"batch_sizes": [1, 2]}, ValueError, "batch_sizes must be an integer or 1"),
        ([1], [3], {"batch_sizes": [0]}, ValueError, "batch_sizes must be at least 1"),
        ([1], [3, 3], {"batch_sizes": [2, 4]}, ValueError, "agree where boundaries do"),
        ([1], [3], {"batch_sizes": [2], "processes": 3}, ValueError, "batch_sizes must give each"),
        ([1], [3], {"batch_sizes": [2], "batch": 3}, ValueError, "give batch or token_budget"),
    ],
)
def test_arguments_out_of_range(lengths, boundaries, options, error, message, users_checks):
    if not options.keys() & {"batch", "token_budget", "batch_sizes"}:
        options = {"batch": 6, **options}
    with pytest.raises(error, match=message):
        bucket_plan(lengths, boundaries, **options)


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_lengths_of_every_integer_type(dtype):
    given = np.array([2, 100, 127, 0], dtype)
    plan = bucket_plan(given, np.array([100, 127], dtype), token_budget=np.int16(300))
    assert plan.shapes == (Shape(3, (100,)), Shape(2, (127,)))
    assert plan.buckets.tolist() == [0, 0, 1, -1]
    given[:] = 1  # the plan keeps a copy, that none can alter
    assert plan.lengths.ravel().tolist() == [2, 100, 127, 0]
    for array in (plan.lengths, plan.buckets):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    assert plan == plan  # without NumPy's "truth value of an array"
    assert hash(plan) == hash(plan)


def test_each_bucket_has_its_own_batch():
    plan = bucket_plan([2, 9, 30], [30, 3, 10, 3], batch_sizes=[1, 8, 4, 8])
    assert plan.shapes == (Shape(8, (3,)), Shape(4, (10,)), Shape(1, (30,)))
    plan = bucket_plan([[2, 3], [9, 1]], [(3, 3), (9, 1)], batch_sizes=(7, 3), processes=2)
    assert plan.shapes == (Shape(6, (3, 3)), Shape(2, (9, 1)))


def test_a_held_out_plan_takes_the_shapes_of_another():
    plan = bucket_plan([2, 3, 9, 10], [3, 10], token_budget=40, processes=2, seed=1)
    held_out = bucket_plan([1, 8, 0], like=plan)
    assert held_out.shapes == plan.shapes == (Shape(12, (3,)), Shape(4, (10,)))
    assert (held_out.processes, held_out.dropped) == (2, {2: "empty"})
    with pytest.raises(ValueError, match=r"up to \(10,\), got \(11,\) at example 1 \(2 such\)"):
        bucket_plan([1, 11, 20], like=plan)
    longer = bucket_plan([1, 11, 20, 8], like=plan, longer="new bucket")
    assert longer.shapes == (*plan.shapes, Shape(2, (20,)))
    assert longer.buckets.tolist() == [0, 2, 2, 1]
    assert longer.dropped == {}
    assert bucket_plan([99], like=plan, longer="new bucket").shapes == (Shape(2, (99,)),)
    dropped = bucket_plan([1, 11], like=plan, longer="drop")
    assert dropped.dropped == {1: "length (11,) fits no bucket up to (3,)"}
    assert bucket_plan([11], like=plan, longer="drop").batches == 0
    assert bucket_plan([5], like=plan, processes=4).shapes == (Shape(4, (10,)),)
    pairs = bucket_plan([[1, 9], [9, 1]], [(1, 9), (9, 1)], batch=3)
    new = bucket_plan([[9, 9], [1, 5]], like=pairs, longer="new bucket")
    assert new.shapes == (Shape(3, (1, 9)), Shape(1, (9, 9)))


def test_longer_examples_of_a_plan_of_its_own():
    with pytest.raises(ValueError, match=r"got \(12,\) at example 1"):
        bucket_plan([2, 12], [3], batch=4, longer="raise")
    assert bucket_plan([2, 12], [3], batch=4, longer="new bucket").shapes[1] == Shape(4, (12,))
    with pytest.raises(ValueError, match=r"token_budget must give .* \(12,\) steps, got 9"):
        bucket_plan([2, 12], [3], token_budget=9, longer="new bucket")
    with pytest.raises(ValueError, match="give like alone"):
        bucket_plan([2], [3], like=bucket_plan([2], [3], batch=4))
    with pytest.raises(ValueError, match="divide the rows of like's batches, 4, got 3"):
        bucket_plan([2], like=bucket_plan([2], [3], batch=4), processes=3)


@pytest.mark.parametrize("empty", [[], np.zeros(0), np.zeros(0, np.int32), np.zeros((0, 1), int)])
def test_nothing_has_a_plan_without_batches(empty):
    plan = bucket_plan(empty, [3], batch=2, processes=2)
    assert (plan.batches, plan.cost, plan.padding_share, plan.compiles) == (0, 0, 0, 0)
    assert plan.dropped == {}
    assert list(plan.epoch(0)) == plan.order(0) == []
    assert str(plan).startswith("0 examples, 0 dropped; 0 batches")
    source = BatchSource(plan, [[]], np.zeros((0, 4)), epochs=3)
    assert len(source) == len(list(source)) == 0
    assert bucket_plan([2], like=plan, longer="new bucket").shapes == (Shape(2, (2,)),)
    pairs = bucket_plan(empty[:0] if np.ndim(empty) == 1 else [], [(3, 4)], batch=2)
    assert len(BatchSource(pairs, [[], []])) == 0
    assert bucket_plan([0, 0], [3], batch=2).dropped == {0: "empty", 1: "empty"}


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
