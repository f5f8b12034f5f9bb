"""Rows of a table that is split over devices, and the sampled loss over them.

A row is read by the device that has it and summed over the shards with the zeros of the others, so
what goes over the wire is the rows: (samples + tokens) x features, whatever the vocabulary.

There are two ways to train. :func:`sharded_sampled_softmax_cross_entropy` on the whole tables has a
dense gradient on each device's classes, which costs memory but is not sent. With a large vocabulary
let the gradient be rows: :func:`sharded_gather_rows`, the same loss on the small table (a sharding
without ``vocab``), and ``jaxnets.optim.sharded_update``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.losses import check_ignore_index, reduce_losses, safe_ids, token_weights
from jaxnets.kernels.meshes import eager_gradients
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.rows.sharded import read_sharded
from jaxnets.kernels.sampled_softmax.candidates import candidates, check
from jaxnets.kernels.sampled_softmax.xla import candidate_softmax
from jaxnets.kernels.samplers.samples import Samples
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def sharded_sampled_softmax_cross_entropy(
    sharding: VocabSharding,
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"],
    bias: Float[ArrayLike, " vocab"] | None,
    labels: Integer[ArrayLike, "..."] | Sequence,
    samples: Samples,
    *,
    subtract_log_q: bool = True,
    remove_accidental_hits: bool = True,
    weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: str = "mean",
) -> Float[Array, "..."]:
    """:func:`sampled_softmax_cross_entropy` of arrays that are split over devices.

    Value and gradients are those of one device up to rounding. Each device computes the loss of its
    tokens over all samples: the axes of the vocabulary save memory here, not arithmetic.

    Args:
      sharding: over which axes classes and tokens are split.
      hidden: [..., features], its first axis split over ``sharding.tokens``.
      weight: [vocab, features], split over ``sharding.vocab``.
      bias: [vocab], split likewise, or None.
      labels: [...] or [..., num_true], split as ``hidden``.
      samples: drawn with one key on all devices, ids [num_sampled].
      weights: [...], as ``hidden`` without features; 0 leaves a token out without a trace.
      ignore_index: a label that leaves its token out, where each has one.
      subtract_log_q, remove_accidental_hits, reduction: of :func:`sampled_softmax_cross_entropy`.

    Returns:
      The loss, a scalar on all devices or [...], in float32 (float64 for float64 input).

    Raises:
      TypeError, ValueError: as on one device; samples for each token; or a sharding that does not
        fit mesh and arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import LogUniform, sample
      >>> sharding = VocabSharding(jax.make_mesh((1, 1), ("data", "vocab")), "vocab", "data")
      >>> labels = jnp.array([3, 5])
      >>> samples = sample(LogUniform(100), jax.random.key(0), 100, labels)
      >>> loss = sharded_sampled_softmax_cross_entropy(
      ...     sharding, jnp.ones((2, 4)), jnp.zeros((100, 4)), None, labels, samples
      ... )
      >>> bool(jnp.isclose(loss, jnp.log(100.0)))
      True
    """
    sharding = as_sharding(sharding)
    ignore_index = check_ignore_index(ignore_index)
    arrays = check(hidden, weight, bias, labels, samples, weights, reduction, ignore_index)
    of_tokens, table, _, classes, samples, _ = arrays
    if ignore_index is not None and classes.ndim == of_tokens.ndim:
        raise ValueError(
            f"ignore_index takes one label a token over devices, got labels {classes.shape}; leave "
            "tokens out by weights"
        )
    if samples.ids.ndim != 1:
        raise ValueError(
            f"samples.ids must be [num_sampled], shared by all tokens, got {samples.ids.shape}"
        )
    sharding.check(table.shape[0], of_tokens.shape[:-1])
    static = sharding, subtract_log_q, remove_accidental_hits
    return _loss(static, reduction, ignore_index, *arrays)


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("sharded_sampled_softmax_cross_entropy")
def _loss(
    static: tuple,
    reduction: str,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
    weights: jax.Array | None,
) -> jax.Array:
    dtype, batch = accumulator_dtype(hidden, weight), hidden.shape[:-1]
    if not labels.size:
        return jnp.zeros(batch if reduction == "none" else (), dtype)
    hidden, labels, weights = static[0].place_tokens(hidden, labels, weights)
    kept = token_weights(labels, weights, ignore_index, batch, dtype)
    if kept is not None:
        # A token that is left out leaves no trace, whatever stands there.
        out = kept == 0
        of_labels = jnp.expand_dims(out, range(out.ndim, labels.ndim))
        counts = jnp.where(of_labels, 0, samples.labels_log_expected_count)
        samples = samples._replace(labels_log_expected_count=counts)
        hidden, labels = jnp.where(out[..., None], 0, hidden), jnp.where(of_labels, 0, labels)
    labels = safe_ids(labels, weight.shape[0])
    losses = _per_token(static, hidden, weight, bias, labels, samples)
    return reduce_losses(losses, kept, reduction)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_token(
    static: tuple,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
) -> jax.Array:
    """Losses [...]; ``shard_map`` is not differentiated, so its sums are ours."""
    return _forward(static, hidden, weight, bias, labels, samples)[0]


def _specs(sharding: VocabSharding) -> tuple[P, ...]:
    """Of ``(hidden, true rows and offsets, sampled rows and offsets, hits, share)``."""
    tokens = sharding.token_spec
    return tokens, tokens, tokens, P(), P(), tokens, tokens


def _forward(
    static: tuple,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    samples: Samples,
) -> tuple[jax.Array, tuple]:
    sharding, subtract, remove = static
    vocab = weight.shape[0]

    def on_device(hidden, weight, bias, labels, samples):
        read = partial(read_sharded, sharding, vocab)
        gathered = candidates(subtract, remove, vocab, hidden, weight, bias, labels, samples, read)
        return candidate_softmax(*gathered).reshape(hidden.shape[:-1]), gathered

    tokens, table = sharding.token_spec, sharding.table_spec
    whole: Any = P()
    in_specs = (tokens, table, table, tokens, Samples(whole, whole, tokens, whole))
    out_specs = (tokens, _specs(sharding))
    losses, gathered = sharding.run(
        on_device, in_specs, out_specs, hidden, weight, bias, labels, samples
    )
    return losses, (gathered, weight, bias, labels, samples.ids)


def _backward(
    static: tuple, residuals: tuple, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    sharding = static[0]

    def on_device(residuals, cotangent):
        gathered, weight, bias, labels, ids = residuals
        _, transposed = jax.vjp(candidate_softmax, *gathered)
        d_hidden, *true, sampled, sampled_offset, _, _ = transposed(cotangent.reshape(-1))
        # Each token's own classes with its gradients of them, from all devices; not their sums,
        # which would have the size of the vocabulary.
        labels = labels.reshape(true[1].shape)
        if sharding.tokens:
            labels, *true = (
                lax.all_gather(a, sharding.tokens, tiled=True) for a in (labels, *true)
            )
        sampled, sampled_offset = sharding.sum_over_tokens((sampled, sampled_offset))

        def scatter(table, true, sampled):
            if table is None:
                return None
            dense = jnp.zeros(table.shape, accumulator_dtype(table))
            for at, values in ((ids, sampled), (labels, true)):
                local, _ = sharding.local_ids(at, table.shape[0])
                dense = dense.at[local].add(values.astype(dense.dtype), mode="drop")
            return dense.astype(table.dtype)

        return d_hidden, scatter(weight, true[0], sampled), scatter(bias, true[1], sampled_offset)

    tokens, table = sharding.token_spec, sharding.table_spec
    in_specs = ((_specs(sharding), table, table, tokens, P()), tokens)
    d_hidden, d_weight, d_bias = sharding.run(
        on_device, in_specs, (tokens, table, table), residuals, cotangent
    )
    shape = (*cotangent.shape, d_hidden.shape[-1])
    return d_hidden.reshape(shape), d_weight, d_bias, None, None


_per_token.defvjp(_forward, _backward)
