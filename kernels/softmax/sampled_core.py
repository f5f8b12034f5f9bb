"""The arithmetic of the sampled losses, on gathered rows: one function, forward, backward.

``hidden [tokens, features]``; ``true_rows [tokens, num_true, features]`` and ``true_offset
[tokens, num_true]``; ``sampled_rows [num_sampled, features]`` and ``sampled_offset [num_sampled]``,
shared, or each with a leading [tokens]; ``hits [tokens, num_sampled]`` bool or None: what
a token leaves out. An offset is the bias less the log-count.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnets.kernels.softmax.tiles import accumulator_dtype, matmul


def candidate_logits(hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits):
    """Logits of the true classes, [tokens, num_true], and of the samples, [tokens, num_sampled]."""
    dtype = accumulator_dtype(hidden, true_rows)
    true = (hidden.astype(dtype)[:, None] * true_rows.astype(dtype)).sum(2) + true_offset
    if sampled_rows.ndim == 2:
        sampled = matmul(hidden, sampled_rows, (1, 1))
    else:
        sampled = jnp.einsum("tf,tsf->ts", hidden, sampled_rows, preferred_element_type=dtype)
    sampled = sampled + sampled_offset
    return true, (sampled if hits is None else jnp.where(hits, -jnp.inf, sampled))


@jax.custom_vjp
def candidate_softmax(hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits):
    """Loss [tokens]: log-sum-exp of all logits less the mean true logit."""
    loss, _ = _forward(hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits)
    return loss


def _forward(hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits):
    true, sampled = candidate_logits(
        hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits
    )
    row_max = jnp.maximum(true.max(1), sampled.max(1))
    e = jnp.exp(sampled - row_max[:, None])
    true_e = jnp.exp(true - row_max[:, None])
    total = e.sum(1) + true_e.sum(1)
    loss = row_max + jnp.log(total) - true.mean(1)
    true_gradient = true_e / total[:, None] - 1 / true.shape[1]
    # As in one_pass.py: the softmax is e / total, and 1 / total goes into an operand.
    residuals = (hidden, true_rows, sampled_rows, e.astype(hidden.dtype), 1 / total, true_gradient)
    return loss, (*residuals, jnp.zeros((0,) * sampled_offset.ndim, sampled_offset.dtype))


def _backward(residuals, cotangent):
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
        hidden_gradient = jnp.einsum("ts,tsf->tf", e, sampled_rows, preferred_element_type=dtype)
        sampled_gradient = jnp.einsum("ts,tf->tsf", e, scaled, preferred_element_type=dtype)
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
    )


candidate_softmax.defvjp(_forward, _backward)
