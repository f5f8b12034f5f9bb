"""The arithmetic of the losses that rank a true class above the sampled ones, on gathered rows.

Each is a function of ``true [tokens, num_true]`` and ``sampled [tokens, num_sampled]``, the logits,
and ``absent [tokens, num_sampled]``: a candidate that a token does not have, whose logit is 0 here.
It gives the loss [tokens, num_true] of each true class against all of its token's candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.sampled_softmax.xla import candidate_logits, target_mean


@cache
def ranking(loss: Callable, *options: Hashable) -> Callable:
    """``loss(*options, true, sampled, absent)`` as a function of gathered rows, as in ``xla.py``.

    The same object for the same options, so that ``jit`` knows it again.
    """

    def of_rows(*gathered: Any) -> jax.Array:
        share = gathered[-1]
        true, sampled = candidate_logits(*gathered)
        if share is not None:  # -infinity is no number to subtract from
            true = jnp.where(share > 0, true, 0)
        absent = jnp.isneginf(sampled)
        return target_mean(loss(*options, true, jnp.where(absent, 0, sampled), absent), share)

    return of_rows


def generalized_bce(
    calibration: float, vocab_size: int, true: jax.Array, sampled: jax.Array, absent: jax.Array
) -> jax.Array:
    """gBCE. Its power beta is 1 - t (1 - alpha), written so that no alpha divides by 0."""
    number = _number(absent, true.dtype)
    power = 1 - calibration * (1 - number / max(vocab_size - 1, 1))
    noise = jnp.where(absent, 0, jax.nn.softplus(sampled)).sum(1, keepdims=True)
    return (power * jax.nn.softplus(-true) + noise) / (number + 1)


def bpr(true: jax.Array, sampled: jax.Array, absent: jax.Array) -> jax.Array:
    """BPR, the mean over a token's candidates; 0 where it has none."""
    wrong = jax.nn.softplus(sampled[:, None] - true[:, :, None])
    total = jnp.where(absent[:, None], 0, wrong).sum(2)
    return total / jnp.maximum(_number(absent, true.dtype), 1)


def bpr_max(
    regularization: float, true: jax.Array, sampled: jax.Array, absent: jax.Array
) -> jax.Array:
    """BPR-max; the log of its sum of products is a log-sum-exp of sums. 0 without candidates."""
    alone = absent.all(1, keepdims=True)
    logits = jnp.where(absent & ~alone, -jnp.inf, sampled)  # so that some are finite
    right = jax.nn.log_sigmoid(true[:, :, None] - sampled[:, None])
    agreed = jax.nn.logsumexp(logits[:, None] + right, 2)
    losses = jax.nn.logsumexp(logits, 1, keepdims=True) - agreed
    penalty = (jax.nn.softmax(logits, 1) * sampled**2).sum(1, keepdims=True)
    return jnp.where(alone, 0, losses + regularization * penalty)


def _number(absent: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """How many candidates each token has, [tokens, 1]."""
    return (~absent).sum(1, keepdims=True).astype(dtype)
