"""Packing: nothing is lost, rows are as first-fit decreasing has them, arrays hold the segments."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import pack, pack_arrays
from tests.inputs import INTEGER_TYPES


def plain_first_fit(lengths, row_length):
    rows = []
    for example in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for row in rows:
            if sum(lengths[i] for i in row) + lengths[example] <= row_length:
                row.append(example)
                break
        else:
            rows.append([example])
    return rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 12), max_size=40))
def test_rows_are_those_of_the_plain_algorithm(lengths):
    assert pack(lengths, 12) == plain_first_fit(lengths, 12)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=20))
def test_arrays_hold_each_sequence_once(lengths):
    rng = np.random.default_rng(0)
    sequences = [rng.normal(size=(length, 2)) for length in lengths]
    rows = pack(lengths, 10)
    packed = pack_arrays(sequences, rows, 10)
    assert (packed.segment_ids > 0).sum() == sum(lengths)
    for number, row in enumerate(rows):
        for segment, example in enumerate(row, 1):
            own = packed.segment_ids[number] == segment
            np.testing.assert_array_equal(packed.sequences[number][own], sequences[example])
            assert packed.positions[number][own].tolist() == list(range(lengths[example]))


def test_what_fits_no_row_is_refused():
    with pytest.raises(ValueError, match=r"\[1, row_length\] = \[1, 4\], got 5"):
        pack([2, 5], 4)
    with pytest.raises(ValueError, match="got 0"):
        pack([2, 0], 4)


def plain_first_fit_of_pairs(lengths, limits, most):
    rows = []
    shares = (np.array(lengths).reshape(-1, 2) / limits).max(1)
    for example in np.argsort(-shares, kind="stable").tolist():
        for row in rows:
            sums = [sum(lengths[i][side] for i in [*row, example]) for side in (0, 1)]
            if len(row) < most and all(s <= limit for s, limit in zip(sums, limits, strict=True)):
                row.append(example)
                break
        else:
            rows.append([example])
    return rows


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), max_size=30),
    st.sampled_from([None, 1, 2, 3]),
)
def test_pairs_and_their_number_are_those_of_the_plain_algorithm(pairs, most):
    found = pack(pairs, (9, 6), max_sequences=most)
    assert found == plain_first_fit_of_pairs(pairs, (9, 6), most or 30)
    single = pack([s for s, _ in pairs], 9, max_sequences=most)
    assert single == plain_first_fit_of_pairs([(s, 1) for s, _ in pairs], (9, 99), most or 30)


@pytest.mark.smoke
def test_many_pairs_are_packed_in_groups(monkeypatch):
    monkeypatch.setattr("jaxnets.sequences.packing.GROUP", 64)
    rng = np.random.default_rng(0)
    pairs = np.c_[rng.integers(1, 33, 1_000), rng.integers(1, 33, 1_000)].astype(np.uint8)
    rows = pack(pairs, [64, 48], max_sequences=5)
    assert sorted(itertools.chain(*rows)) == list(range(1_000))
    assert max(map(len, rows)) <= 5
    assert all((pairs[row].sum(0, dtype=int) <= (64, 48)).all() for row in rows)
    assert len(rows) <= 1.1 * max(pairs.sum(0, dtype=int) / (64, 48))
    sides = [[np.full(n, i) for i, n in enumerate(side)] for side in pairs.T]
    source, target = (
        pack_arrays(side, rows, limit) for side, limit in zip(sides, (64, 48), strict=True)
    )
    for number, row in enumerate(rows):
        for segment, example in enumerate(row, 1):
            for packed, side in ((source, 0), (target, 1)):
                own = packed.sequences[number][packed.segment_ids[number] == segment]
                assert own.tolist() == [example] * int(pairs[example, side])


@pytest.mark.parametrize("dtype", INTEGER_TYPES)
def test_lengths_of_every_integer_type(dtype):
    lengths = np.array([100, 120, 27, 7], dtype)
    assert pack(lengths, 300) == pack(lengths.tolist(), np.int16(300)) == [[1, 0, 2, 3]]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: pack([2.9, 2.9], 5), TypeError, "lengths must be integers, got dtype float64"),
        (lambda: pack([np.nan], 5), TypeError, "lengths must be integers"),
        (lambda: pack([True], 5), TypeError, "got dtype bool"),
        (lambda: pack([1], 5.0), TypeError, "row_length must be an integer"),
        (lambda: pack([1], 0), ValueError, "row_length must be at least 1, got 0"),
        (lambda: pack([(1, 2)], (5, 6, 7)), ValueError, "row_length must be an integer or 2"),
        (lambda: pack([(1, 7)], (5, 6)), ValueError, r"\[1, 6\], got 7"),
        (lambda: pack([1], 5, max_sequences=0), ValueError, "max_sequences must be at least 1"),
        (lambda: pack([1], 5, max_sequences=2.0), TypeError, "max_sequences must be an integer"),
        (lambda: pack(7, 5), ValueError, r"got shape \(\)"),
        (lambda: pack_arrays([[1]], [[0]], 0), ValueError, "row_length must be at least 1"),
    ],
)
def test_bad_input(call, error, message, users_checks):
    with pytest.raises(error, match=message):
        call()
