"""The loss of each query over the items of its own batch: no table, and no other row, is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.losses import Reduction, check_reduction, check_weights, reduce_losses
from jaxnets.kernels.meshes import WHOLE, eager_gradients, over_rows
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.sampled_softmax.xla import candidate_softmax
from jaxnets.kernels.samplers.samples import CLASS_IDS, as_mask


def in_batch_softmax_cross_entropy(
    hidden: Float[ArrayLike, "batch features"],
    items: Float[ArrayLike, "batch features"],
    labels: Integer[ArrayLike, " batch"] | Sequence,
    log_probability: Float[ArrayLike, " batch"] | Sequence | None = None,
    *,
    token_weights: Shaped[ArrayLike, " batch"] | Sequence | None = None,
    mask: Shaped[ArrayLike, " batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
) -> Float[Array, "..."]:
    r"""Softmax of each query over the batch's own items, corrected for how common they are.

    .. math::
        \text{loss}_i = \log \sum_{j : j = i \text{ or } y_j \ne y_i} e^{s_{ij}} - s_{ii},
        \qquad s_{ij} = h_i \cdot v_j - \log q_j

    (Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", equations 3 to 6). Another row with the same item is no negative.

    Args:
      hidden: [batch, features], float: the queries.
      items: [batch, features], float: the item of each query.
      labels: [batch], integer ids of the items, of any size: they are only compared with each
        other. (Outside ``jax.enable_x64`` give ids of 64 bits as NumPy arrays, outside ``jit``.)
      log_probability: [batch]: log of each item's share of the data; None: no correction, as for
        an item whose share is 0 (-infinity).
      token_weights: [batch], a factor for each query; 0 (or False) leaves out the query, not its
        item.
      mask: [batch], bool or 0 and 1: False marks a padded row, neither a query nor an item.
      ignore_index: a label that marks padded rows likewise.
      reduction: "mean" (by weight), "sum" or "none".

    Returns:
      The loss, a scalar or [batch] for "none", in float32 (float64 for float64 input).

    Raises:
      TypeError: float labels, or integer hidden, items or ``log_probability``.
      ValueError: shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> vectors = 10 * jnp.eye(3)
      >>> loss = in_batch_softmax_cross_entropy(vectors, vectors, jnp.array([4, 7, 9]))
      >>> bool(loss < 1e-6)
      True
    """
    hidden, items = checks.as_floats("hidden", hidden), checks.as_floats("items", items)
    check_reduction(reduction)
    if hidden.ndim != 2 or items.shape != hidden.shape:
        raise ValueError(
            "hidden and items must be [batch, features] alike, "
            f"got {hidden.shape} and {items.shape}"
        )
    batch = hidden.shape[:1]
    if ignore_index is not None:
        ignore_index = checks.as_int("ignore_index", ignore_index)
    labels, ignored = _item_codes(labels, ignore_index)
    if log_probability is not None:
        log_probability = checks.as_floats("log_probability", log_probability)
    for name, array in (("labels", labels), ("log_probability", log_probability)):
        if array is not None and array.shape != batch:
            raise ValueError(f"{name} must be [batch] = {batch}, got {array.shape}")
    true = None
    if mask is not None or ignore_index is not None:
        true = as_mask("mask", mask, batch) & ~ignored
    token_weights = check_weights(token_weights, batch)
    return _in_batch(reduction, hidden, items, labels, log_probability, token_weights, true)


def _item_codes(labels: Any, ignore_index: SupportsIndex | None) -> tuple[jax.Array, jax.Array]:
    """Numbers that are equal where ``labels`` are; and where those are ``ignore_index``.

    JAX would cut NumPy's 64 bits to 32 and make one item of two; so NumPy numbers the items.
    """
    checks.as_integers("labels", labels, CLASS_IDS)
    if ignore_index is not None:
        ignore_index = checks.as_int("ignore_index", ignore_index)
    if checks.holds_tracers(labels):
        labels = jnp.asarray(labels)
    if not isinstance(labels, jax.Array):
        values = np.asarray(labels)
        _, codes = np.unique(values, return_inverse=True)
        return jnp.asarray(codes.reshape(values.shape), jnp.int32), jnp.asarray(
            values == ignore_index
        )
    limits = jnp.iinfo(labels.dtype)
    if ignore_index is None or not limits.min <= ignore_index <= limits.max:
        return labels, jnp.zeros(labels.shape, bool)
    return labels, labels == ignore_index


@eager_gradients
@partial(jax.jit, static_argnums=0)
@jax.named_scope("in_batch_softmax_cross_entropy")
def _in_batch(
    reduction: str,
    hidden: jax.Array,
    items: jax.Array,
    labels: jax.Array,
    log_probability: jax.Array | None,
    token_weights: jax.Array | None,
    true: jax.Array | None,
) -> jax.Array:
    dtype = accumulator_dtype(hidden, items)
    offset = jnp.zeros(labels.shape, dtype)
    if log_probability is not None:
        offset = -jnp.where(jnp.isneginf(log_probability), 0, log_probability).astype(dtype)
    candidate_offset, share = offset, None
    if true is not None:
        token_weights = (
            true.astype(dtype) if token_weights is None else jnp.where(true, token_weights, 0)
        )
        items = jnp.where(true[:, None], items, 0)
        offset = jnp.where(true, offset, 0)
        candidate_offset = jnp.where(true, offset, -jnp.inf)
    if token_weights is not None:
        share = (token_weights != 0).astype(dtype)[:, None]
        hidden = jnp.where(share > 0, hidden, 0)
    losses = _queries(hidden, items, offset, labels, share, items, candidate_offset, labels)
    return reduce_losses(losses, token_weights, reduction)


@over_rows(
    hidden=0, items=0, offset=0, labels=0, share=0,
    every_item=WHOLE, every_offset=WHOLE, every_label=WHOLE,
)  # fmt: skip
def _queries(
    hidden: jax.Array,
    items: jax.Array,
    offset: jax.Array,
    labels: jax.Array,
    share: jax.Array | None,
    every_item: jax.Array,
    every_offset: jax.Array,
    every_label: jax.Array,
) -> jax.Array:
    """The loss of each query, over the items of the whole batch."""
    hits = labels[:, None] == every_label[None]
    return candidate_softmax(
        hidden, items[:, None], offset[:, None], every_item, every_offset, hits, share
    )
