"""The arithmetic of the sampled losses, on gathered rows: one function, forward, backward.

``hidden [tokens, features]``; ``true_rows [tokens, num_true, features]`` and ``true_offset
[tokens, num_true]``; ``sampled_rows [num_sampled, features]`` and ``sampled_offset [num_sampled]``,
shared, or each with a leading [tokens]; ``hits [tokens, num_sampled]`` bool or None: what
a token leaves out. An offset is the bias less the log-count.

``share [tokens, num_true]`` is each true class's part of its token's target: they sum to 1, a class
of share 0 is none, and a token without any is left out. None: 1 / num_true each.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.dispatch import target
from jaxnets.kernels.numerics import accumulator_dtype, matmul, result_dtype


def candidate_logits(
    hidden: jax.Array,
    true_rows: jax.Array,
    true_offset: jax.Array,
    sampled_rows: jax.Array,
    sampled_offset: jax.Array,
    hits: jax.Array | None,
    share: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Logits of the true classes, [tokens, num_true], and of the samples, [tokens, num_sampled].

    -inf where there is no class; a token left out has true logits of 0.
    """
    true = true_logits(hidden, true_rows, true_offset, share)
    if sampled_rows.ndim == 2:
        sampled = matmul(hidden, sampled_rows, (1, 1)) + sampled_offset[None]
    else:
        sampled = _einsum("tf,tsf->ts", hidden, sampled_rows) + sampled_offset
    return true, (sampled if hits is None else jnp.where(hits, -jnp.inf, sampled))


def true_logits(
    hidden: jax.Array, true_rows: jax.Array, true_offset: jax.Array, share: jax.Array | None
) -> jax.Array:
    """The first of :func:`candidate_logits`."""
    dtype = accumulator_dtype(hidden, true_rows)
    true = (hidden.astype(dtype)[:, None] * true_rows.astype(dtype)).sum(2) + true_offset
    if share is None:
        return true
    return jnp.where(
        kept_tokens(share)[:, None], jnp.where(share > 0, true, -jnp.inf), jnp.zeros_like(true)
    )


def target_mean(each: jax.Array, share: jax.Array | None) -> jax.Array:
    """The mean by share, [tokens], of what each true class has, [tokens, num_true]."""
    if share is None:
        return each.mean(1)
    return (share * jnp.where(share > 0, each, 0)).sum(1)


def kept_tokens(share: jax.Array) -> jax.Array:
    """Which tokens, [tokens], have a true class."""
    return (share > 0).any(1)


def candidate_logistic(
    hidden: jax.Array,
    true_rows: jax.Array,
    true_offset: jax.Array,
    sampled_rows: jax.Array,
    sampled_offset: jax.Array,
    hits: jax.Array | None,
    share: jax.Array | None,
) -> jax.Array:
    """Loss [tokens] of a logistic regression each: a token's own class, or noise."""
    true, sampled = candidate_logits(
        hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits, share
    )
    noise = jax.nn.softplus(true)
    if share is not None:
        noise = jnp.where(share > 0, noise, 0)
    return noise.sum(1) - target_mean(true, share) + jax.nn.softplus(sampled).sum(1)


@jax.custom_vjp
def candidate_softmax(
    hidden: jax.Array,
    true_rows: jax.Array,
    true_offset: jax.Array,
    sampled_rows: jax.Array,
    sampled_offset: jax.Array,
    hits: jax.Array | None,
    share: jax.Array | None,
) -> jax.Array:
    """Loss [tokens]: log-sum-exp of all logits less the true ones by their shares."""
    return _forward(hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits, share)[0]


def _forward(
    hidden: jax.Array,
    true_rows: jax.Array,
    true_offset: jax.Array,
    sampled_rows: jax.Array,
    sampled_offset: jax.Array,
    hits: jax.Array | None,
    share: jax.Array | None,
) -> tuple[jax.Array, tuple]:
    true, sampled = candidate_logits(
        hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits, share
    )
    row_max = jnp.maximum(true.max(1), sampled.max(1, initial=-jnp.inf))
    e = jnp.exp(sampled - row_max[:, None])
    true_e = jnp.exp(true - row_max[:, None])
    total = e.sum(1) + true_e.sum(1)
    loss = row_max + jnp.log(total) - target_mean(true, share)
    scale = 1 / total
    if share is not None:
        loss, scale = (jnp.where(kept_tokens(share), x, 0) for x in (loss, scale))
    true_gradient = true_e * scale[:, None] - (1 / true.shape[1] if share is None else share)
    # As in xla_one_pass.py: the softmax is e / total, and 1 / total goes into an operand.
    residuals = (hidden, true_rows, sampled_rows, e.astype(hidden.dtype), scale, true_gradient)
    return loss, (*residuals, jnp.zeros((0,) * sampled_offset.ndim, sampled_offset.dtype))


def _backward(residuals: tuple, cotangent: jax.Array) -> tuple[jax.Array | None, ...]:
    hidden, true_rows, sampled_rows, e, scale, true_gradient, offset_like = residuals
    dtype = accumulator_dtype(hidden, true_rows)
    wide = hidden.astype(dtype)
    true_gradient = cotangent[:, None] * true_gradient
    scale = cotangent * scale
    scaled = (scale[:, None] * wide).astype(hidden.dtype)
    if sampled_rows.ndim == 2:
        hidden_gradient = matmul(e, sampled_rows, (1, 0))
        sampled_gradient = matmul(e, scaled, (0, 0))
    else:
        hidden_gradient = _einsum("ts,tsf->tf", e, sampled_rows)
        sampled_gradient = _einsum("ts,tf->tsf", e, scaled)
    if target().platform == "tpu":
        # XLA would make the sum below in a matmul above: in more cycles, and twice the time to
        # compile. On a CPU reading e anew costs a tenth.
        e = lax.optimization_barrier(e)
    e = e.astype(dtype)
    offset_gradient = scale @ e if offset_like.ndim == 1 else scale[:, None] * e
    hidden_gradient = hidden_gradient * scale[:, None]
    hidden_gradient += (true_gradient[:, :, None] * true_rows.astype(dtype)).sum(1)
    true_rows_gradient = true_gradient[:, :, None] * wide[:, None]
    return (
        hidden_gradient.astype(hidden.dtype),
        true_rows_gradient.astype(true_rows.dtype),
        true_gradient,
        sampled_gradient.astype(sampled_rows.dtype),
        offset_gradient,
        None,
        None,
    )


candidate_softmax.defvjp(_forward, _backward)


def _einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    dtype = result_dtype(a, b)
    return jnp.einsum(
        subscripts, a.astype(dtype), b.astype(dtype), preferred_element_type=accumulator_dtype(a, b)
    )
