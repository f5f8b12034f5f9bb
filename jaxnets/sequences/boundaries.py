"""Where buckets end: a sequence goes into the first one whose boundary is at least its length."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np

from jaxnets.kernels.checks import as_int
from jaxnets.sequences.lengths import as_lengths


def boundaries_every(step: SupportsIndex, longest: SupportsIndex) -> tuple[int, ...]:
    """Fixed boundaries: multiples of ``step``, the last one at least ``longest``.

    Raises:
      TypeError, ValueError: ``step`` or ``longest`` is no integer, or below 1.

    Example:
      >>> boundaries_every(10, 34)
      (10, 20, 30, 40)
    """
    step, longest = as_int("step", step), as_int("longest", longest)
    if step < 1 or longest < 1:
        raise ValueError(f"step and longest must be at least 1, got {step} and {longest}")
    return tuple(range(step, longest + step, step))


def quantile_boundaries(lengths: Any, buckets: SupportsIndex) -> tuple[int, ...]:
    """Boundaries at equal shares of the sequences; fewer than ``buckets`` where quantiles agree.

    Args:
      lengths: [sequences], integers of at least 1.
      buckets: how many at most.

    Raises:
      TypeError, ValueError: as :func:`optimal_boundaries`.

    Example:
      >>> quantile_boundaries([1, 2, 3, 4, 5, 6, 7, 100], 2)
      (4, 100)
    """
    lengths, buckets = _checked(lengths), as_int("buckets", buckets, 1)
    ranks = -(-np.arange(1, buckets + 1) * len(lengths) // buckets)
    return tuple(int(length) for length in np.unique(np.sort(lengths)[ranks - 1]))


def optimal_boundaries(lengths: Any, buckets: SupportsIndex) -> tuple[int, ...]:
    r"""The boundaries of at most ``buckets`` buckets that pad the fewest steps.

    With the distinct lengths :math:`u_1 < \dots < u_m` and :math:`C_j` sequences of length at most
    :math:`u_j`, the padded steps of k buckets that hold all up to :math:`u_j` are

    .. math:: f_k(j) = \min_{i < j} f_{k-1}(i) + u_j (C_j - C_i)

    and each row of this table is the lower hull of the one before, seen from the slopes
    :math:`u_j`: O(k m) time after the sort, and exact.

    Args:
      lengths: [sequences], integers of at least 1.
      buckets: how many programs may be compiled.

    Returns:
      Rising boundaries, the last one the longest length.

    Raises:
      ValueError: no lengths, a length below 1, or no bucket.

    Example:
      >>> optimal_boundaries([2, 2, 2, 3, 9, 10], 2)
      (3, 10)
    """
    lengths, buckets = _checked(lengths), as_int("buckets", buckets, 1)
    distinct, counts = np.unique(lengths, return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)])
    cost = np.concatenate([[0], distinct * up_to[1:]])  # of one bucket
    choices = [np.zeros(len(distinct), int)]
    for _ in range(1, min(buckets, len(distinct))):
        choices.append(choice := _cheapest(up_to, cost, distinct))
        cost[1:] = cost[choice] + distinct * (up_to[1:] - up_to[choice])
    boundaries, j = [], len(distinct)
    while j:
        boundaries.append(int(distinct[j - 1]))
        j = int(choices.pop()[j - 1])
    return tuple(reversed(boundaries))


def _cheapest(up_to: np.ndarray, cost: np.ndarray, distinct: np.ndarray) -> np.ndarray:
    r"""The smallest :math:`i` of the least :math:`f(i) - u C_i` for each of the rising lengths.

    It is a corner of the lower convex hull of the points :math:`(C_i, f(i))`, and the corner moves
    right as u rises. No :math:`i \ge j` is better than all before it: it would be a plan of more
    buckets for more sequences. In whole numbers, so that ties are exact.
    """
    x, y = up_to.tolist(), cost.tolist()
    hull: list[int] = []
    for i in range(len(x)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[i] - x[b]) < (y[i] - y[b]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    corners = np.array(hull)
    slopes = np.diff(cost[corners]) // np.diff(up_to[corners])
    return corners[np.searchsorted(slopes, distinct, side="left")]


def optimal_pair_boundaries(
    sources: Any,
    targets: Any,
    source_buckets: SupportsIndex,
    target_buckets: SupportsIndex,
) -> tuple[tuple[int, int], ...]:
    """Boundaries (source, target) of buckets for pairs: optimal in the source, then in the target.

    Within each optimal source bucket the targets have optimal boundaries of their own.

    Args:
      sources: [sequences], integers of at least 1.
      targets: [sequences], likewise.
      source_buckets: how many at most.
      target_buckets: how many at most in each source bucket.

    Raises:
      TypeError, ValueError: as :func:`optimal_boundaries`; or other numbers of sources than
        targets.

    Example:
      >>> optimal_pair_boundaries([3, 3, 9, 9], [2, 8, 7, 12], 2, 2)
      ((3, 2), (3, 8), (9, 7), (9, 12))
    """
    sources, targets = _checked(sources), _checked(targets)
    if len(sources) != len(targets):
        raise ValueError(
            f"targets must have one length a source, {len(sources)}, got {len(targets)}"
        )
    pairs, before = [], 0
    for boundary in optimal_boundaries(sources, source_buckets):
        inside = (sources > before) & (sources <= boundary)
        pairs += [
            (boundary, target) for target in optimal_boundaries(targets[inside], target_buckets)
        ]
        before = boundary
    return tuple(pairs)


def _checked(lengths: Any) -> np.ndarray:
    lengths = as_lengths("lengths", lengths, 1)
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError(f"lengths must be [sequences], at least one, got shape {lengths.shape}")
    return lengths
