"""A plan of batches: which examples go together, in which shapes, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from jaxnets.kernels.checks import as_int


class Shape(NamedTuple):
    """The shape of one bucket's batches: a program is compiled for each.

    Attributes:
      batch: rows.
      times: steps of the sequence; of source and target for pairs.

    Example:
      >>> Shape(8, (20, 25)).steps
      360
    """

    batch: int
    times: tuple[int, ...]

    @property
    def steps(self) -> int:
        """Steps of a batch, padding included."""
        return self.batch * sum(self.times)


def as_shape(shape: Any) -> Shape:
    """``shape``, a pair of rows and one time or one a side, in Python ints."""
    batch, times = shape
    each = times if isinstance(times, Iterable) else (times,)
    return Shape(as_int("batch", batch, 1), tuple(as_int("times", time, 0) for time in each))


@dataclass(frozen=True, eq=False)
class Plan:
    """Every example in a bucket, or dropped with a reason; see :func:`bucket_plan`.

    Attributes:
      shapes: of the buckets that hold examples, in rising order of steps a row.
      lengths: [examples, sides], one side, or two for pairs; read-only.
      buckets: [examples], the index into ``shapes``, or -1: dropped; read-only.
      processes: how many share each batch.
      seed: of the shuffling.

    Example:
      >>> from jaxnets.sequences import bucket_plan
      >>> plan = bucket_plan([2, 3, 9], [3, 9], batch=2)
      >>> plan.batches, plan.compiles, plan.cost, round(plan.padding_share, 3)
      (2, 2, 24, 0.417)
      >>> [(shape.times, len(examples)) for shape, examples in sorted(plan.epoch(0))]
      [((3,), 2), ((9,), 2)]
    """

    shapes: tuple[Shape, ...]
    lengths: np.ndarray
    buckets: np.ndarray
    processes: int
    seed: int

    @cached_property
    def dropped(self) -> dict[int, str]:
        """The examples that are in no bucket, each with the reason."""
        longest = tuple(map(max, zip(*(shape.times for shape in self.shapes), strict=True)))
        return {
            int(i): "empty"
            if not self.lengths[i].any()
            else f"length {tuple(map(int, self.lengths[i]))} fits no bucket up to {longest}"
            for i in np.flatnonzero(self.buckets < 0)
        }

    @cached_property
    def _batches_of(self) -> np.ndarray:
        counts = np.bincount(self.buckets[self.buckets >= 0], minlength=len(self.shapes))
        return -(-counts // np.array([shape.batch for shape in self.shapes], dtype=np.int64))

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return int(self._batches_of.sum())

    @property
    def compiles(self) -> int:
        """Programs that a step of this plan compiles."""
        return len(self.shapes)

    @property
    def cost(self) -> int:
        """Steps of an epoch, padding included."""
        steps = [shape.steps for shape in self.shapes]
        return int(self._batches_of @ np.array(steps, dtype=np.int64))

    @property
    def padding_share(self) -> float:
        """The share of an epoch's steps that are padding, rows without an example included."""
        return 1 - float(self.lengths[self.buckets >= 0].sum()) / self.cost if self.cost else 0.0

    def __str__(self) -> str:
        """What the plan costs, in a few lines."""
        lines = [
            f"{len(self.buckets):,} examples, {len(self.dropped):,} dropped; "
            f"{self.batches:,} batches, {self.compiles} compiles, {self.cost:,} steps an epoch, "
            f"{self.padding_share:.1%} of them padding"
        ]
        counts = np.bincount(self.buckets[self.buckets >= 0], minlength=len(self.shapes))
        for shape, count, batches in zip(self.shapes, counts, self._batches_of, strict=True):
            times = " x ".join(map(str, shape.times))
            lines.append(f"  time {times}, batch {shape.batch}: {count:,} in {batches:,} batches")
        return "\n".join(lines)

    def order(self, epoch: SupportsIndex) -> list[tuple[Shape, np.ndarray]]:
        """All batches of an epoch: a shape and [batch] examples, -1 for a row without one.

        The order depends on ``seed`` and ``epoch`` alone: examples are shuffled within their bucket
        and batches among each other.
        """
        order = Order(self, epoch)
        return [order[number] for number in range(len(order))]

    def check_process(self, process: SupportsIndex) -> int:
        """``process`` as an int, a ``ValueError`` where the plan has none of that number."""
        number = as_int("process", process)
        if not 0 <= number < self.processes:
            raise ValueError(f"process must lie in [0, {self.processes}), got {number}")
        return number

    def epoch(
        self, epoch: SupportsIndex, *, start: SupportsIndex = 0, process: SupportsIndex = 0
    ) -> Iterator[tuple[Shape, np.ndarray]]:
        """The batches of an epoch from the ``start``-th on, for one process.

        Every process sees the same shapes in the same order, and its own ``1 / processes`` of the
        rows; resuming in the middle of an epoch is naming the batch to start from.
        """
        first, begin = self.check_process(process), as_int("start", start)
        if not 0 <= begin <= self.batches:
            raise ValueError(f"start must lie in [0, {self.batches}], got {begin}")
        order = Order(self, epoch)
        for number in range(begin, len(order)):
            shape, examples = order[number]
            own = examples[first :: self.processes]
            yield Shape(len(own), shape.times), own


class Order:
    """The batches of one epoch by number: a few arrays, not an object a batch."""

    def __init__(self, plan: Plan, epoch: SupportsIndex):
        rng = np.random.default_rng((plan.seed, as_int("epoch", epoch, 0)))
        self._shapes = plan.shapes
        self._examples = []  # of each bucket, [batches, batch]
        for index, shape in enumerate(plan.shapes):
            examples = rng.permutation(np.flatnonzero(plan.buckets == index))
            missing = -len(examples) % shape.batch
            examples = np.concatenate([examples, np.full(missing, -1)])
            self._examples.append(examples.reshape(-1, shape.batch))
        self._starts = np.cumsum([0, *map(len, self._examples)])
        self._numbers = rng.permutation(self._starts[-1])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, number: int) -> tuple[Shape, np.ndarray]:
        batch = self._numbers[number]
        bucket = int(np.searchsorted(self._starts, batch, side="right")) - 1
        return self._shapes[bucket], self._examples[bucket][batch - self._starts[bucket]]
