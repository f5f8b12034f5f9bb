"""The equations, written plainly, with all rows gathered; the gradient is left to JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.samplers.samples import Samples


def sampled_logits(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    samples: Samples,
    *,
    bias: jax.Array | None = None,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Logits of the true classes, [tokens, num_true], and of the sampled, [tokens, num_sampled].

    ``hidden [tokens, features]``, ``labels [tokens, num_true]``, ``samples.ids [num_sampled]`` or
    [tokens, num_sampled].
    """
    true = jnp.einsum("tf,tkf->tk", hidden, weight[labels])
    ids = jnp.broadcast_to(samples.ids, (*hidden.shape[:1], samples.ids.shape[-1]))
    sampled = jnp.einsum("tf,tsf->ts", hidden, weight[ids])
    if bias is not None:
        true, sampled = true + bias[labels], sampled + bias[ids]
    if subtract_log_q:
        true = true - samples.labels_log_expected_count
        sampled = sampled - samples.log_expected_count
    if remove_accidental_hits:
        hits = (labels[:, :, None] == ids[:, None, :]).any(1)
        sampled = jnp.where(hits, -jnp.inf, sampled)
    return true, sampled


def sampled_softmax_cross_entropy(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    samples: Samples,
    **options: Any,
) -> jax.Array:
    """Loss [tokens] by the equation in :mod:`jaxnets.kernels.sampled_softmax.api`."""
    true, sampled = sampled_logits(hidden, weight, labels, samples, **options)
    log_sum_exp = jax.nn.logsumexp(jnp.concatenate([true, sampled], 1), axis=1)
    return (log_sum_exp[:, None] - true).mean(1)


def noise_contrastive(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    samples: Samples,
    **options: Any,
) -> jax.Array:
    """Sum of the logistic losses, [tokens]: NCE and, without log q, negative sampling."""
    true, sampled = sampled_logits(hidden, weight, labels, samples, **options)
    target = 1 / labels.shape[1]
    true_loss = jnp.logaddexp(0, true) - target * true
    return true_loss.sum(1) + jnp.logaddexp(0, sampled).sum(1)


def generalized_bce(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, samples: Samples,
    calibration: float = 0.75, **options: Any,
) -> jax.Array:  # fmt: skip
    """gBCE, [tokens], as :func:`jaxnets.kernels.gbce_loss` has it."""
    true, sampled = _scores(hidden, weight, labels, samples, **options)
    number = (sampled > -jnp.inf).sum(1, keepdims=True)
    alpha = number / (len(weight) - 1)
    beta = alpha * (calibration * (1 - 1 / alpha) + 1 / alpha)
    noise = jnp.log1p(-jax.nn.sigmoid(sampled)).sum(1, keepdims=True)
    return (-(beta * jnp.log(jax.nn.sigmoid(true)) + noise) / (number + 1)).mean(1)


def bpr(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, samples: Samples, **options: Any
) -> jax.Array:
    """BPR, [tokens], as :func:`jaxnets.kernels.bpr_loss` has it."""
    true, sampled = _scores(hidden, weight, labels, samples, **options)
    right = jnp.log(jax.nn.sigmoid(true[:, :, None] - sampled[:, None])).sum(2)
    return (-right / (sampled > -jnp.inf).sum(1, keepdims=True)).mean(1)


def bpr_max(
    hidden: jax.Array, weight: jax.Array, labels: jax.Array, samples: Samples,
    score_regularization: float = 1.0, **options: Any,
) -> jax.Array:  # fmt: skip
    """BPR-max, [tokens], as :func:`jaxnets.kernels.bpr_max_loss` has it."""
    true, sampled = _scores(hidden, weight, labels, samples, **options)
    softmax = jnp.exp(sampled) / jnp.exp(sampled).sum(1, keepdims=True)
    right = (softmax[:, None] * jax.nn.sigmoid(true[:, :, None] - sampled[:, None])).sum(2)
    penalty = (softmax * jnp.where(sampled > -jnp.inf, sampled, 0) ** 2).sum(1, keepdims=True)
    return (-jnp.log(right) + score_regularization * penalty).mean(1)


def _scores(*arrays: Any, **options: Any) -> tuple[jax.Array, jax.Array]:
    return sampled_logits(*arrays, subtract_log_q=False, **options)


def in_batch_softmax_cross_entropy(
    hidden: jax.Array,
    items: jax.Array,
    labels: jax.Array,
    log_probability: jax.Array,
    extra: tuple[jax.Array, jax.Array, jax.Array],
    temperature: jax.Array,
    kept: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The losses [batch] of the queries and of the items, on whole logits.

    ``extra``: items, labels and log-probabilities. ``kept [batch]``: which pairs there are.
    """
    pairs, more = len(hidden), len(extra[1])
    scores = hidden @ jnp.concatenate([items, extra[0]]).T / temperature
    counts = jnp.concatenate([log_probability, extra[2]])
    same = labels[:, None] == jnp.concatenate([labels, extra[1]])
    out = same & ~jnp.eye(pairs, pairs + more, dtype=bool)
    there = jnp.concatenate([kept, jnp.ones(more, bool)])
    rows = jnp.where(out | ~there, -jnp.inf, scores - counts)
    columns = jnp.where(out[:, :pairs].T | ~kept, -jnp.inf, scores[:, :pairs].T)
    own = jnp.diagonal(scores)
    of_rows = jax.nn.logsumexp(rows, 1) - (own - log_probability)
    return of_rows, jax.nn.logsumexp(columns, 1) - own
