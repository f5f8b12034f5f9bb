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
    kept_weights,
    read_rows,
    safe_ids,
    vocab_size_of,
)
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.pallas.contract import PallasOptions
from jaxnets.kernels.sampled_softmax.pallas import sampled_log_sum_exp
from jaxnets.kernels.sampled_softmax.xla import kept_tokens, target_mean, true_logits
from jaxnets.kernels.samplers.samples import CLASS_IDS, Samples


class Options(NamedTuple):
    """What shapes a sampled loss; static under ``jit``."""

    subtract_log_q: bool
    remove_accidental_hits: bool
    features_first: bool

    @property
    def vocab_axis(self) -> int:
        """Of a table."""
        return 1 if self.features_first else 0


def check(
    hidden: Any,
    weight: Any,
    bias: Any,
    labels: Any,
    samples: Any,
    token_weights: Any,
    reduction: str,
    ignore_index: int | None,
    features_first: bool,
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array, Samples, jax.Array | None]:
    """The first six as arrays; raises unless they fit, and what is known of them is in range."""
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    batch, vocab_size = hidden.shape[:-1], vocab_size_of(weight, features_first)
    token_weights = check_weights(token_weights, batch)
    check_reduction(reduction)
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    several = labels.ndim == hidden.ndim and labels.shape[:-1] == batch and labels.shape[-1] > 0
    of_each = token_weights[..., None] if several and token_weights is not None else token_weights
    check_labels(labels, labels.shape if several else batch, vocab_size, ignore_index, of_each)
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
    _check_ids(samples, token_weights, vocab_size)
    return hidden, weight, bias, labels, samples, token_weights


def _check_ids(samples: Samples, token_weights: jax.Array | None, vocab_size: int) -> None:
    """Raise if a candidate that counts is known to be out of range."""
    ids, counts = samples.ids, samples.log_expected_count
    if not checks.is_known(counts) or not checks.is_known(token_weights):
        return
    absent = np.isposinf(np.asarray(counts, np.float32))
    if token_weights is not None and ids.ndim > 1:
        absent |= (np.asarray(token_weights) == 0)[..., None]
    checks.check_range("samples.ids", ids, 0, vocab_size, "[0, vocab_size)", except_for=absent)


def leave_out(
    labels: jax.Array,
    token_weights: jax.Array | None,
    ignore_index: int | None,
    batch: tuple[int, ...],
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array] | tuple[None, None]:
    """Each true class's share of its token [..., num_true], and the weights [...] of the tokens.

    A label ``ignore_index`` is no class; a token of weight 0 has none, and one without any class
    gets weight 0. (None, None) where nothing can be left out.
    """
    kept = kept_weights(labels, token_weights, ignore_index, batch, dtype)
    if kept is None:
        return None, None
    labels = labels if labels.ndim > len(batch) else labels[..., None]
    present = jnp.broadcast_to((kept != 0)[..., None], labels.shape)
    if ignore_index is not None:
        present &= labels != ignore_index
    number = jnp.maximum(present.sum(-1, keepdims=True, dtype=jnp.int32), 1)
    return present.astype(dtype) / number.astype(dtype), kept


def candidates(
    options: Options,
    vocab_size: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    share: jax.Array | None,
    read: Callable | None = None,
) -> tuple:
    """Gathered and flattened: what ``xla.py`` takes.

    ``read(table, ids, features_first)`` reads weight and bias where they are parts of tables of
    ``vocab_size`` classes; ``share [..., num_true]`` is that of :func:`leave_out`.
    """
    flat = _flatten(vocab_size, hidden, labels, samples, share)
    hits = None
    if options.remove_accidental_hits:
        ids = flat.ids[None, None] if flat.ids.ndim == 1 else flat.ids[:, None]
        hits = (flat.own[:, :, None] == ids).any(1)
    true_offset, sampled_offset = _offsets(options, vocab_size, hidden, weight, bias, flat, read)
    true_rows, sampled_rows = _read(flat, weight, options.features_first, read)
    return flat.hidden, true_rows, true_offset, sampled_rows, sampled_offset, hits, flat.share


def fused_losses(
    call: PallasOptions,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    share: jax.Array | None,
) -> jax.Array:
    """The losses [tokens] of :func:`candidate_softmax`, by the kernel of ``pallas.py``."""
    vocab_size = weight.shape[options.vocab_axis]
    flat = _flatten(vocab_size, hidden, labels, samples, share)
    true_offset, offset = _offsets(options, vocab_size, hidden, weight, bias, flat)
    inside = flat.ids < vocab_size
    offset, ids = jnp.where(inside, offset, jnp.nan), jnp.where(inside, flat.ids, 0)
    own = flat.own if options.remove_accidental_hits else flat.own[:, :0]
    table, rows = weight, ids
    if options.features_first:  # the kernel reads rows: here they are, in the samples' order
        table, rows = read_rows(weight, ids, True), jnp.arange(ids.size, dtype=ids.dtype)
    sampled = sampled_log_sum_exp(call, flat.hidden, table, rows, ids, offset, own)
    true_rows = read_rows(weight, flat.labels, options.features_first)
    true = true_logits(flat.hidden, true_rows, true_offset, flat.share)
    losses = jnp.logaddexp(sampled, jax.nn.logsumexp(true, 1)) - target_mean(true, flat.share)
    return losses if flat.share is None else jnp.where(kept_tokens(flat.share), losses, 0)


class _Flat(NamedTuple):
    """Tokens in one axis; whatever stands where a token or a class is left out is made harmless."""

    hidden: jax.Array  # [tokens, features]
    labels: jax.Array  # [tokens, num_true], in [0, vocab_size]
    own: jax.Array  # [tokens, num_true]: the labels, -1 where there is no class
    ids: jax.Array  # [(tokens,) num_sampled], in [0, vocab_size]
    absent: jax.Array  # [(tokens,) num_sampled], bool: no candidate
    labels_count: jax.Array  # as ``labels``
    ids_count: jax.Array  # as ``ids``
    share: jax.Array | None  # [tokens, num_true]


def _flatten(
    vocab_size: int, hidden: jax.Array, labels: jax.Array, samples: Samples, share: jax.Array | None
) -> _Flat:
    batch, tokens = hidden.shape[:-1], math.prod(hidden.shape[:-1])
    num_true = labels.shape[-1] if labels.ndim > len(batch) else 1
    hidden = hidden.reshape(tokens, hidden.shape[-1])
    own = labels = safe_ids(labels, vocab_size).reshape(tokens, num_true)
    shape = samples.ids.shape if samples.ids.ndim == 1 else (tokens, samples.ids.shape[-1])
    ids, count = samples.ids.reshape(shape), samples.log_expected_count.reshape(shape)
    absent = jnp.isposinf(count)
    if share is not None:
        share = share.reshape(tokens, num_true)
        kept = kept_tokens(share)[:, None]
        hidden = jnp.where(kept, hidden, 0)
        own, labels = jnp.where(share > 0, labels, -1), jnp.where(share > 0, labels, 0)
        absent = absent if ids.ndim == 1 else absent | ~kept
    ids = jnp.where(absent, 0, safe_ids(ids, vocab_size))
    labels_count = samples.labels_log_expected_count.reshape(labels.shape)
    return _Flat(hidden, labels, own, ids, absent, labels_count, count, share)


def _offsets(
    options: Options,
    vocab_size: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    flat: _Flat,
    read: Callable | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The bias less the log-count, of the true classes and of the candidates.

    NaN where an id is out of bounds: the rows need not be.
    """
    dtype = accumulator_dtype(hidden, weight)
    if bias is None:
        biases = jnp.zeros(flat.labels.shape, dtype), jnp.zeros(flat.ids.shape, dtype)
    else:
        biases = _read(flat, bias, False, read)

    def offset(bias, ids, log_count):
        offset = jnp.where(ids < vocab_size, bias.astype(dtype), jnp.nan)
        if not options.subtract_log_q:
            return offset
        # A class that is never drawn is not corrected: its logit would be infinite.
        log_count = jnp.where(jnp.isneginf(log_count), 0, log_count)
        return offset - jax.lax.stop_gradient(log_count).astype(dtype)

    sampled = offset(biases[1], flat.ids, flat.ids_count)
    return offset(biases[0], flat.labels, flat.labels_count), jnp.where(
        flat.absent, -jnp.inf, sampled
    )


def _read(
    flat: _Flat, table: jax.Array, features_first: bool, read: Callable | None
) -> tuple[jax.Array, jax.Array]:
    """The rows, or biases, of the true classes and of the candidates.

    A whole table is read once, so that it has one gradient; any row where an id is out of bounds.
    """
    if read is not None:
        return read(table, flat.labels, features_first), read(table, flat.ids, features_first)
    ids = jnp.concatenate([flat.labels.reshape(-1), flat.ids.reshape(-1)])
    rows = read_rows(table, ids, features_first, mode="clip")
    true, sampled = jnp.split(rows, [flat.labels.size])
    return true.reshape(*flat.labels.shape, *rows.shape[1:]), sampled.reshape(
        *flat.ids.shape, *rows.shape[1:]
    )
