"""Packing: several short sequences in one row, told apart by segment ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def pack(lengths: Sequence[int] | np.ndarray, row_length: int) -> list[list[int]]:
    """Rows of examples by first-fit decreasing: the longest first, each in the first row with room.

    It takes at most 11/9 of the fewest possible rows, plus 6/9 (Dosa 2007). The first row is found
    in a tree of the largest room, so n examples take O(n log n).

    Args:
      lengths: [examples], integers of at least 1.
      row_length: steps of a row.

    Raises:
      ValueError: a length below 1 or above ``row_length``: filter or split those first.

    Example:
      >>> pack([2, 7, 3, 5], 10)
      [[1, 2], [3, 0]]
    """
    lengths = np.asarray(lengths)
    if len(lengths) and (lengths.min() < 1 or lengths.max() > row_length):
        wrong = lengths.min() if lengths.min() < 1 else lengths.max()
        raise ValueError(f"lengths must lie in [1, row_length] = [1, {row_length}], got {wrong}")
    leaves = 1 << max(0, int(len(lengths) - 1).bit_length())
    room = [row_length] * (2 * leaves)  # a heap: node n has children 2n and 2n + 1
    rows: list[list[int]] = [[] for _ in range(len(lengths))]
    for example in np.argsort(-lengths, kind="stable").tolist():
        length, node = int(lengths[example]), 1
        while node < leaves:
            node = 2 * node if room[2 * node] >= length else 2 * node + 1
        rows[node - leaves].append(example)
        room[node] -= length
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
    return [row for row in rows if row]


class Packed(NamedTuple):
    """Rows of packed sequences."""

    sequences: np.ndarray  # [rows, row_length, ...]
    segment_ids: np.ndarray  # [rows, row_length] int32: 1, 2, ... in a row; 0 is padding
    positions: np.ndarray  # [rows, row_length] int32: the step within its own sequence


def pack_arrays(
    sequences: Sequence[np.ndarray], rows: Sequence[Sequence[int]], row_length: int
) -> Packed:
    """The arrays of the rows that :func:`pack` found.

    Example:
      >>> import numpy as np
      >>> words = [np.array([5, 6]), np.array([7])]
      >>> packed = pack_arrays(words, pack([2, 1], 4), 4)
      >>> packed.sequences.tolist(), packed.segment_ids.tolist()
      ([[5, 6, 7, 0]], [[1, 1, 2, 0]])
    """
    first = np.asarray(sequences[0])
    packed = np.zeros((len(rows), row_length, *first.shape[1:]), first.dtype)
    segment_ids, positions = (np.zeros((len(rows), row_length), np.int32) for _ in range(2))
    for number, row in enumerate(rows):
        start = 0
        for segment, example in enumerate(row, 1):
            end = start + len(sequences[example])
            packed[number, start:end] = sequences[example]
            segment_ids[number, start:end] = segment
            positions[number, start:end] = np.arange(end - start)
            start = end
    return Packed(packed, segment_ids, positions)
