"""Packing: several short sequences in one row, told apart by segment ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxnets.kernels.checks import as_int, as_sizes
from jaxnets.sequences.arrays import Side
from jaxnets.sequences.lengths import as_lengths

GROUP = 2**14  # pairs that are packed together


def pack(
    lengths: Any, row_length: Any, *, max_sequences: SupportsIndex | None = None
) -> list[list[int]]:
    """Rows of examples by first-fit decreasing: the longest first, each in the first row with room.

    It takes at most 11/9 of the fewest possible rows, plus 6/9 (Dosa 2007). The first row is found
    in a tree of the largest room, so n examples take O(n log n).

    Pairs of source and target go into the first row that has room for both, in the order of the
    larger share of a row that they take; more than 16,384 are dealt into groups that are packed
    one by one. :func:`pack_arrays` makes each side's arrays from the same rows.

    Args:
      lengths: [examples], integers of at least 1, or [examples, 2] for pairs.
      row_length: steps of a row, one number or one a side.
      max_sequences: the most examples of a row; none by default.

    Raises:
      TypeError: lengths that are not integers.
      ValueError: a length below 1 or above ``row_length``: filter or split those first.

    Example:
      >>> pack([2, 7, 3, 5], 10)
      [[1, 2], [3, 0]]
      >>> pack([2, 7, 3, 5], 10, max_sequences=1)
      [[1], [3], [2], [0]]
      >>> pack([(2, 5), (7, 3), (3, 1)], (10, 6))
      [[0, 2], [1]]
    """
    lengths = as_lengths("lengths", lengths, 0)
    if lengths.ndim == 1:
        lengths = lengths[:, None] if len(lengths) else lengths.reshape(0, np.size(row_length))
    if lengths.ndim != 2:
        raise ValueError(
            f"lengths must be [examples] or [examples, sides], got shape {lengths.shape}"
        )
    count, sides = lengths.shape
    limits = as_sizes("row_length", row_length, sides)
    most = count if max_sequences is None else as_int("max_sequences", max_sequences, 1)
    for column, limit in zip(lengths.T, limits, strict=True):
        if (wrong := column[(column < 1) | (column > limit)]).size:
            raise ValueError(f"lengths must lie in [1, row_length] = [1, {limit}], got {wrong[0]}")
    shares = (lengths / np.array(limits)).max(1)
    order = np.argsort(-shares, kind="stable")
    if sides == 1:
        return _pack_single(lengths[:, 0].tolist(), order.tolist(), limits[0], most)
    # Each example is compared with all rows of its group, so groups are small; dealt in turn from
    # the sorted examples they are alike, and each packs about as well as the whole.
    groups = -(-count // GROUP)
    return [
        row
        for group in range(groups)
        for row in _pack_together(lengths, order[group::groups].tolist(), limits, most)
    ]


def _pack_single(lengths: list[int], order: list[int], limit: int, most: int) -> list[list[int]]:
    leaves = 1 << max(0, (len(order) - 1).bit_length())
    room = [limit] * (2 * leaves)  # a heap: node n has children 2n and 2n + 1
    rows: list[list[int]] = [[] for _ in order]
    for example in order:
        length, node = lengths[example], 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        row = rows[node - leaves]
        row.append(example)
        room[node] = room[node] - length if len(row) < most else 0
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


def _pack_together(
    lengths: np.ndarray, order: list[int], limits: tuple[int, ...], most: int
) -> list[list[int]]:
    room = np.tile(np.array(limits)[:, None], len(order))  # [sides, rows]
    rows: list[list[int]] = []
    for example in order:
        own = lengths[example]
        # The row after those in use has room for anything.
        number = int((room[:, : len(rows) + 1] >= own[:, None]).all(0).argmax())
        if number == len(rows):
            rows.append([])
        rows[number].append(example)
        room[:, number] -= own
        if len(rows[number]) == most:
            room[:, number] = 0
    return rows


class Packed(NamedTuple):
    """Rows of packed sequences.

    Attributes:
      sequences: [rows, row_length, ...] in the common type of the rows' sequences.
      segment_ids: [rows, row_length] int32: 1, 2, ... in a row; 0 is padding.
      positions: [rows, row_length] int32: the step within its own sequence.

    Example:
      >>> packed = pack_arrays([[5, 6], [7]], [[0, 1]], 4)
      >>> packed.sequences.tolist(), packed.segment_ids.tolist(), packed.positions.tolist()
      ([[5, 6, 7, 0]], [[1, 1, 2, 0]], [[0, 1, 0, 0]])
    """

    sequences: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray


def pack_arrays(sequences: Sequence[Any], rows: Sequence[Any], row_length: SupportsIndex) -> Packed:
    """The arrays of the rows that :func:`pack` found; of pairs, one call a side.

    Args:
      sequences: [time, ...] each, arrays or lists; those of the rows have a common type
        (``np.result_type``).
      rows: of each row its examples.
      row_length: steps of a row.

    Raises:
      TypeError: sequences without a common type that holds them all.
      ValueError: sequences that differ in the axes after time, an example that is not there, or a
        row that does not hold its sequences.

    Example:
      >>> import numpy as np
      >>> words = [np.array([5, 6]), np.array([7])]
      >>> packed = pack_arrays(words, pack([2, 1], 4), 4)
      >>> packed.sequences.tolist(), packed.segment_ids.tolist()
      ([[5, 6, 7, 0]], [[1, 1, 2, 0]])
    """
    time = as_int("row_length", row_length, 1)
    chosen = np.array([example for row in rows for example in row])
    if chosen.size and not np.issubdtype(chosen.dtype, np.integer):
        raise TypeError(f"rows must be lists of examples, integers, got dtype {chosen.dtype}")
    if (wrong := (chosen < 0) | (chosen >= len(sequences))).any():
        raise ValueError(f"rows must lie in [0, {len(sequences)}), got {chosen[wrong][0]}")
    side = Side("sequences", sequences, chosen.tolist())
    packed = np.zeros((len(rows), time, *side.features), side.dtype)
    segment_ids, positions = (np.zeros((len(rows), time), np.int32) for _ in range(2))
    steps = np.arange(time, dtype=np.int32)
    for number, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, 1):
            sequence = side[example]
            end = start + len(sequence)
            if end > time:
                raise ValueError(
                    f"rows[{number}] must have at most row_length = {time} steps, got {end} up to "
                    f"example {example}"
                )
            if end > start:
                packed[number, start:end] = sequence
                segment_ids[number, start:end] = segment
                positions[number, start:end] = steps[: end - start]
            start = end
    return Packed(packed, segment_ids, positions)
