"""A plan of batches: which examples go together, in which shapes, known before anything runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np


class Shape(NamedTuple):
    """The shape of one bucket's batches: a program is compiled for each."""

    batch: int
    times: tuple[int, ...]  # of the sequence; of source and target for pairs

    @property
    def steps(self) -> int:
        """Steps of a batch, padding included."""
        return self.batch * sum(self.times)


@dataclass(frozen=True)
class Plan:
    """Every example in a bucket, or dropped with a reason; see :func:`bucket_plan`.

    Attributes:
      shapes: of the buckets that hold examples, in rising order of steps a row.
      lengths: [examples, sides], one side, or two for pairs.
      buckets: [examples], the index into ``shapes``, or -1: dropped.
      processes: how many share each batch.
      seed: of the shuffling.
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
        return -(-counts // np.array([shape.batch for shape in self.shapes]))

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
        return 1 - float(self.lengths[self.buckets >= 0].sum()) / self.cost

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

    def order(self, epoch: int) -> list[tuple[Shape, np.ndarray]]:
        """All batches of an epoch: a shape and [batch] examples, -1 for a row without one.

        The order depends on ``seed`` and ``epoch`` alone: examples are shuffled within their bucket
        and batches among each other.
        """
        rng = np.random.default_rng((self.seed, epoch))
        batches = []
        for index, shape in enumerate(self.shapes):
            examples = rng.permutation(np.flatnonzero(self.buckets == index))
            missing = -len(examples) % shape.batch
            examples = np.concatenate([examples, np.full(missing, -1)])
            batches += [(shape, rows) for rows in examples.reshape(-1, shape.batch)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def epoch(
        self, epoch: int, *, start: int = 0, process: int = 0
    ) -> Iterator[tuple[Shape, np.ndarray]]:
        """The batches of an epoch from the ``start``-th on, for one process.

        Every process sees the same shapes in the same order, and its own ``1 / processes`` of the
        rows; resuming in the middle of an epoch is naming the batch to start from.
        """
        if not 0 <= process < self.processes:
            raise ValueError(f"process must lie in [0, {self.processes}), got {process}")
        if not 0 <= start <= self.batches:
            raise ValueError(f"start must lie in [0, {self.batches}], got {start}")
        for shape, examples in self.order(epoch)[start:]:
            own = examples[process :: self.processes]
            yield Shape(len(own), shape.times), own


def bucket_plan(
    lengths: Sequence[int] | Sequence[Sequence[int]] | np.ndarray,
    boundaries: Sequence[int] | Sequence[tuple[int, ...]],
    *,
    batch: int | None = None,
    token_budget: int | None = None,
    processes: int = 1,
    seed: int = 0,
) -> Plan:
    """Puts each example into the cheapest bucket that holds it.

    Args:
      lengths: [examples], or [examples, 2] for pairs of source and target.
      boundaries: the longest length of each bucket; pairs of them for pairs.
      batch: rows of every batch; or
      token_budget: steps of a batch, padding included: long buckets have fewer rows.
      processes: that share each batch; its rows are rounded down to a multiple.
      seed: of the shuffling.

    Returns:
      A :class:`Plan`. An empty example, and one longer than every bucket, is dropped, and
      ``plan.dropped`` says so.

    Raises:
      ValueError: not exactly one of ``batch`` and ``token_budget``, boundaries that do not fit the
        lengths, a batch that the processes cannot share, or no example that fits.

    Example:
      >>> plan = bucket_plan([2, 3, 9, 10, 40], [3, 10], token_budget=20)
      >>> print(plan)
      5 examples, 1 dropped; 2 batches, 2 compiles, 38 steps an epoch, 36.8% of them padding
        time 3, batch 6: 2 in 1 batches
        time 10, batch 2: 2 in 1 batches
      >>> plan.dropped
      {4: 'length (40,) fits no bucket up to (10,)'}
    """
    lengths = np.asarray(lengths)
    lengths = lengths[:, None] if lengths.ndim == 1 else lengths
    if lengths.ndim != 2 or not np.issubdtype(lengths.dtype, np.integer):
        raise ValueError(
            "lengths must be integers, [examples] or [examples, sides], got "
            f"{lengths.dtype} of shape {lengths.shape}"
        )
    bounds = np.array(boundaries, dtype=np.int64).reshape(len(boundaries), -1)
    if not len(bounds) or bounds.shape[1] != lengths.shape[1] or bounds.min() < 1:
        raise ValueError(
            f"boundaries must hold {lengths.shape[1]} positive lengths a bucket, got {boundaries}"
        )
    if (batch is None) == (token_budget is None):
        raise ValueError(f"give batch or token_budget, got {batch} and {token_budget}")
    bounds = bounds[np.lexsort((*bounds.T[::-1], bounds.sum(1)))]
    buckets = np.full(len(lengths), -1)
    for index in reversed(range(len(bounds))):
        buckets[(lengths <= bounds[index]).all(1) & lengths.any(1)] = index
    used, buckets_of_used = np.unique(buckets[buckets >= 0], return_inverse=True)
    if not len(used):
        raise ValueError(f"boundaries must hold at least one example, got {boundaries}")
    buckets[buckets >= 0] = buckets_of_used
    shapes = []
    for times in bounds[used]:
        rows = batch if batch is not None else (token_budget or 0) // int(times.sum())
        rows -= rows % processes
        if rows < 1:
            raise ValueError(
                f"{'batch' if batch is not None else 'token_budget'} must give each of {processes} "
                f"processes a row of {tuple(map(int, times))} steps, got {batch or token_budget}"
            )
        shapes.append(Shape(rows, tuple(map(int, times))))
    return Plan(tuple(shapes), lengths, buckets, processes, seed)
