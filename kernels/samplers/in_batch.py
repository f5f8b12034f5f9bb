"""A batch's own classes as its candidates: nothing is drawn, no other row is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import placed_like, replicated
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.distinct import first_of_each
from jaxnets.kernels.samplers.samples import CLASS_IDS, Samples, as_mask, log_inclusion


def in_batch_samples(
    labels: Integer[ArrayLike, "..."] | Sequence,
    log_probability: Float[ArrayLike, "..."] | Sequence,
    *,
    unique: bool = True,
    mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
) -> Samples:
    """The labels of a batch as its candidates: nothing is drawn, no other row is read.

    A label is in the batch as often as its class occurs, so the expected counts are those of
    as many draws from the distribution of the labels.

    Args:
      labels: [...], integer classes.
      log_probability: [...], float: log of each label's share of the data.
      unique: count a class once; its repeats stay in ``ids`` (shapes are static) with an expected
        count of infinity, which makes them no candidates.
      mask: [...], bool or 0 and 1: False marks a padded label, which is no draw and no candidate,
        whatever stands there. The loss is to leave its token out, too.

    Returns:
      :class:`Samples` with ids [labels.size].

    Raises:
      TypeError: float labels, or an integer ``log_probability``.
      ValueError: shapes that do not fit; where values are known, a label beyond int32 or a
        ``log_probability`` that is no logarithm of a share.

    Example:
      >>> import jax.numpy as jnp
      >>> samples = in_batch_samples(jnp.array([7, 2, 7]), jnp.log(jnp.array([0.5, 0.1, 0.5])))
      >>> samples.ids.tolist(), [round(float(x), 3) for x in jnp.exp(samples.log_expected_count)]
      ([7, 2, 7], [0.875, 0.271, inf])
    """
    log_probability = checks.as_floats("log_probability", log_probability)
    rounding = 16 * float(jnp.finfo(log_probability.dtype).eps)
    log_probability = log_probability.astype(accumulator_dtype(log_probability))
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    if log_probability.shape != labels.shape:
        raise ValueError(
            f"log_probability must have the shape of labels, {labels.shape}, "
            f"got {log_probability.shape}"
        )
    true = as_mask("mask", mask, labels.shape)
    # At the ends of int32 stand the ids beyond it: different ones, which must not become one class.
    lowest, end = -checks.INT32_MAX, checks.INT32_MAX
    checks.check_range("labels", labels, lowest, end, "the range of int32", except_for=~true)
    if checks.is_known(log_probability) and checks.is_known(true):
        wrong = ~(np.asarray(log_probability) <= rounding) & np.asarray(true)
        if wrong.any():
            raise ValueError(
                "log_probability must be logs of shares, at most 0, got "
                f"{np.asarray(log_probability)[wrong].flat[0]}"
            )
    return _samples(unique, labels, log_probability, true)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("in_batch_samples")
def _samples(
    unique: bool, labels: jax.Array, log_probability: jax.Array, true: jax.Array
) -> Samples:
    shape, given = labels.shape, labels
    labels, log_probability, true = replicated((labels, log_probability, true))
    labels, true = labels.reshape(-1), true.reshape(-1)
    log_p = jnp.where(true, log_probability.reshape(-1), 0)
    tries = true.sum(dtype=jnp.int32)
    counted = true & first_of_each(jnp.where(true, labels, checks.INT32_MAX)) if unique else true
    counts = jnp.where(true, log_count_in_batch(unique, log_p, tries), 0)
    # A padded label's id is that of a true one, so that no other row of the table is touched.
    ids = jnp.where(true, labels, jnp.where(true, labels, -1).max(initial=0))
    own = placed_like(given, counts.reshape(shape))
    return Samples(ids, jnp.where(counted, counts, jnp.inf), own, tries)


def log_count_in_batch(unique: bool, log_p: jax.Array, tries: jax.Array) -> jax.Array:
    """Log of how often a class of log-probability ``log_p`` is expected among ``tries`` labels."""
    if unique:
        return log_inclusion(log_p, tries)
    return log_p + jnp.log(tries.astype(log_p.dtype))
