"""Boundaries: the optimal ones against every choice there is."""

import itertools

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


def test_many_distinct_lengths_in_reasonable_time():
    lengths = np.random.default_rng(0).integers(9_000, 18_001, 3_000)
    found = optimal_boundaries(lengths, 8)
    even = tuple(np.linspace(9_000, lengths.max(), 9).astype(int)[1:])
    assert len(found) == 8
    assert steps(lengths, found) <= steps(lengths, even)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: optimal_boundaries([], 2), ValueError, "at least one, got shape"),
        (lambda: optimal_boundaries([1.5], 2), TypeError, "lengths must be integers"),
        (lambda: optimal_boundaries([0, 3], 2), ValueError, "at least 1, got 0"),
        (lambda: quantile_boundaries([3], 0), ValueError, "buckets must be at least 1, got 0"),
        (lambda: boundaries_every(0, 3), ValueError, "got 0 and 3"),
        (lambda: optimal_pair_boundaries([1, 2], [1], 1, 1), ValueError, "one length a source"),
    ],
)
def test_bad_input(call, error, message, users_checks):
    with pytest.raises(error, match=message):
        call()
