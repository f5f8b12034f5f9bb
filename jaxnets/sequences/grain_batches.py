"""Buckets over a stream, as a Grain transformation: for data whose lengths no plan can know before.

Where they are known, ``grain.MapDataset.source(BatchSource(plan, ...))`` is the better way: it
shuffles within buckets and tells beforehand what it costs. This module alone imports ``grain``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from jaxnets.sequences.arrays import stack
from jaxnets.sequences.padding import Batch, pad_batch
from jaxnets.sequences.plan import as_shape


class BucketBatches(grain.IterDataset):
    """Batches of the stream's elements, each padded to the cheapest shape that holds it.

    A batch comes out when its bucket is full; at the stream's end the others follow, with rows of
    length 0. Nothing is dropped: an element that fits no shape is an error. The iterator's state
    is small and restores in the middle of a stream: it names the elements that wait in buckets,
    which are read again.

    Args:
      parent: a ``grain.IterDataset``.
      shapes: of the buckets.
      sides: the sequences of an element, a tuple of [time, ...] arrays, one a side. A batch has
        the common type of its own: a stream whose elements differ in type compiles anew.
      rows: a tree of what else goes into a batch, one entry a row (labels), each kept in its type.

    ``batch.examples`` are the elements' numbers in the stream.

    Raises:
      TypeError: sequences or labels of a batch without a common type that holds them all.
      ValueError: while reading, an element that fits no shape or has other sides than the shapes,
        or sequences that differ in the axes after time.

    Example:
      >>> import grain
      >>> import numpy as np
      >>> words = grain.MapDataset.source([np.ones(n) for n in (2, 7, 3)]).to_iter_dataset()
      >>> from jaxnets.sequences import Shape
      >>> shapes = [Shape(2, (4,)), Shape(1, (8,))]
      >>> [batch.sequences[0].shape for batch in BucketBatches(words, shapes, lambda x: (x,))]
      [(1, 8), (2, 4)]
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        shapes: Sequence[Any],
        sides: Callable[[Any], tuple[np.ndarray, ...]],
        rows: Callable[[Any], Any] = lambda element: (),
    ):
        super().__init__(parent)
        self._shapes = tuple(sorted(map(as_shape, shapes), key=lambda shape: sum(shape.times)))
        self._sides, self._rows = sides, rows

    def __iter__(self) -> grain.DatasetIterator:
        return _Iterator(self._parent.__iter__(), self._shapes, self._sides, self._rows)


class _Iterator(grain.DatasetIterator):
    def __init__(self, parent, shapes, sides, rows):
        super().__init__(parent)
        self._shapes, self._sides, self._rows = shapes, sides, rows
        self._clear()

    def _clear(self):
        self._next = 0  # the number of the next element to read
        self._waiting: dict[int, tuple[int, Any, Any]] = {}  # number: bucket, element, state before

    def __next__(self) -> Batch:
        while True:
            try:
                bucket = self._waiting[self._read()][0]
            except StopIteration:
                if not self._waiting:
                    raise
                bucket = min(bucket for bucket, *_ in self._waiting.values())
                return self._batch(bucket)
            waiting = sum(bucket == other for other, *_ in self._waiting.values())
            if waiting == self._shapes[bucket].batch:
                return self._batch(bucket)

    def _read(self) -> int:
        """Puts the next element into its bucket, and returns its number."""
        before = self._parent.get_state()
        element = next(self._parent)
        sides = self._sides(element)
        if not isinstance(sides, tuple | list) or len(sides) != len(self._shapes[0].times):
            got = len(sides) if isinstance(sides, tuple | list) else type(sides).__name__
            raise ValueError(
                f"sides must return a tuple of {len(self._shapes[0].times)} arrays as the shapes "
                f"have, got {got}"
            )
        times = tuple(map(len, sides))
        for bucket, shape in enumerate(self._shapes):
            if all(time <= limit for time, limit in zip(times, shape.times, strict=True)):
                number = self._next
                self._waiting[number] = (bucket, element, before)
                self._next += 1
                return number
        raise ValueError(
            f"elements must fit one of the shapes {[tuple(shape) for shape in self._shapes]}, got "
            f"one of {times} steps: filter or split it before"
        )

    def _batch(self, bucket: int) -> Batch:
        numbers = [n for n, (other, *_) in self._waiting.items() if other == bucket]
        elements = [self._waiting.pop(number)[1] for number in numbers]
        shape = self._shapes[bucket]
        order = np.full(shape.batch, -1)
        order[: len(elements)] = np.arange(len(elements))
        sides = zip(*map(self._sides, elements), strict=True)
        rows = jax.tree.map(lambda *rows: stack("rows", rows), *map(self._rows, elements))
        examples = np.full(shape.batch, -1, np.int32)
        examples[: len(elements)] = numbers
        return pad_batch([list(s) for s in sides], order, shape, rows)._replace(examples=examples)

    def get_state(self) -> dict[str, Any]:
        """Where to read from, and which of the elements from there on still wait."""
        oldest = min(self._waiting, default=self._next)
        state = self._waiting[oldest][2] if self._waiting else self._parent.get_state()
        return {
            "parent": state, "first": oldest, "next": self._next, "waiting": list(self._waiting),
        }  # fmt: skip

    def set_state(self, state: dict[str, Any]) -> None:
        """Reads again what waited."""
        self._parent.set_state(state["parent"])
        self._clear()
        self._next = state["first"]
        while self._next < state["next"]:
            number = self._read()
            if number not in state["waiting"]:
                del self._waiting[number]
