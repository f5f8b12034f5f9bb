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

from jaxnets.sequences.padding import Batch, pad_batch
from jaxnets.sequences.plan import Shape


class BucketBatches(grain.IterDataset):
    """Batches of the stream's elements, each padded to the cheapest shape that holds it.

    A batch comes out when its bucket is full; at the stream's end the others follow, with rows of
    length 0. Nothing is dropped: an element that fits no shape is an error. The iterator's state
    is small and restores in the middle of a stream: it names the elements that wait in buckets,
    which are read again.

    Args:
      parent: a ``grain.IterDataset``.
      shapes: of the buckets.
      sides: the sequences of an element, a tuple of [time, ...] arrays, one a side.
      rows: a tree of what else goes into a batch, one entry a row (labels).

    Example:
      >>> import grain
      >>> import numpy as np
      >>> words = grain.MapDataset.source([np.ones(n) for n in (2, 7, 3)]).to_iter_dataset()
      >>> shapes = [Shape(2, (4,)), Shape(1, (8,))]
      >>> [batch.sequences[0].shape for batch in BucketBatches(words, shapes, lambda x: (x,))]
      [(1, 8), (2, 4)]
    """

    def __init__(
        self,
        parent: grain.IterDataset,
        shapes: Sequence[Shape],
        sides: Callable[[Any], tuple[np.ndarray, ...]],
        rows: Callable[[Any], Any] = lambda element: (),
    ):
        super().__init__(parent)
        self._shapes = tuple(sorted(shapes, key=lambda shape: sum(shape.times)))
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
        times = tuple(len(side) for side in self._sides(element))
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
        examples = np.full(shape.batch, -1)
        examples[: len(elements)] = np.arange(len(elements))
        sides = zip(*map(self._sides, elements), strict=True)
        rows = jax.tree.map(lambda *rows: np.stack(rows), *map(self._rows, elements))
        return pad_batch([list(side) for side in sides], examples, shape, rows)

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
