"""Packing: nothing is lost, rows are as first-fit decreasing has them, arrays hold the segments."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.sequences import pack, pack_arrays


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
