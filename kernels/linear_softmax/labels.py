"""The labels of tokens: one each, or several with weights; their logits, and their gradients.

Inside, weights add up to 1 a token: what they add up to is a factor of the token. So all that a
loss of several labels changes is the label's logit, which becomes the mean of theirs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxnets.kernels.checks import as_integers, in_range, is_known
from jaxnets.kernels.linear_softmax.sharded import own_logits
from jaxnets.kernels.linear_softmax.tiles import Options, add_at, label_logits
from jaxnets.kernels.losses import check_labels, check_weights, safe_ids
from jaxnets.kernels.vocab_sharding import VocabSharding


class SoftLabels(NamedTuple):
    """Several labels a token: [..., n] each, the weights adding up to 1, or all 0."""

    ids: jax.Array
    weights: jax.Array


Labels = jax.Array | SoftLabels
Gradients = tuple[jax.Array, jax.Array, jax.Array]


def check_soft_labels(
    labels: Any,
    label_weights: Any,
    batch: tuple[int, ...],
    num_classes: int,
    ignore_index: int | None,
    token_weights: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """``labels`` and ``label_weights``, [*batch, n] each; raises unless they fit.

    Where they are known, weights must be at least 0, and labels of others than 0 in range.
    """
    labels = as_integers("labels", labels, "integer class ids")
    if labels.ndim != len(batch) + 1 or labels.shape[:-1] != batch or not labels.shape[-1]:
        raise ValueError(
            f"labels must be [..., n] with label_weights, for tokens {batch} as hidden has them, "
            f"got shape {labels.shape}"
        )
    weights = check_weights(label_weights, labels.shape, "label_weights", "label")
    if not is_known(weights) or not is_known(token_weights):
        return labels, weights
    counted = np.asarray(weights, np.float64)
    if token_weights is not None:
        counted = np.where((np.asarray(token_weights) == 0)[..., None], 0, counted)
    wrong = ~(counted >= 0)
    if wrong.any():
        raise ValueError(f"label_weights must be at least 0, got {counted[wrong].flat[0]}")
    return check_labels(labels, labels.shape, num_classes, ignore_index, counted), weights


def soft_labels(
    ids: jax.Array,
    weights: jax.Array,
    kept: Any,
    ignore_index: int | None,
    vocab_size: int,
    num_classes: int,
) -> tuple[SoftLabels, jax.Array]:
    """The labels that count, and what their weights added up to, [...] as ``kept`` is.

    A weight is NaN where it is found out to be none.
    """
    weights = lax.stop_gradient(weights.astype(kept.dtype))
    counts = (kept != 0)[..., None]
    if ignore_index is not None:
        counts &= ids != ignore_index
    weights = jnp.where(counts, jnp.where(weights >= 0, weights, jnp.nan), 0)
    mass = weights.sum(-1)
    shares = weights / jnp.where(mass == 0, 1, mass)[..., None]
    return SoftLabels(safe_ids(ids, vocab_size, num_classes), shares), mass


def flat_labels(labels: Labels) -> Labels:
    """Of tokens [...], as those of [tokens]."""
    if isinstance(labels, SoftLabels):
        return SoftLabels(*(a.reshape(-1, a.shape[-1]) for a in labels))
    return labels.reshape(-1)


def labels_without(labels: Labels, left_out: jax.Array) -> Labels:
    """``labels``, those of tokens that are ``left_out [tokens]`` being no trouble."""
    if isinstance(labels, SoftLabels):
        return labels._replace(weights=jnp.where(left_out[:, None], 0, labels.weights))
    return jnp.where(left_out, 0, labels)


def local_labels(sharding: VocabSharding, labels: Labels, size: int) -> Labels:
    """Inside ``run``: ids into this device's ``size`` classes; another's are out of range."""
    if isinstance(labels, SoftLabels):
        return labels._replace(ids=sharding.local_ids(labels.ids, size)[0])
    return sharding.local_ids(labels, size)[0]


def are_classes(labels: Labels, vocab_size: int) -> jax.Array:
    """Which tokens have labels in range, [tokens]; one of weight 0 may be out of it."""
    if isinstance(labels, SoftLabels):
        return (in_range(labels.ids, vocab_size) | (labels.weights == 0)).all(-1)
    return in_range(labels, vocab_size)


def own_label_logits(
    options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: Labels
) -> jax.Array:
    """The logits [tokens] of ``labels``, ids of a device's own classes; of several, their mean.

    Anything where the one label is out of range; of several such a one counts for nothing.
    """
    if not isinstance(labels, SoftLabels):
        return label_logits(hidden, weight, bias, labels, options)[0]

    def add(total, label):
        ids, weights = label
        logits, _, _ = label_logits(hidden, weight, bias, ids, options)
        counts = in_range(ids, bias.shape[0]) & (weights != 0)
        return total + jnp.where(counts, weights * logits, 0), None

    zeros = jnp.zeros(hidden.shape[0], options.accumulator(hidden, weight))
    return lax.scan(add, zeros, (labels.ids.T, labels.weights.T))[0]


def of_all_devices(
    sharding: VocabSharding, labels: Labels, vocab_size: int, found: jax.Array
) -> jax.Array:
    """The logits of ``labels``, ids of all ``vocab_size`` classes, from each device's own.

    [tokens]; NaN where a label is out of range.
    """
    own = jnp.ones(found.shape, bool)
    if not isinstance(labels, SoftLabels):
        _, own = sharding.local_ids(labels, vocab_size // sharding.shards)
    logits = own_logits(sharding, own, found)
    return jnp.where(are_classes(labels, vocab_size), logits, jnp.nan)


def label_logits_of_all(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
) -> jax.Array:
    """The logits at ``labels``, ids of all classes, [tokens]; NaN where one is out of range."""
    local = local_labels(sharding, labels, bias.shape[0])
    own = own_label_logits(options, hidden, weight, bias, local)
    return of_all_devices(sharding, labels, sharding.shards * bias.shape[0], own)


def less_labels(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    factors: jax.Array,
    gradients: Gradients,
) -> Gradients:
    """``gradients`` less those of the labels' logits times ``factors [tokens]``.

    ``labels`` are ids of a device's own classes; one out of range has no effect.
    """
    if not isinstance(labels, SoftLabels):
        return _less_label(options, hidden, weight, bias, labels, factors, gradients)

    def less_one(gradients, label):
        ids, weights = label
        each = jnp.where(weights == 0, 0, factors * weights)
        return _less_label(options, hidden, weight, bias, ids, each, gradients), None

    return lax.scan(less_one, gradients, (labels.ids.T, labels.weights.T))[0]


def _less_label(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    gradients: Gradients,
) -> Gradients:
    hidden_gradient, weight_gradient, bias_gradient = gradients
    inside = in_range(labels, bias.shape[0])
    _, slope, label_rows = label_logits(hidden, weight, bias, labels, options)
    factors = jnp.where(inside, factors * slope, 0)
    hidden_gradient -= factors[:, None] * jnp.where(inside[:, None], label_rows, 0)
    labels = safe_ids(labels, bias.shape[0])
    rows = -factors[:, None] * hidden.astype(hidden_gradient.dtype)
    weight_gradient = add_at(weight_gradient, labels, rows, options)
    bias_gradient = bias_gradient.at[labels].add(-factors, mode="drop")
    return hidden_gradient, weight_gradient, bias_gradient


def mark_bad_labels(
    hidden_gradient: jax.Array, labels: Labels, vocab_size: int, unused: jax.Array
) -> jax.Array:
    """NaN for the tokens with a label that is out of range."""
    fine = unused | are_classes(labels, vocab_size)
    return jnp.where(fine[:, None], hidden_gradient, jnp.nan)
