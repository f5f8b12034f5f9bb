"""From the arguments of a sampled loss to gathered rows: checks, what is left out, look-ups."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import checks
from jaxnets.kernels.losses import (
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    safe_ids,
    token_weights,
)
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.pallas.fused_matmul import Call
from jaxnets.kernels.sampled_softmax.pallas import sampled_log_sum_exp
from jaxnets.kernels.sampled_softmax.xla import kept_tokens, target_logits, true_logits
from jaxnets.kernels.samplers.samples import CLASS_IDS, Samples


def check(
    hidden: Any,
    weight: Any,
    bias: Any,
    labels: Any,
    samples: Any,
    weights: Any,
    reduction: str,
    ignore_index: int | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, Samples, jax.Array | None]:
    """The first six as arrays; raises unless they fit, and what is known of them is in range."""
    hidden, weight, bias = check_projection(hidden, weight, bias)
    batch, vocab = hidden.shape[:-1], weight.shape[0]
    weights = check_weights(weights, batch)
    check_reduction(reduction)
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    several = labels.ndim == hidden.ndim and labels.shape[:-1] == batch and labels.shape[-1] > 0
    of_each = weights[..., None] if several and weights is not None else weights
    check_labels(labels, labels.shape if several else batch, vocab, ignore_index, of_each)
    samples = Samples.of(samples)
    if samples.ids.ndim < 1 or samples.ids.shape[:-1] not in ((), batch):
        raise ValueError(
            "samples.ids must be [num_sampled] or [..., num_sampled] with hidden's batch "
            f"{batch}, got {samples.ids.shape}"
        )
    for name, ids in (("log_expected_count", samples.ids), ("labels_log_expected_count", labels)):
        shape = getattr(samples, name).shape
        if shape != ids.shape:
            raise ValueError(f"samples.{name} must have shape {ids.shape}, got {shape}")
    _check_ids(samples, weights, vocab)
    return hidden, weight, bias, labels, samples, weights


def _check_ids(samples: Samples, weights: jax.Array | None, vocab: int) -> None:
    """Raise if a candidate that counts is known to be out of range."""
    ids, counts = samples.ids, samples.log_expected_count
    if not checks.is_known(counts) or not checks.is_known(weights):
        return
    absent = np.isposinf(np.asarray(counts, np.float32))
    if weights is not None and ids.ndim > 1:
        absent |= (np.asarray(weights) == 0)[..., None]
    checks.check_range("samples.ids", ids, 0, vocab, "[0, vocab)", except_for=absent)


def leave_out(
    labels: jax.Array,
    weights: jax.Array | None,
    ignore_index: int | None,
    batch: tuple[int, ...],
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Each true class's share of its token [..., num_true], and the weights [...] of the tokens.

    A label ``ignore_index`` is no class; a token of weight 0 has none, and one without any class
    gets weight 0. (None, None) where nothing can be left out.
    """
    kept = token_weights(labels, weights, ignore_index, batch, dtype)
    if kept is None:
        return None, None
    labels = labels if labels.ndim > len(batch) else labels[..., None]
    present = jnp.broadcast_to((kept != 0)[..., None], labels.shape)
    if ignore_index is not None:
        present &= labels != ignore_index
    number = jnp.maximum(present.sum(-1, keepdims=True, dtype=jnp.int32), 1)
    return present.astype(dtype) / number.astype(dtype), kept


def candidates(
    subtract: bool,
    remove: bool,
    vocab: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    read: Callable | None = None,
    share: jax.Array | None = None,
) -> tuple:
    """Gathered and flattened: what ``xla.py`` takes.

    ``read(table, ids)`` reads weight and bias, which may be parts of tables of ``vocab`` classes;
    ``share [..., num_true]`` is that of :func:`leave_out`.
    """
    read = read or read_rows
    flat = _flatten(vocab, hidden, labels, samples, share)
    hits = None
    if remove:
        ids = flat.ids[None, None] if flat.ids.ndim == 1 else flat.ids[:, None]
        hits = (flat.own[:, :, None] == ids).any(1)
    true_offset, sampled_offset = _offsets(subtract, hidden, weight, bias, flat, read)
    true_rows, sampled_rows = read(weight, flat.labels), read(weight, flat.ids)
    return flat.hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits, flat.share


def fused_losses(
    call: Call,
    subtract: bool,
    remove: bool,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    share: jax.Array | None,
) -> jax.Array:
    """The losses [tokens] of :func:`candidate_softmax`, by the kernel of ``pallas.py``."""
    vocab = weight.shape[0]
    flat = _flatten(vocab, hidden, labels, samples, share)
    true_offset, offset = _offsets(subtract, hidden, weight, bias, flat, read_rows)
    inside = flat.ids < vocab
    offset, ids = jnp.where(inside, offset, jnp.nan), jnp.where(inside, flat.ids, 0)
    hits = flat.own if remove else flat.own[:, :0]
    sampled = sampled_log_sum_exp(call, flat.hidden, weight, ids, offset, hits)
    true = true_logits(flat.hidden, read_rows(weight, flat.labels), true_offset, flat.share)
    losses = jnp.logaddexp(sampled, jax.nn.logsumexp(true, 1)) - target_logits(true, flat.share)
    return losses if flat.share is None else jnp.where(kept_tokens(flat.share), losses, 0)


class _Flat(NamedTuple):
    """Tokens in one axis; whatever stands where a token or a class is left out is made harmless."""

    hidden: jax.Array  # [tokens, features]
    labels: jax.Array  # [tokens, num_true], in [0, vocab]
    own: jax.Array  # [tokens, num_true]: the labels, -1 where there is no class
    ids: jax.Array  # [(tokens,) num_sampled], in [0, vocab]
    absent: jax.Array  # [(tokens,) num_sampled], bool: no candidate
    labels_count: jax.Array  # as ``labels``
    ids_count: jax.Array  # as ``ids``
    share: jax.Array | None  # [tokens, num_true]


def _flatten(
    vocab: int, hidden: jax.Array, labels: jax.Array, samples: Samples, share: jax.Array | None
) -> _Flat:
    batch, tokens = hidden.shape[:-1], math.prod(hidden.shape[:-1])
    num_true = labels.shape[-1] if labels.ndim > len(batch) else 1
    hidden = hidden.reshape(tokens, hidden.shape[-1])
    own = labels = safe_ids(labels, vocab).reshape(tokens, num_true)
    shape = samples.ids.shape if samples.ids.ndim == 1 else (tokens, samples.ids.shape[-1])
    ids, count = samples.ids.reshape(shape), samples.log_expected_count.reshape(shape)
    absent = jnp.isposinf(count)
    if share is not None:
        share = share.reshape(tokens, num_true)
        kept = kept_tokens(share)[:, None]
        hidden = jnp.where(kept, hidden, 0)
        own, labels = jnp.where(share > 0, labels, -1), jnp.where(share > 0, labels, 0)
        absent = absent if ids.ndim == 1 else absent | ~kept
    ids = jnp.where(absent, 0, safe_ids(ids, vocab))
    labels_count = samples.labels_log_expected_count.reshape(labels.shape)
    return _Flat(hidden, labels, own, ids, absent, labels_count, count, share)


def _offsets(
    subtract: bool,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    flat: _Flat,
    read: Callable,
) -> tuple[jax.Array, jax.Array]:
    """The bias less the log-count, of the true classes and of the candidates."""
    dtype = accumulator_dtype(hidden, weight)

    def offset(ids, log_count):
        offset = jnp.zeros(ids.shape, dtype) if bias is None else read(bias, ids).astype(dtype)
        if not subtract:
            return offset
        # A class that is never drawn is not corrected: its logit would be infinite.
        log_count = jnp.where(jnp.isneginf(log_count), 0, log_count)
        return offset - jax.lax.stop_gradient(log_count).astype(dtype)

    sampled = offset(flat.ids, flat.ids_count)
    return offset(flat.labels, flat.labels_count), jnp.where(flat.absent, -jnp.inf, sampled)


def read_rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    """``table[ids]``, NaN where an id is out of range."""
    return table.at[ids].get(mode="fill", fill_value=jnp.nan)
