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
