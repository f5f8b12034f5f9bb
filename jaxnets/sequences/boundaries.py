"""Where buckets end: a sequence goes into the first one whose boundary is at least its length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def boundaries_every(step: int, longest: int) -> tuple[int, ...]:
    """Fixed boundaries: multiples of ``step``, the last one at least ``longest``.

    Example:
      >>> boundaries_every(10, 34)
      (10, 20, 30, 40)
    """
    if step < 1 or longest < 1:
        raise ValueError(f"step and longest must be at least 1, got {step} and {longest}")
    return tuple(range(step, longest + step, step))


def quantile_boundaries(lengths: Sequence[int] | np.ndarray, buckets: int) -> tuple[int, ...]:
    """Boundaries at equal shares of the sequences; fewer than ``buckets`` where quantiles agree.

    Example:
      >>> quantile_boundaries([1, 2, 3, 4, 5, 6, 7, 100], 2)
      (4, 100)
    """
    lengths = _checked(lengths, buckets)
    ranks = np.ceil(np.arange(1, buckets + 1) / buckets * len(lengths)).astype(int)
    return tuple(int(length) for length in np.unique(np.sort(lengths)[ranks - 1]))


def optimal_boundaries(lengths: Sequence[int] | np.ndarray, buckets: int) -> tuple[int, ...]:
    r"""The boundaries of at most ``buckets`` buckets that pad the fewest steps.

    With the distinct lengths :math:`u_1 < \dots < u_m` and :math:`C_j` sequences of length at most
    :math:`u_j`, the padded steps of k buckets that hold all up to :math:`u_j` are

    .. math:: f_k(j) = \min_{i < j} f_{k-1}(i) + u_j (C_j - C_i)

    in O(k m^2) time, each row of the table by NumPy.

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
    lengths = _checked(lengths, buckets)
    distinct, counts = np.unique(lengths, return_counts=True)
    up_to = np.concatenate([[0], np.cumsum(counts)]).astype(np.float64)
    size = len(distinct)
    cost = np.full(size + 1, np.inf)
    cost[0] = 0
    choices = []
    for _ in range(min(buckets, size)):
        new, choice = np.full(size + 1, np.inf), np.zeros(size + 1, int)
        new[0] = 0
        for j in range(1, size + 1):
            candidates = cost[:j] + distinct[j - 1] * (up_to[j] - up_to[:j])
            choice[j] = np.argmin(candidates)
            new[j] = candidates[choice[j]]
        choices.append(choice)
        cost = new
    boundaries, j = [], size
    for choice in reversed(choices):
        if j == 0:
            break
        boundaries.append(int(distinct[j - 1]))
        j = choice[j]
    return tuple(reversed(boundaries))


def optimal_pair_boundaries(
    sources: Sequence[int] | np.ndarray,
    targets: Sequence[int] | np.ndarray,
    source_buckets: int,
    target_buckets: int,
) -> tuple[tuple[int, int], ...]:
    """Boundaries (source, target) of buckets for pairs: optimal in the source, then in the target.

    Within each optimal source bucket the targets have optimal boundaries of their own.

    Example:
      >>> optimal_pair_boundaries([3, 3, 9, 9], [2, 8, 7, 12], 2, 2)
      ((3, 2), (3, 8), (9, 7), (9, 12))
    """
    sources, targets = _checked(sources, source_buckets), _checked(targets, target_buckets)
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


def _checked(lengths, buckets: int) -> np.ndarray:
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError(f"lengths must be [sequences], at least one, got shape {lengths.shape}")
    if not np.issubdtype(lengths.dtype, np.integer):
        raise TypeError(f"lengths must be integers, got dtype {lengths.dtype}")
    if lengths.min() < 1:
        raise ValueError(f"lengths must be at least 1, got {lengths.min()}")
    if buckets < 1:
        raise ValueError(f"buckets must be at least 1, got {buckets}")
    return lengths
