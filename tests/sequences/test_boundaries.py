"""Boundaries: the optimal ones against every choice there is."""

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import (
    boundaries_every,
    bucket_plan,
    optimal_boundaries,
    optimal_pair_boundaries,
    quantile_boundaries,
)
from tests.inputs import INTEGER_TYPES

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=20)


def steps(lengths, boundaries):
    """Steps of the lengths, each padded to the first boundary that holds it."""
    return sum(min(b for b in boundaries if b >= length) for length in lengths)


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.integers(1, 4))
def test_no_choice_of_boundaries_pads_less(lengths, buckets):
    found = optimal_boundaries(lengths, buckets)
    assert len(found) <= buckets
    assert list(found) == sorted(set(found))
    assert found[-1] == max(lengths)
    distinct = sorted(set(lengths))
    best = min(
        steps(lengths, (*some, max(lengths)))
        for size in range(min(buckets, len(distinct)))
        for some in itertools.combinations(distinct[:-1], size)
    )
    assert steps(lengths, found) == best


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 30))
def test_quantiles_hold_everything(lengths, buckets):
    found = quantile_boundaries(lengths, buckets)
    assert len(found) <= buckets
    assert found[-1] == max(lengths)
    assert steps(lengths, optimal_boundaries(lengths, buckets)) <= steps(lengths, found)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=20))
def test_pairs_hold_everything(pairs):
    sources, targets = np.array(pairs).T
    found = optimal_pair_boundaries(sources, targets, 3, 2)
    assert len(found) <= 6
    assert bucket_plan(np.array(pairs), found, batch=4).dropped == {}


def quadratic(lengths, buckets):
    """The fewest steps by the recurrence itself."""
    distinct, counts = np.unique(lengths, return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    cost = np.concatenate([[0], distinct * up_to[1:]])
    for _ in range(1, buckets):
        cost = np.array([0] + [
            (cost[:j] + distinct[j - 1] * (up_to[j] - up_to[:j])).min()
            for j in range(1, len(distinct) + 1)
        ])  # fmt: skip
    return cost[-1]


def test_the_hull_finds_what_the_recurrence_does():
    rng = np.random.default_rng(0)
    for case in range(60):
        lengths = (rng.lognormal(rng.uniform(1, 6), rng.uniform(0.1, 2), 300) + 1).astype(int)
        lengths = rng.choice(lengths, rng.integers(1, 300)) * (1 if case % 2 else 10_000)
        buckets = int(rng.integers(1, 20))
        found = np.array(optimal_boundaries(lengths, buckets))
        padded = found[np.searchsorted(found, lengths)]
        assert len(found) <= buckets
        assert padded.sum() == quadratic(lengths, buckets)


def test_a_quarter_of_a_million_distinct_lengths_take_seconds():
    lengths = np.random.default_rng(0).integers(1, 250_001, 1_000_000)
    start = time.perf_counter()
    found = np.array(optimal_boundaries(lengths, 8))
    assert time.perf_counter() - start < 30  # 0.6 here; the recurrence itself takes minutes
    even = np.linspace(0, 250_000, 9)[1:].astype(int)
    sums = [b[np.searchsorted(b, lengths)].sum() for b in (found, even)]
    assert len(found) == 8
    assert sums[0] <= sums[1]


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_lengths_of_every_integer_type(dtype):
    lengths = np.array([100, 120, 120, 27, 7], dtype)
    assert optimal_boundaries(lengths, 2) == optimal_boundaries(lengths.tolist(), 2)
    assert quantile_boundaries(lengths, np.int8(2)) == (100, 120)
    pairs = optimal_pair_boundaries(lengths, lengths[::-1], 2, 2)
    assert pairs == optimal_pair_boundaries(lengths.tolist(), lengths[::-1].tolist(), 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optimal_boundaries([], 2), ValueError, "at least one, got shape"),
        (lambda: optimal_boundaries([1.5], 2), TypeError, "lengths must be integers"),
        (lambda: optimal_boundaries([0, 3], 2), ValueError, "at least 1, got 0"),
        (lambda: quantile_boundaries([3], 0), ValueError, "buckets must be at least 1, got 0"),
        (lambda: optimal_boundaries([np.nan], 2), TypeError, "lengths must be integers"),
        (lambda: optimal_boundaries([True], 2), TypeError, "lengths must be integers"),
        (lambda: optimal_boundaries([2**40], 2), ValueError, "lengths must be at most 2147483647"),
        (lambda: optimal_boundaries([3], 2.0), TypeError, "buckets must be an integer"),
        (lambda: boundaries_every(2.5, 3), TypeError, "step must be an integer"),
        (lambda: boundaries_every(0, 3), ValueError, "got 0 and 3"),
        (lambda: optimal_pair_boundaries([1, 2], [1], 1, 1), ValueError, "one length a source"),
    ],
)
def test_bad_input(call, error, message, users_checks):
    with pytest.raises(error, match=message):
        call()
