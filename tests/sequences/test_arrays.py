"""No value is lost on the way into a batch: one type that holds all, or an error with its name."""

import ml_dtypes
import numpy as np
import pytest

from jaxnets.sequences import BatchSource, Shape, bucket_plan, pack, pack_arrays, pad_batch
from jaxnets.sequences.grain_batches import BucketBatches

RAGGED = np.empty(2, object)
RAGGED[:] = [np.arange(2), np.array([0.5])]


def padded(*sequences, padding=0):
    lengths = [len(sequence) for sequence in sequences]
    shape = Shape(len(sequences), (max(lengths),))
    return pad_batch([sequences], range(len(sequences)), shape, padding=padding).sequences[0]


def sourced(*sequences):
    plan = bucket_plan([max(1, len(s)) for s in sequences], [9], batch=len(sequences))
    batch = BatchSource(plan, [sequences])[0]
    order = batch.examples.argsort()
    return batch.sequences[0][order]


def packed(*sequences):
    return pack_arrays(sequences, [[i] for i in range(len(sequences))], 9).sequences


def streamed(*sequences):
    grain = pytest.importorskip("grain")
    parent = grain.MapDataset.source(list(sequences)).to_iter_dataset()
    (batch,) = BucketBatches(parent, [Shape(len(sequences), (9,))], lambda x: (x,))
    return batch.sequences[0]


WAYS = [padded, sourced, packed, streamed]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sequences", "dtype"),
    [
        (([1, 2], [0.5]), np.float64),
        ((np.array([1, 2]), np.array([0.5, 1.5, 2.5])), np.float64),
        ((np.array([1], np.int8), np.array([300])), np.int64),
        ((np.array([1], np.uint8), np.array([-1], np.int8)), np.int16),
        ((np.array([1], np.float16), np.array([1e5], np.float32)), np.float32),
        ((np.array([True]), np.array([7], np.int8)), np.int8),
        ((np.array([1], ml_dtypes.bfloat16), np.array([0.1], np.float32)), np.float32),
        ((np.array([2.5], np.float32), np.array([2**24 + 1], np.int32)), np.float64),
        ((np.array([1], np.int32), np.array([])), np.int32),  # no step: no type of its own
        ((np.array([1j]), np.array([2])), np.complex128),
        ((np.array([True, False]), np.array([True])), np.bool_),
    ],
)
def test_a_type_that_holds_every_value(way, sequences, dtype):
    if way is streamed and not all(map(len, sequences)):
        sequences = sequences[:1]
    for some in (sequences, sequences[::-1]):
        rows = way(*some)
        assert rows.dtype == dtype
        for row, sequence in zip(rows, some, strict=True):
            assert row[: len(sequence)].tolist() == np.asarray(sequence).tolist()
            assert not row[len(sequence) :].any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        (([2**60 + 1], [0.5]), ValueError, r"\[0\].* 1152921504606846977 is not exact in float64"),
        (
            (np.array([1], np.uint64), np.array([1])),
            TypeError,
            r"\[0\] is uint64, .*\[1\] is int64",
        ),
        ((np.ones((2, 12)), np.ones((2, 1))), ValueError, r"12\) at .*\[0\] and .* 1\) at .*\[1\]"),
        ((np.ones((2, 12)), np.ones(2)), ValueError, r"\('time',\) at .*\[1\]"),
        ((np.array([1]), np.array(["a"])), TypeError, r"\[1\] is <U1"),
        ((np.array(["b"]), np.array(["a"])), TypeError, "numbers or booleans, got dtype <U1"),
        ((np.array([1]), np.array([None])), TypeError, r"\[1\] must hold numbers"),
        (([1], [[1], [2, 3]]), ValueError, r"\[1\] must be an array"),
    ],
)
def test_what_has_no_common_type_or_width_is_named(way, sequences, error, message, users_checks):
    with pytest.raises(error, match=message):
        way(*sequences)


def test_a_sequence_without_time_is_named(users_checks):
    for call in (
        lambda: pad_batch([[np.ones(1), np.float64(2)]], [0, 1], Shape(2, (2,))),
        lambda: pack_arrays([np.ones(1), np.float64(2)], [[0, 1]], 4),
    ):
        with pytest.raises(ValueError, match=r"\[1\] must be \[time, ...\]"):
            call()


def test_arrays_of_objects_and_of_jax_are_sides():
    assert sourced(*RAGGED).tolist() == [[0, 1, *[0] * 7], [0.5, *[0] * 8]]
    for side in (np.ones((2, 3), np.float16), np.ones((0, 3), np.float16)):
        batch = pad_batch([side], [-1] * 2, Shape(2, (4,)))
        assert batch.sequences[0].dtype == (np.float16 if len(side) else np.float32)


@pytest.mark.parametrize(
    ("dtype", "held", "lost"),
    [
        ("uint8", [0, 255, 3.0, True], [-1, 256, 0.5, np.nan, np.inf, "a", [1], 2j]),
        ("int32", [-1, -(2**31)], [2**31, 0.5, 2**70]),
        ("bool", [0, 1, False], [2, 0.5]),
        ("float16", [0.1, -np.inf, np.nan, 65504], [1e5, 1e-10, 1j]),
        ("bfloat16", [0.1, 1e30, np.nan], [1e39]),
        ("float32", [0.1, 2**24], [1e39]),
        ("complex64", [1j, 0.1], [1e39]),
    ],
)
def test_padding_is_a_value_of_the_type(dtype, held, lost, users_checks):
    sequence = np.ones(1, dtype)
    for value in held:
        found = padded(sequence, np.ones(2, dtype), padding=value)[0, 1]
        wanted = np.asarray(value).astype(dtype)
        np.testing.assert_array_equal(found.astype(complex), wanted.astype(complex))
    for value in lost:
        with pytest.raises(ValueError, match=f"value of the sequences' type, {dtype}, got"):
            padded(sequence, sequence, padding=value)


@pytest.mark.parametrize(
    ("labels", "dtype", "filling"),
    [
        (np.array([True, True]), np.bool_, False),
        ([True, True], np.bool_, False),
        ([1, 2], np.int64, 0),
        ([1, 2.5], np.float64, 0),
        (["a", "longer"], "<U6", ""),
        (np.array(["a", "longer"], object), "<U6", ""),
        (np.ones((2, 3), np.uint8), np.uint8, 0),
        ([[1, 2], [3, 4]], np.int64, 0),
        (np.array(["2020-01-01"] * 2, "M8[D]"), "M8[D]", np.datetime64("1970-01-01")),
    ],
)
def test_labels_keep_their_type(labels, dtype, filling):
    for rows, read in ((labels, lambda rows: rows), ({"y": labels}, lambda rows: rows["y"])):
        found = read(pad_batch([[[1], [2]]], [1, -1], Shape(2, (1,)), rows).rows)
        assert found.dtype == dtype
        assert np.all(found[0] == np.asarray(labels)[1])
        assert np.all(found[1] == filling)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([1, "a"], TypeError, r"rows\[0\] is int64, rows\[1\] is <U1"),
        ([1, None], TypeError, r"rows\[1\] must hold numbers"),
        ([2**63, -1], TypeError, r"rows\[0\] is uint64, rows\[1\] is int64"),
        ([2**60 + 1, 0.5], ValueError, "is not exact in float64"),
        ([[1, 2], [3]], ValueError, r"\(2,\) at rows\[0\] and \(1,\) at rows\[1\]"),
        (np.ones(3), ValueError, r"one entry for each of the examples of sides, 2, got 3"),
        ({"y": np.ones(1)}, ValueError, r"rows\['y'\] must have one entry .*, 2, got 1"),
        (np.float32(1), ValueError, "got none"),
    ],
)
def test_labels_that_do_not_go_together_are_named(labels, error, message, users_checks):
    with pytest.raises(error, match=message):
        pad_batch([[[1], [2]]], [1, -1], Shape(2, (1,)), labels)


def test_a_stream_keeps_the_types_of_labels():
    grain = pytest.importorskip("grain")
    for labels, dtype in (([True, False], bool), (["a", "bcd"], "<U3"), ([1, 0.5], float)):
        parent = grain.MapDataset.source(labels).to_iter_dataset()
        batches = BucketBatches(parent, [Shape(3, (2,))], lambda x: (np.ones(1),), lambda x: x)
        (batch,) = batches
        assert batch.rows.dtype == dtype
        assert batch.rows[:2].tolist() == labels
        assert batch.examples.tolist() == [0, 1, -1]
    with pytest.raises(TypeError, match=r"rows\[1\] is <U1"):
        list(BucketBatches(
            grain.MapDataset.source([1, "a"]).to_iter_dataset(), [Shape(2, (2,))],
            lambda x: (np.ones(1),), lambda x: x,
        ))  # fmt: skip
    with pytest.raises(ValueError, match="tuple of 1 arrays as the shapes have, got ndarray"):
        list(BucketBatches(parent, [Shape(2, (2,))], lambda x: np.ones(1)))


def test_examples_are_there(users_checks):
    side = [[1], [2]]
    for examples, message in (
        ([0, 2], r"\[-1, 2\), got 2"),
        ([0, -2], "got -2"),
        ([0], r"\[batch\] = \[2\]"),
        ([0.0, 1.0], "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            pad_batch([side], examples, Shape(2, (1,)))
    with pytest.raises(ValueError, match=r"sides\[1\] must have one sequence .*, 2, got 1"):
        pad_batch([side, side[:1]], [0, 1], Shape(2, (1, 1)))


@pytest.mark.smoke
def test_rows_hold_what_is_packed(users_checks):
    sequences = [np.arange(4), np.array([7])]
    for rows, error, message in (
        ([[0, 1]], ValueError, r"rows\[0\] must have at most row_length = 4 steps, got 5"),
        ([[0], [2]], ValueError, r"rows must lie in \[0, 2\), got 2"),
        ([[-1]], ValueError, "got -1"),
        ([[0.0]], TypeError, "integers, got dtype float64"),
    ):
        with pytest.raises(error, match=message):
            pack_arrays(sequences, rows, 4)


def test_nothing_packs_to_nothing():
    assert pack([], 5) == []
    assert pack(np.zeros((0, 2)), (5, 4), max_sequences=2) == []
    for sequences, rows, count in (([], [], 0), ([[1]], [], 0), ([], [[]], 1)):
        found = pack_arrays(sequences, rows, 5)
        assert [array.shape for array in found] == [(count, 5)] * 3
        assert not any(array.any() for array in found)
