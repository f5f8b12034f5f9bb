"""Which bucket each example goes into, and how many rows a bucket's batches have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import numpy as np

from jaxnets.kernels.checks import as_int, as_sizes
from jaxnets.sequences.lengths import as_lengths
from jaxnets.sequences.plan import Plan, Shape

Times = tuple[int, ...]


def bucket_plan(
    lengths: Any,
    boundaries: Any = None,
    *,
    batch: SupportsIndex | None = None,
    token_budget: SupportsIndex | None = None,
    batch_sizes: Sequence[SupportsIndex] | np.ndarray | None = None,
    like: Plan | None = None,
    longer: str | None = None,
    processes: SupportsIndex | None = None,
    seed: SupportsIndex = 0,
) -> Plan:
    """Puts each example into the cheapest bucket that holds it.

    Args:
      lengths: [examples] integers, or [examples, 2] for pairs of source and target.
      boundaries: the longest length of each bucket, in any order; pairs of them for pairs.
      batch: rows of every batch; or
      token_budget: steps of a batch, padding included: long buckets have fewer rows; or
      batch_sizes: rows of each bucket's batches, in the order of ``boundaries``.
      like: in place of all these, a plan whose buckets and rows are taken: what is compiled for a
        training set also runs a held-out one.
      longer: what becomes of an example longer than every bucket. "raise": an error. "new bucket":
        one more bucket that holds them all; with ``like`` or ``batch_sizes`` its batches have at
        most as many steps as the others', and at least a row a process. "drop": a note in
        ``plan.dropped``. By default "raise" with ``like``, "drop" with ``boundaries``.
      processes: that share each batch; its rows are rounded down to a multiple. By default 1, or
        those of ``like``.
      seed: of the shuffling, at least 0.

    Returns:
      A :class:`Plan`; one without batches for no lengths. An empty example is dropped, and
      ``plan.dropped`` says so.

    Raises:
      TypeError: lengths, boundaries or sizes that are not integers.
      ValueError: not exactly one of ``batch``, ``token_budget``, ``batch_sizes`` and ``like``; one
        of them out of range; boundaries that do not fit the lengths; a batch that the processes
        cannot share; no example that fits; one that is too long, see ``longer``.

    Example:
      >>> plan = bucket_plan([2, 3, 9, 10, 40], [3, 10], token_budget=20)
      >>> print(plan)
      5 examples, 1 dropped; 2 batches, 2 compiles, 38 steps an epoch, 36.8% of them padding
        time 3, batch 6: 2 in 1 batches
        time 10, batch 2: 2 in 1 batches
      >>> plan.dropped
      {4: 'length (40,) fits no bucket up to (10,)'}
      >>> bucket_plan([2, 12], like=plan, longer="new bucket").shapes
      (Shape(batch=6, times=(3,)), Shape(batch=1, times=(12,)))
    """
    seed = as_int("seed", seed, 0)
    if longer not in (None, "raise", "new bucket", "drop"):
        raise ValueError(f'longer must be "raise", "new bucket" or "drop", got {longer!r}')
    if like is not None:
        if any(value is not None for value in (boundaries, batch, token_budget, batch_sizes)):
            raise ValueError("give like alone, or boundaries and the size of batches, not both")
        boundaries = np.array([s.times for s in like.shapes]).reshape(-1, like.lengths.shape[1])
        batch_sizes = [shape.batch for shape in like.shapes]
        longer = longer or "raise"
        processes = like.processes if processes is None else processes
    count = as_int("processes", 1 if processes is None else processes, 1)
    if like is not None and (uneven := [s.batch for s in like.shapes if s.batch % count]):
        raise ValueError(
            f"processes must divide the rows of like's batches, {uneven[0]}, got {count}"
        )
    lengths, bounds = _sides(lengths, boundaries, none=like is not None)
    rows_of = _rows(bounds, batch, token_budget, batch_sizes, count)
    buckets, bounds = _cheapest(lengths, bounds)
    beyond = (buckets < 0) & lengths.any(1)
    if beyond.any():
        example = int(np.argmax(beyond))
        if longer == "raise":
            raise ValueError(
                f"lengths must fit a bucket up to {tuple(bounds.max(0, initial=0).tolist())}, got "
                f"{tuple(lengths[example].tolist())} at example {example} ({beyond.sum()} such): "
                'give longer="new bucket" or "drop"'
            )
        if longer == "new bucket":
            buckets, bounds = _cheapest(lengths, np.vstack([bounds, lengths[beyond].max(0)]))
        elif longer is None and not (buckets >= 0).any():
            raise ValueError(f"boundaries must hold at least one example, got {boundaries}")
    used, buckets[buckets >= 0] = np.unique(buckets[buckets >= 0], return_inverse=True)
    buckets.flags.writeable = False
    times = [tuple(each) for each in bounds[used].tolist()]
    return Plan(tuple(Shape(rows_of(t), t) for t in times), lengths, buckets, count, seed)


def _sides(lengths: Any, boundaries: Any, *, none: bool) -> tuple[np.ndarray, np.ndarray]:
    """Lengths [examples, sides] and boundaries [buckets, sides], which may be ``none``."""
    lengths, bounds = as_lengths("lengths", lengths, 0), as_lengths("boundaries", boundaries, 1)
    bounds = bounds[:, None] if bounds.ndim == 1 else np.atleast_1d(bounds)
    if lengths.ndim == 1:
        lengths = lengths[:, None] if len(lengths) else lengths.reshape(0, bounds.shape[-1])
    if lengths.ndim != 2:
        raise ValueError(
            f"lengths must be [examples] or [examples, sides], got shape {lengths.shape}"
        )
    if bounds.ndim != 2 or bounds.shape[1] != lengths.shape[1] or not (len(bounds) or none):
        raise ValueError(
            f"boundaries must hold {lengths.shape[1]} positive lengths a bucket, got {boundaries}"
        )
    return lengths, bounds


def _cheapest(lengths: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first of the sorted ``bounds`` that holds each example, -1 for none; and the sorted."""
    bounds = bounds[np.lexsort((*bounds.T[::-1], bounds.sum(1)))]
    buckets = np.full(len(lengths), -1)
    for index in reversed(range(len(bounds))):
        buckets[(lengths <= bounds[index]).all(1) & lengths.any(1)] = index
    return buckets, bounds


def _rows(
    bounds: np.ndarray, batch: Any, token_budget: Any, batch_sizes: Any, processes: int
) -> Callable[[Times], int]:
    """A function from a bucket's times to the rows of its batches."""
    if sum(value is not None for value in (batch, token_budget, batch_sizes)) != 1:
        raise ValueError(
            f"give batch or token_budget, got {batch} and {token_budget}; or batch_sizes, one a "
            f"bucket, got {batch_sizes}"
        )
    if batch is not None:
        batch = as_int("batch", batch, 1)
        return lambda times: _shared("batch", batch, batch, times, processes)
    if token_budget is not None:
        budget = as_int("token_budget", token_budget, 1)
        return lambda times: _shared("token_budget", budget, budget // sum(times), times, processes)
    each = as_sizes("batch_sizes", batch_sizes, len(bounds))
    sizes = dict(zip(map(tuple, bounds.tolist()), each, strict=True))
    if any(sizes[tuple(times)] != rows for times, rows in zip(bounds.tolist(), each, strict=True)):
        raise ValueError(f"batch_sizes must agree where boundaries do, got {each}")
    most = max((rows * sum(times) for times, rows in sizes.items()), default=0)

    def rows_of(times: Times) -> int:
        rows = sizes.get(times) or max(processes, most // sum(times))
        return _shared("batch_sizes", rows, rows, times, processes)

    return rows_of


def _shared(name: str, given: int, rows: int, times: Times, processes: int) -> int:
    """``rows``, rounded down to a multiple of the processes."""
    if rows < processes:
        raise ValueError(
            f"{name} must give each of {processes} processes a row of {times} steps, got {given}"
        )
    return rows - rows % processes
