"""Batches of padded arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnets.sequences.plan import Shape


class Batch(NamedTuple):
    """Padded sequences, one array a side (one, or source and target), and their lengths."""

    sequences: tuple[Any, ...]  # [batch, time, ...] each
    lengths: tuple[Any, ...]  # [batch] each; 0 for a row without an example
    rows: Any = ()  # a tree of arrays with one entry a row, [batch, ...]: labels, for example


def pad_batch(
    sides: Sequence[Sequence[np.ndarray]],
    examples: np.ndarray,
    shape: Shape,
    rows: Any = (),
    *,
    padding: float = 0,
) -> Batch:
    """The examples of one batch of a plan, padded on the right to its shape.

    Args:
      sides: for each side the sequences of all examples, [time, ...] each.
      examples: [batch] indices; -1 is a row of padding.
      shape: of the plan.
      rows: a tree of arrays [examples, ...] of which the examples' entries are taken.
      padding: the value beyond a sequence's end.

    Raises:
      ValueError: a sequence that is longer than the shape.

    Example:
      >>> import numpy as np
      >>> words = [np.array([5, 6, 7]), np.array([8])]
      >>> batch = pad_batch([words], np.array([1, 0, -1]), Shape(3, (4,)))
      >>> batch.sequences[0].tolist(), batch.lengths[0].tolist()
      ([[8, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]], [1, 3, 0])
    """
    if len(sides) != len(shape.times):
        raise ValueError(f"sides must be {len(shape.times)} as the shape has, got {len(sides)}")
    sequences, lengths = [], []
    for side, time in zip(sides, shape.times, strict=True):
        first = np.asarray(side[0])
        padded = np.full((shape.batch, time, *first.shape[1:]), padding, first.dtype)
        length = np.zeros(shape.batch, np.int32)
        for row, example in enumerate(examples):
            if example >= 0:
                sequence = side[example]
                if len(sequence) > time:
                    raise ValueError(
                        f"example {example} must have at most {time} steps, got {len(sequence)}"
                    )
                padded[row, : len(sequence)] = sequence
                length[row] = len(sequence)
        sequences.append(padded)
        lengths.append(length)
    present = np.asarray(examples) >= 0

    def take(array):
        entries = np.asarray(array)[examples]
        return np.where(present.reshape(-1, *(1,) * (entries.ndim - 1)), entries, 0)

    return Batch(tuple(sequences), tuple(lengths), jax.tree.map(take, rows))
