"""How well labels are found: the area under a curve, thresholds, F1. In NumPy, on the host."""

from __future__ import annotations

import jax
import numpy as np


def auroc(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    r"""The area under each label's receiver operating characteristic, [labels].

    The share of pairs of a record with the label and one without whose scores are in that order,
    ties counting half (Hanley and McNeil 1982). NaN for a label that all or none have. By ranks:

    .. math:: \frac{\sum_{i \in P} r_i - |P| (|P| + 1) / 2}{|P| |N|}

    with positives P, negatives N, and r the ranks of all scores from 1, those of ties averaged.

    Args:
      scores: [records, labels], any order-preserving number: logits or probabilities.
      labels: [records, labels], 0 or 1.

    Raises:
      ValueError: a score is NaN, a label neither 0 nor 1, or the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> auroc(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]])).tolist()
      [0.75]
    """
    scores, has = _scores_and_labels(scores, labels)
    return np.array([_area(score, label) for score, label in zip(scores.T, has.T, strict=True)])


def _area(score: np.ndarray, label: np.ndarray) -> float:
    positives = int(label.sum())
    negatives = label.size - positives
    if not positives or not negatives:
        return np.nan
    _, place, ties = np.unique(score, return_inverse=True, return_counts=True)
    twice_rank = 2 * np.cumsum(ties) - ties + 1  # integers, so that the sum is exact
    ordered = int(twice_rank[place][label].sum()) - positives * (positives + 1)
    return ordered / (2 * positives * negatives)


def _scores_and_labels(scores, labels) -> tuple[np.ndarray, np.ndarray]:
    """[records, labels] each, the labels as booleans."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            "scores and labels must be [records, labels] alike, "
            f"got {scores.shape} and {labels.shape}"
        )
    if np.isnan(scores).any():
        record, label = np.argwhere(np.isnan(scores))[0]
        raise ValueError(f"scores must not be NaN, got NaN at record {record}, label {label}")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, got {labels[~np.isin(labels, (0, 1))][0]}")
    return scores, labels.astype(bool)


def best_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each label the threshold of its scores with the best F1, [labels]: "at least" has it.

    To be chosen on records that are not the test's. Arguments and errors as of :func:`auroc`;
    among equally good thresholds the lowest; NaN without records.

    Example:
      >>> import numpy as np
      >>> best_thresholds(np.array([[0.1], [0.4], [0.35], [0.8]]), np.array([[0], [0], [1], [1]]))
      array([0.35])
    """
    scores, has = _scores_and_labels(scores, labels)
    return np.array([
        _best_threshold(score, label) for score, label in zip(scores.T, has.T, strict=True)
    ])  # fmt: skip


def _best_threshold(score: np.ndarray, label: np.ndarray) -> float:
    if not score.size:
        return np.nan
    thresholds, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    # By threshold, how many lie at or above it: of all, and of those with the label.
    found = np.cumsum(counts[::-1])[::-1]
    right = np.cumsum(np.bincount(place, label, len(thresholds))[::-1])[::-1]
    return thresholds[np.argmax(2 * right / (found + label.sum()))]


def f1(found: np.ndarray, label: np.ndarray) -> float:
    """The harmonic mean of precision and recall; 0 where nothing is right.

    Args:
      found: [...], booleans or 0 and 1.
      label: as ``found``.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> import numpy as np
      >>> f1(np.array([True, True, False]), np.array([True, False, True]))
      0.5
    """
    found, label = np.asarray(found).astype(bool), np.asarray(label).astype(bool)
    if found.shape != label.shape:
        raise ValueError(f"found and label must be alike, got {found.shape} and {label.shape}")
    right = (found & label).sum()
    return float(2 * right / max(found.sum() + label.sum(), 1))


def probabilities(logits: jax.Array) -> np.ndarray:
    """Sigmoid outputs, on the host."""
    return np.asarray(jax.nn.sigmoid(logits))
