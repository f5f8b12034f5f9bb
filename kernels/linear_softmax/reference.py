"""The equations, written plainly: what the kernels are tested against.

Everything here makes the whole [tokens, vocab] array of logits and leaves the gradient to JAX.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def linear_softmax_cross_entropy(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    *,
    bias: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    temperature: Any = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Loss and log-sum-exp, [...] each, by the equation in
    :mod:`jaxnets.kernels.linear_softmax.api`.

    ``temperature``: a number or [...]. A class of bias -inf is out.
    """
    inside = jnp.ones(weight.shape[0], bool) if bias is None else ~jnp.isneginf(bias)
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + jnp.where(inside, bias, 0)
    logits = logits / jnp.asarray(temperature)[..., None]
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    mean_logit = jnp.where(inside, logits, 0).sum(-1) / inside.sum()
    logits = jnp.where(inside, logits, -jnp.inf)
    log_sum_exp = jax.nn.logsumexp(logits, axis=-1)
    label_logits = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    loss = log_sum_exp - (1 - label_smoothing) * label_logits
    loss = loss - label_smoothing * mean_logit + z_loss * log_sum_exp**2
    return loss, log_sum_exp


def linear_sigmoid_cross_entropy(
    hidden: jax.Array,
    weight: jax.Array,
    true: jax.Array,
    factors: jax.Array,
    *,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Loss [...] by the equation in :mod:`jaxnets.kernels.linear_softmax.sigmoid`.

    ``true [..., vocab]`` bool, and the factor of each class where it is true, [..., vocab].
    """
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    of_true = -factors * jax.nn.log_sigmoid(logits)
    return jnp.where(true, of_true, -jax.nn.log_sigmoid(-logits)).sum(-1)
