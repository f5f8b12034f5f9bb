"""How well labels are found: the area under a curve, thresholds, F1. In NumPy, on the host.

And how well true items are ranked among all: recall, NDCG, MRR and coverage, on device.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Shaped

from jaxnets.kernels import LabelRank, TopK
from jaxnets.kernels.checks import as_int, as_integers, check_range, in_range
from jaxnets.kernels.losses import check_weights
from jaxnets.kernels.meshes import WHOLE, over_rows


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


class RankingMetrics(NamedTuple):
    r"""Recall, NDCG and MRR of one true item a row, and the coverage of all items, over batches.

    Of a true item with a items above it and t that tie with it, every order of the ties is as
    likely: it has each place from a to a + t with probability 1 / (t + 1), and the metrics are
    expected values (McSherry and Najork 2008, "Computing Information Retrieval Performance Measures
    Efficiently in the Presence of Tied Scores"). With :math:`p_j` the share of rows, by weight,
    whose true item has place j, the first being 0,

    .. math::
        \text{recall@}k = \sum_{j < k} p_j, \qquad
        \text{NDCG@}k = \sum_{j < k} \frac{p_j}{\log_2 (j + 2)}, \qquad
        \text{MRR@}k = \sum_{j < k} \frac{p_j}{j + 1}

    NDCG is that of Järvelin and Kekäläinen (2002, "Cumulated Gain-Based Evaluation of IR
    Techniques") with a gain of 1 for the true item, so that the ideal sum is 1; recall with one
    true item is the hit rate. Coverage@k is the share of all items that are among the first k of
    some row (Ge et al. 2010, "Beyond Accuracy: Evaluating Recommender Systems by Coverage and
    Serendipity"). Ranks are to be those among all items, not a sample of them (Krichene and Rendle
    2020, "On Sampled Metrics for Item Recommendation").

    A pytree of sums, so :meth:`update` goes into ``jax.jit`` and ``jax.lax.scan``.

    Attributes:
      found_at: [largest_k] float32 (float64 with x64): the weight of rows by their true item's
        place. Exact for 2**24 rows of weight 1 without ties.
      total: [], the weight of all rows.
      first_place: [items] int32: the best place that an item was recommended at, largest_k for
        none; or None, without coverage.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import linear_label_rank, linear_top_k
      >>> items = jnp.array([[1.0], [5.0], [3.0], [4.0]])
      >>> metrics = RankingMetrics.create(2, items=4)
      >>> for user, true in ((1.0, 3), (2.0, 2), (-1.0, 0)):
      ...     users = jnp.array([[user]])  # a batch of one
      ...     rank = linear_label_rank(users, items, [true])
      ...     metrics = metrics.update(rank, top=linear_top_k(users, items, 2))
      >>> {name: round(float(value), 2) for name, value in metrics.compute([1, 2]).items()}
      ... # doctest: +NORMALIZE_WHITESPACE
      {'recall@1': 0.33, 'ndcg@1': 0.33, 'mrr@1': 0.33, 'coverage@1': 0.5,
       'recall@2': 0.67, 'ndcg@2': 0.54, 'mrr@2': 0.5, 'coverage@2': 1.0}
    """

    found_at: jax.Array
    total: jax.Array
    first_place: jax.Array | None

    @classmethod
    def create(
        cls, largest_k: SupportsIndex, *, items: SupportsIndex | None = None
    ) -> RankingMetrics:
        """Of no row yet.

        Args:
          largest_k: the largest k that is asked for.
          items: how many there are, for coverage; None: without.

        Raises:
          TypeError, ValueError: a size that is no integer, or below 1.
        """
        largest_k = as_int("largest_k", largest_k, 1)
        first_place = None
        if items is not None:
            first_place = jnp.full(as_int("items", items, 1), largest_k, jnp.int32)
        return cls(jnp.zeros(largest_k), jnp.zeros(()), first_place)

    def update(
        self,
        rank: LabelRank,
        *,
        top: TopK | None = None,
        token_weights: Shaped[ArrayLike, "..."] | Sequence | None = None,
    ) -> RankingMetrics:
        """With the rows of one more batch.

        Args:
          rank: [...], as :func:`jaxnets.kernels.linear_label_rank` gives it. Without a rank, -1, a
            row of any weight makes recall, NDCG and MRR NaN.
          top: [..., at least largest_k], as :func:`jaxnets.kernels.linear_top_k` gives it, for
            coverage. Of logit -inf nothing is recommended.
          token_weights: [...], a factor for each row; of 0 it leaves no trace. A row of another
            weight counts once for coverage.

        Raises:
          TypeError: ranks or ids that are no integers.
          ValueError: shapes that do not fit, ``top`` where ``items`` is not given or the other way
            round, or an id out of [0, items) where it is known. Under ``jit`` recall, NDCG and MRR
            are then NaN.
        """
        above, ties = (as_integers(f"rank.{n}", a) for n, a in zip(rank._fields, rank, strict=True))
        if above.shape != ties.shape:
            raise ValueError(
                f"rank.above and rank.ties must be alike, got {above.shape} and {ties.shape}"
            )
        if (top is None) != (self.first_place is None):
            raise ValueError(
                "top must be given if, and only if, the metrics were created with items, of which "
                "coverage is a share"
            )
        token_weights = check_weights(token_weights, above.shape)
        if top is not None and self.first_place is not None:
            top = _check_top(top, above.shape, self.found_at.size, self.first_place.size)
        return _updated(self, above, ties, top, token_weights)

    def compute(self, ks: Sequence[SupportsIndex]) -> dict[str, jax.Array]:
        """By name, "recall@10" and so on, scalars; NaN without rows.

        Args:
          ks: each from 1 to largest_k.

        Raises:
          TypeError, ValueError: a k that is no integer, or out of range.
        """
        largest, sizes = self.found_at.size, tuple(as_int("k", k) for k in ks)
        for k in sizes:
            if not 1 <= k <= largest:
                raise ValueError(f"k must lie in [1, largest_k] = [1, {largest}], got {k}")
        names = ("recall", "ndcg", "mrr") + ("coverage",) * (self.first_place is not None)
        found = zip(sizes, _computed(sizes, self), strict=True)
        return {f"{name}@{k}": values[name] for k, values in found for name in names}


def _check_top(top: TopK, batch: tuple[int, ...], places: int, items: int) -> TopK:
    """The first ``places`` of ``top``; raises unless they are there, and ids in range."""
    ids, logits = as_integers("top.ids", top.ids), jnp.asarray(top.logits)
    if ids.shape != logits.shape or ids.shape[:-1] != batch or ids.shape[-1] < places:
        raise ValueError(
            f"top must be [..., k] with the shape of rank, {batch}, and k of at least largest_k = "
            f"{places}, got ids {ids.shape} and logits {logits.shape}"
        )
    check_range("top.ids", ids, 0, items, "[0, items)", except_for=jnp.isneginf(logits))
    return TopK(logits[..., :places], ids[..., :places])


@jax.jit
@over_rows(above=WHOLE, ties=WHOLE, metrics=WHOLE, top=WHOLE, weights=WHOLE)
def _updated(
    metrics: RankingMetrics,
    above: jax.Array,
    ties: jax.Array,
    top: TopK | None,
    weights: jax.Array | None,
) -> RankingMetrics:
    dtype = metrics.found_at.dtype
    weights = jnp.ones(above.shape, dtype) if weights is None else weights.astype(dtype)
    weights, above, ties = (a.reshape(-1, 1) for a in (weights, above, ties))
    kept = weights != 0
    above, ties = (jnp.where(kept, a, 0) for a in (above, ties))
    places = jnp.arange(metrics.found_at.size, dtype=jnp.int32)[None]
    wrong, first_place = above < 0, metrics.first_place
    if top is not None and first_place is not None:
        items, shape = first_place.size, (above.size, places.size)
        logits, ids = (a.reshape(shape) for a in top)
        known, recommended = in_range(ids, items), kept & (logits > -jnp.inf)
        wrong |= (recommended & ~known).any(1, keepdims=True)
        ids = jnp.where(recommended & known, ids, items)
        first_place = first_place.at[ids].min(jnp.broadcast_to(places, shape), mode="drop")
    here = (places >= above) & (places <= above + ties)
    share = weights / jnp.maximum(ties + 1, 1).astype(dtype)
    found = jnp.where(wrong.any(), jnp.nan, jnp.where(here, share, 0).sum(0))
    return RankingMetrics(metrics.found_at + found, metrics.total + weights.sum(), first_place)


@partial(jax.jit, static_argnums=0)
def _computed(ks: tuple[int, ...], metrics: RankingMetrics) -> list[dict[str, jax.Array]]:
    share = metrics.found_at / metrics.total
    places = np.arange(share.size)
    gain = jnp.asarray(1 / np.log2(places + 2), share.dtype)
    reciprocal = jnp.asarray(1 / (places + 1), share.dtype)
    terms = {"recall": share, "ndcg": share * gain, "mrr": share * reciprocal}
    found = [{name: of[:k].sum() for name, of in terms.items()} for k in ks]
    if metrics.first_place is not None:
        for k, values in zip(ks, found, strict=True):
            reached = (metrics.first_place < k).sum().astype(share.dtype)
            values["coverage"] = reached / metrics.first_place.size
    return found
