"""Packing: several short sequences in one row, told apart by segment ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxnets.kernels.checks import as_int, as_sizes
from jaxnets.sequences.arrays import Side, as_array
from jaxnets.sequences.lengths import as_lengths


def pack(
    lengths: Any, row_length: Any, *, max_sequences: SupportsIndex | None = None
) -> list[list[int]]:
    """Rows of examples by first-fit decreasing: the longest first, each in the first row with room.

    It takes at most 11/9 of the fewest possible rows, plus 6/9 (Dosa 2007). The first row is found
    in a tree of the largest room, so n examples take O(n log n). Pairs of source and target go
    into a row that has room for both, in the order of the larger share of a row that they take;
    :func:`pack_arrays` makes each side's arrays from the same rows.

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
    lengths = lengths[:, None] if lengths.ndim == 1 else lengths
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
    leaves = 1 << max(0, (count - 1).bit_length())
    # A heap a side: node n, with the largest room below it, has children 2n and 2n + 1.
    rooms = [[limit] * (2 * leaves) for limit in limits]
    rows: list[list[int]] = [[] for _ in range(count)]
    shares = (lengths / np.array(limits)).max(1)
    for example in np.argsort(-shares, kind="stable").tolist():
        own = lengths[example].tolist()
        node = _first_with_room(rooms, own, leaves)
        row = rows[node - leaves]
        row.append(example)
        for room, length in zip(rooms, own, strict=True):
            room[node] = room[node] - length if len(row) < most else 0
        while node > 1:
            node //= 2
            for room in rooms:
                room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


def _first_with_room(rooms: list[list[int]], lengths: list[int], leaves: int) -> int:
    """The first leaf with room on every side; a side's largest may be another leaf's: go back."""
    waiting = [1]
    while True:
        node = waiting.pop()
        if all(room[node] >= length for room, length in zip(rooms, lengths, strict=True)):
            if node >= leaves:
                return node
            waiting += (2 * node + 1, 2 * node)


class Packed(NamedTuple):
    """Rows of packed sequences."""

    sequences: np.ndarray  # [rows, row_length, ...] in the common type of the rows' sequences
    segment_ids: np.ndarray  # [rows, row_length] int32: 1, 2, ... in a row; 0 is padding
    positions: np.ndarray  # [rows, row_length] int32: the step within its own sequence


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
    chosen = [_examples(f"rows[{number}]", row, len(sequences)) for number, row in enumerate(rows)]
    side = Side("sequences", sequences, [example for row in chosen for example in row])
    packed = np.zeros((len(chosen), time, *side.features), side.dtype)
    segment_ids, positions = (np.zeros((len(chosen), time), np.int32) for _ in range(2))
    for number, row in enumerate(chosen):
        start = 0
        for segment, example in enumerate(row, 1):
            sequence = side[example]
            end = start + len(sequence)
            if end > time:
                raise ValueError(
                    f"rows[{number}] must have at most row_length = {time} steps, got {end} up to "
                    f"example {example}"
                )
            if len(sequence):
                packed[number, start:end] = sequence
            segment_ids[number, start:end] = segment
            positions[number, start:end] = np.arange(end - start)
            start = end
    return Packed(packed, segment_ids, positions)


def _examples(name: str, row: Any, count: int) -> list[int]:
    examples = as_array(name, row)
    if examples.ndim != 1 or (len(examples) and not np.issubdtype(examples.dtype, np.integer)):
        raise TypeError(f"{name} must be a list of examples, got {row!r}")
    if (wrong := (examples < 0) | (examples >= count)).any():
        raise ValueError(f"{name} must lie in [0, {count}), got {examples[wrong][0]}")
    return examples.tolist()
