"""Batches of padded arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxnets.sequences.arrays import Side, as_padding, as_rows
from jaxnets.sequences.plan import Shape, as_shape


class Batch(NamedTuple):
    """Padded sequences, one array a side (one, or source and target), and their lengths.

    Attributes:
      sequences: [batch, time, ...] each.
      lengths: [batch] each, int32; 0 for a row without an example.
      rows: a tree of arrays with one entry a row, [batch, ...]: labels, for example.
      examples: [batch] int32: which examples these are; -1 for a row without one.

    Example:
      >>> from jaxnets.sequences import Shape, pad_batch
      >>> batch = pad_batch([[[5, 6], [7]]], [1, -1], Shape(2, (3,)), rows=[10, 20])
      >>> batch.sequences[0].tolist(), batch.lengths[0].tolist(), batch.rows.tolist()
      ([[7, 0, 0], [0, 0, 0]], [1, 0], [20, 0])
    """

    sequences: tuple[Any, ...]
    lengths: tuple[Any, ...]
    rows: Any = ()
    examples: Any = None


def pad_batch(
    sides: Sequence[Any],
    examples: Any,
    shape: Any,
    rows: Any = (),
    *,
    padding: Any = 0,
) -> Batch:
    """The examples of one batch of a plan, padded on the right to its shape.

    Args:
      sides: for each side the sequences of all examples, [time, ...] each, arrays or lists.
      examples: [batch] indices; -1 is a row of padding.
      shape: of the plan.
      rows: a tree of arrays [examples, ...] of which the examples' entries are taken, each in its
        own type; a list of labels is one array. A row of padding has 0, False or "".
      padding: the value beyond a sequence's end.

    Returns:
      A :class:`Batch` of NumPy arrays. A side's dtype is the common type of the batch's sequences
      (``np.result_type``; those without a step do not count).

    Raises:
      TypeError: sequences or labels without a common type that holds them all.
      ValueError: a sequence that is longer than the shape, or has other axes after time than the
        others; an integer that the common float type does not hold; sides and rows of different
        numbers of examples; an example that is not there; a padding that the type does not hold.

    Example:
      >>> import numpy as np
      >>> words = [np.array([5, 6, 7]), np.array([8])]
      >>> batch = pad_batch([words], np.array([1, 0, -1]), Shape(3, (4,)))
      >>> batch.sequences[0].tolist(), batch.lengths[0].tolist(), batch.examples.tolist()
      ([[8, 0, 0, 0], [5, 6, 7, 0], [0, 0, 0, 0]], [1, 3, 0], [1, 0, -1])
    """
    shape = as_shape(shape)
    if len(sides) != len(shape.times):
        raise ValueError(f"sides must be {len(shape.times)} as the shape has, got {len(sides)}")
    count = len(sides[0])
    examples = np.asarray(examples)
    if examples.shape != (shape.batch,) or not np.issubdtype(examples.dtype, np.integer):
        raise ValueError(
            f"examples must be integers [batch] = [{shape.batch}], got {examples.dtype} of shape "
            f"{examples.shape}"
        )
    if (wrong := (examples < -1) | (examples >= count)).any():
        raise ValueError(f"examples must lie in [-1, {count}), got {examples[wrong][0]}")
    check_counts(sides, count, "the examples of sides[0]")
    present = examples[examples >= 0].tolist()
    read = [Side(f"sides[{number}]", side, present) for number, side in enumerate(sides)]
    return assemble(read, examples, shape, as_rows(rows, count, "the examples of sides"), padding)


def check_counts(sides: Sequence[Any], count: int, of: str) -> None:
    """Raise ``ValueError`` where a side has another number of sequences than ``count``."""
    for number, side in enumerate(sides):
        if len(side) != count:
            raise ValueError(
                f"sides[{number}] must have one sequence for each of {of}, {count}, got {len(side)}"
            )


def assemble(
    sides: Sequence[Side], examples: np.ndarray, shape: Shape, rows: Any, padding: Any = 0
) -> Batch:
    """:func:`pad_batch` of sides and rows that are checked."""
    sequences, lengths = [], []
    for side, time in zip(sides, shape.times, strict=True):
        padded = np.full(
            (shape.batch, time, *side.features), as_padding(padding, side.dtype), side.dtype
        )
        length = np.zeros(shape.batch, np.int32)
        for row, example in enumerate(examples.tolist()):
            if example >= 0 and len(sequence := side[example]):
                if len(sequence) > time:
                    raise ValueError(
                        f"example {example} must have at most {time} steps, got {len(sequence)}"
                    )
                padded[row, : len(sequence)] = sequence
                length[row] = len(sequence)
        sequences.append(padded)
        lengths.append(length)
    present = examples >= 0

    def take(array):
        taken = np.zeros((shape.batch, *array.shape[1:]), array.dtype)
        taken[present] = array[examples[present]]
        return taken

    return Batch(
        tuple(sequences), tuple(lengths), jax.tree.map(take, rows), examples.astype(np.int32)
    )
