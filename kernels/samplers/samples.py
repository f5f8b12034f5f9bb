"""Candidates of a sampled loss: drawn by a sampler, a batch's own, or brought by the user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Integer, Shaped

from jaxnets.kernels import checks

CLASS_IDS = "integer class ids"


class Samples(NamedTuple):
    """Candidates and how often each class was to be expected among them.

    Attributes:
      ids: [num_sampled] int32, shared by all tokens, or [..., num_sampled], each token's own.
      log_expected_count: as ``ids``, float32: log of the expected number of times it is drawn.
        Infinity: this is no candidate, whatever its id, in any loss. -infinity, for a class that is
        never drawn: its logit is not corrected.
      labels_log_expected_count: as ``labels``, float32: the same for the true classes.
      tries: [] or [...] int32: independent draws made; ``num_sampled`` with replacement, and at
        least that without.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import Uniform, draw_samples
      >>> samples = draw_samples(Uniform(8), jax.random.key(0), 4, jnp.array([3, 5]), unique=False)
      >>> jnp.exp(samples.log_expected_count).tolist(), samples.tries.item()
      ([0.5, 0.5, 0.5, 0.5], 4)
    """

    ids: jax.Array
    log_expected_count: jax.Array
    labels_log_expected_count: jax.Array
    tries: jax.Array

    @classmethod
    def from_candidates(
        cls,
        ids: Integer[ArrayLike, "..."] | Sequence,
        labels: Integer[ArrayLike, "..."] | Sequence,
        log_expected_count: Any = None,
        labels_log_expected_count: Any = None,
        *,
        mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    ) -> Samples:
        """Candidates of the user's own, for example hard negatives that another model found.

        Args:
          ids: [num_sampled], integer classes for all tokens, or [..., num_sampled], each token's
            own.
          labels: [...] or [..., num_true], the true classes that the loss is to be given.
          log_expected_count: as ``ids``, float: log of how often each is expected among the
            candidates. None: the logits are not corrected.
          labels_log_expected_count: as ``labels``, the same for the true classes; given with
            ``log_expected_count``, or not at all.
          mask: as ``ids``, bool or 0 and 1: where a token has fewer candidates than others, False
            marks what fills up.

        Returns:
          :class:`Samples`; ``tries`` is the number of candidates that ``mask`` leaves.

        Raises:
          TypeError: float ids or labels, or integer counts.
          ValueError: shapes that do not fit, counts for one of the two only, or, where values are
            known, a negative id, a count that is NaN, or an infinite one of a true class.

        Example:
          >>> import jax.numpy as jnp
          >>> from jaxnets.kernels import sampled_softmax_cross_entropy
          >>> labels, hard = jnp.array([3, 5]), jnp.array([[1, 2, 7], [4, 9, 0]])
          >>> samples = Samples.from_candidates(hard, labels, mask=[[1, 1, 1], [1, 1, 0]])
          >>> hidden, weight = jnp.ones((2, 4)), jnp.zeros((10, 4))
          >>> loss = sampled_softmax_cross_entropy(
          ...     hidden, weight, labels, samples, reduction="none"
          ... )
          >>> jnp.exp(loss).round(4).tolist()  # of 4 and of 3 classes alike
          [4.0, 3.0]
        """
        ids, labels = (
            checks.as_integers("ids", ids, CLASS_IDS),
            checks.as_integers("labels", labels, CLASS_IDS),
        )
        batch = ids.shape[:-1]
        if not ids.ndim or batch not in ((), labels.shape, labels.shape[:-1]):
            raise ValueError(
                "ids must be [num_sampled] or [..., num_sampled] with the tokens of labels "
                f"{labels.shape}, got {ids.shape}"
            )
        if (log_expected_count is None) != (labels_log_expected_count is None):
            raise ValueError(
                "log_expected_count and labels_log_expected_count must be given both or neither"
            )
        there = as_mask("mask", mask, ids.shape)
        checks.check_range("ids", ids, 0, checks.INT32_MAX, "[0, 2**31 - 1)", except_for=~there)
        if log_expected_count is None:
            counts = jnp.zeros(ids.shape, jnp.float32)
            labels_counts = jnp.zeros(labels.shape, jnp.float32)
        else:
            counts = checks.as_floats("log_expected_count", log_expected_count)
            labels_counts = checks.as_floats("labels_log_expected_count", labels_log_expected_count)
            _check_shape("log_expected_count", counts, ids.shape)
            _check_shape("labels_log_expected_count", labels_counts, labels.shape)
            _check_counts("log_expected_count", counts, there & ~jnp.isposinf(counts))
            _check_counts("labels_log_expected_count", labels_counts)
        return cls(
            jnp.where(there, ids, 0),
            jnp.where(there, counts, jnp.inf),
            labels_counts,
            there.sum(-1, dtype=jnp.int32),
        )

    @classmethod
    def of(cls, samples: Any) -> Samples:
        """``samples``, or a tuple of the same four, with their types as the losses take them.

        Raises:
          TypeError: it is something else, has float ids or integer counts.
        """
        if not isinstance(samples, tuple) or len(samples) != len(cls._fields):
            raise TypeError(
                "samples must be Samples, of draw_samples, in_batch_samples or "
                f"Samples.from_candidates, got {type(samples).__name__}"
            )
        ids, count, labels_count, tries = samples
        return cls(
            checks.as_integers("samples.ids", ids, CLASS_IDS),
            checks.as_floats("samples.log_expected_count", count),
            checks.as_floats("samples.labels_log_expected_count", labels_count),
            tries,
        )


def _check_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")


def _check_counts(name: str, counts: jax.Array, there: Any = True) -> None:
    if not (checks.is_known(counts) and checks.is_known(there)):
        return
    values = np.asarray(counts, np.float32)
    wrong = ~(values < np.inf) & np.asarray(there)
    if wrong.any():
        raise ValueError(f"{name} must be logs of counts, got {values[wrong].flat[0]}")


def log_inclusion(log_p: jax.Array, tries: jax.Array) -> jax.Array:
    """log(1 - (1-p)^tries), without losing a small p: (1-p)^n = exp(n log1p(-p))."""
    p = jnp.minimum(jnp.exp(log_p), 1)  # a p of 1 may come with a rounding
    return jnp.log(-jnp.expm1(tries.astype(log_p.dtype) * jnp.log1p(-p)))


def as_mask(name: str, mask: Any, shape: tuple[int, ...]) -> jax.Array:
    """``mask``, bools or numbers, as booleans of ``shape``; None is True throughout."""
    if mask is None:
        return jnp.ones(shape, bool)
    there = jnp.asarray(mask).astype(bool)
    _check_shape(name, there, shape)
    return there
