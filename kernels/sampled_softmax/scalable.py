"""Cross-entropy over buckets of tokens and of the classes that they may score highest: SCE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.linear_softmax.top_k import linear_top_k
from jaxnets.kernels.losses import (
    Reduction,
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    leave_out,
    read_rows,
    reduce_losses,
    vocab_size_of,
)
from jaxnets.kernels.meshes import eager_gradients, placed_like, replicated
from jaxnets.kernels.numerics import accumulator_dtype, matmul
from jaxnets.kernels.rows.sharded import whole_rows
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding

# Logits that are computed at a time: so many whole buckets as they are.
_LOGITS = 2**20


class _Options(NamedTuple):
    """What shapes the loss; static under ``jit``."""

    num_buckets: int
    tokens_per_bucket: int
    classes_per_bucket: int
    mix: bool
    features_first: bool


def scalable_cross_entropy(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    key: jax.Array,
    *,
    classes_per_bucket: SupportsIndex = 256,
    num_buckets: SupportsIndex | None = None,
    tokens_per_bucket: SupportsIndex | None = None,
    mix: bool = True,
    bias: Float[ArrayLike, " vocab"] | None = None,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Softmax cross-entropy of tokens over the classes of their buckets: SCE.

    A bucket b has a random direction :math:`\beta_b`, the tokens :math:`X_b` whose hidden states
    and the classes :math:`C_b` whose rows go farthest along it: of those the tokens are likely to
    have their largest logits. Of a token i with the label y

    .. math::
        \text{loss}_i = \max_{b : i \in X_b} \log \sum_{v \in C_b \cup \{y\}} e^{o_v} - o_y,
        \qquad o_v = w_v \cdot h_i + b_v

    (Mezentsev et al. 2024, "Scalable Cross-Entropy Loss for Sequential Recommendations with Large
    Item Catalogs"). Each term is a part of the sum of the exact loss, so this one is
    never above it. Tokens of no bucket are left out of the step. To find the buckets takes a
    product of num_buckets x features x vocab, without a gradient and without its result whole in
    memory; the loss then costs what is in them. Evaluate with the exact loss,
    :func:`linear_softmax_cross_entropy`.

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [...], integers of any width in [0, vocab_size), or ``ignore_index``.
      key: a ``jax.random`` key, another at each step.
      classes_per_bucket: at least 1; where there are fewer classes, all.
      num_buckets: at least 1; None: twice the square root of the number of tokens.
      tokens_per_bucket: at least 1; None: the same, so that a token is in four buckets on average.
      mix: directions are random sums of hidden states, which lie where those do; else they are
        normal.
      bias: [vocab] or None; it has no part in the choice of classes, but one of bias -inf is out.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out, whatever its
        hidden state and label are.
      ignore_index: a label that leaves its token out, for example -1 for padding.
      reduction: "mean" (by weight, over the tokens that are in a bucket), "sum" or "none" (0 for a
        token of no bucket).
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is.
      sharding: over which axes of a mesh classes and tokens are split; None: neither. Buckets are
        of the tokens and classes of all devices, as on one: each device gathers the hidden states,
        looks for the classes of its share of the buckets among its own, and computes the losses of
        an equal share of them.

    Returns:
      The loss, a scalar or [...] for "none", in float32 (float64 for float64 input), 0 without
      tokens.

    Raises:
      TypeError: float labels, or integer hidden, weight or bias.
      ValueError: shapes that do not fit, or that the sharding does not divide, sizes below 1, or a
        label out of range where its value is known at trace time. Under ``jit`` one out of range
        gives NaN if its token is in a bucket.

    Example:
      >>> import jax, jax.numpy as jnp, numpy as np
      >>> states = np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32)
      >>> weight, labels = jnp.zeros((1000, 8)), jnp.zeros(256, jnp.int32)
      >>> loss = scalable_cross_entropy(
      ...     states, weight, labels, jax.random.key(1), classes_per_bucket=64
      ... )
      >>> bool(jnp.isclose(loss, jnp.log(64.0)))  # the exact loss is log 1000
      True
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    token_weights = check_weights(token_weights, batch)
    labels = check_labels(labels, batch, vocab_size, ignore_index, token_weights)
    check_reduction(reduction)
    tokens = labels.size
    usual = math.ceil(2 * math.sqrt(tokens))
    sizes: dict[str, Any] = {
        "num_buckets": usual or 1 if num_buckets is None else num_buckets,
        "tokens_per_bucket": usual or 1 if tokens_per_bucket is None else tokens_per_bucket,
        "classes_per_bucket": classes_per_bucket,
    }
    buckets, of_tokens, of_classes = (checks.as_int(n, size, 1) for n, size in sizes.items())
    options = _Options(
        buckets, min(of_tokens, tokens), min(of_classes, vocab_size), bool(mix),
        bool(features_first),
    )  # fmt: skip
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    return _loss(
        sharding, options, reduction, ignore_index,
        hidden, weight, bias, labels, token_weights, key,
    )  # fmt: skip


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("scalable_cross_entropy")
def _loss(
    sharding: VocabSharding,
    options: _Options,
    reduction: str,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    token_weights: jax.Array | None,
    key: jax.Array,
) -> jax.Array:
    batch, dtype = labels.shape, accumulator_dtype(hidden, weight)
    if not labels.size:
        return jnp.zeros(batch if reduction == "none" else (), dtype)
    given, vocab_size = labels, vocab_size_of(weight, options.features_first)
    hidden, labels, token_weights = _on_all(sharding, (hidden, labels, token_weights))
    kept, labels = leave_out(token_weights, labels, ignore_index, vocab_size, dtype)
    kept = jnp.ones(batch, dtype) if kept is None else kept
    there = (kept != 0).reshape(-1)
    hidden = jnp.where(there[:, None], hidden.reshape(labels.size, -1), 0)
    losses, chosen = _of_tokens(
        sharding, options, hidden, weight, bias, labels.reshape(-1), there, key
    )
    kept = jnp.where(chosen.reshape(batch), kept, 0)
    losses = reduce_losses(losses.reshape(batch), kept, reduction)
    if reduction != "none":
        return losses
    if sharding.is_split:
        return sharding.place(losses, sharding.token_spec)
    return placed_like(given, losses)


def _on_all(sharding: VocabSharding, arrays: Any) -> Any:
    """``arrays`` whole on every device, where axes are ``Explicit``."""
    if not sharding.is_split:
        return replicated(arrays)
    return jax.tree.map(lambda array: sharding.place(array, P()), arrays)


def _of_tokens(
    sharding: VocabSharding,
    options: _Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    kept: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The loss of each token, and whether it is in a bucket: [tokens] each."""
    dtype, tokens = accumulator_dtype(hidden, weight), labels.size
    constants = lax.stop_gradient((hidden, weight, bias))
    members, classes = _buckets(sharding, options, *constants, kept, key)

    def read(table, ids):
        if sharding.is_split:
            return whole_rows(sharding, options.features_first, table, ids)
        return read_rows(table, ids, options.features_first)

    def read_bias(ids):
        return jnp.zeros(ids.shape, dtype) if bias is None else read(bias, ids).astype(dtype)

    # Read at once, for one gradient of the whole table.
    ids = jnp.concatenate([labels, classes.reshape(-1)])
    rows = read(weight, ids)
    own, rows = rows[:tokens].astype(dtype), rows[tokens:].reshape(*classes.shape, -1)
    true = (hidden.astype(dtype) * own).sum(1) + read_bias(labels)

    @jax.checkpoint
    def in_bucket(bucket):
        """Of each of its tokens, [tokens_per_bucket]."""
        hidden, rows, offset, hits, true = bucket
        logits = jnp.where(hits, -jnp.inf, matmul(hidden, rows, (1, 1)) + offset[None])
        return jax.nn.logsumexp(jnp.append(logits, true[:, None], 1), 1) - true

    hits = (labels[members][:, :, None] == classes[:, None]) | ~kept[members][:, :, None]
    buckets = hidden[members], rows, read_bias(classes), hits, true[members]
    size = options.tokens_per_bucket * options.classes_per_bucket

    def on_device(buckets):
        return lax.map(in_bucket, buckets, batch_size=max(1, _LOGITS // size))

    # Differentiated by JAX: each device has buckets of its own, and sends nothing.
    shares = P((*sharding.token_axes, *sharding.vocab_axes))
    losses = _on_all(sharding, sharding.run(on_device, (shares,), shares, buckets)).reshape(-1)
    there = kept[members] & (jnp.arange(len(members)) < options.num_buckets)[:, None]
    members = jnp.where(there, members, tokens).reshape(-1)  # out of bounds: dropped
    # The largest of each token, the first of equal ones, and only that: its gradient is one's.
    largest = (
        jnp.full(tokens, -jnp.inf, dtype).at[members].max(lax.stop_gradient(losses), mode="drop")
    )
    slots = jnp.arange(members.size, dtype=jnp.int32)
    # Not <, for a loss of NaN is to be found.
    best = ~(losses < largest.at[members].get(mode="fill", fill_value=jnp.inf))
    slots = jnp.where(best, slots, members.size)
    first = jnp.full(tokens, members.size, jnp.int32).at[members].min(slots, mode="drop")
    return losses.at[first].get(mode="fill", fill_value=0), ~jnp.isneginf(largest)


def _buckets(
    sharding: VocabSharding,
    options: _Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    kept: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Tokens [buckets, tokens_per_bucket] and classes [buckets, classes_per_bucket].

    With ``num_buckets`` that the devices do not divide, some without a direction fill them up.
    """
    tokens, features = hidden.shape
    if options.mix:
        shares = jax.random.normal(key, (options.num_buckets, tokens), jnp.float32)
        directions = matmul(shares, hidden.astype(jnp.float32), (1, 0))
    else:
        directions = jax.random.normal(key, (options.num_buckets, features), jnp.float32)
    # Only where they point counts, and sums of many may be too large for 16 bits.
    directions /= jnp.maximum(jnp.abs(directions).max(1, keepdims=True), 1e-30)
    missing = -options.num_buckets % (sharding.shards * sharding.token_shards)
    directions = jnp.pad(directions, ((0, missing), (0, 0)))
    along = matmul(directions.astype(hidden.dtype), hidden, (1, 1))
    _, members = lax.top_k(jnp.where(kept[None], along, -jnp.inf), options.tokens_per_bucket)
    out = None if bias is None else jnp.where(jnp.isneginf(bias), bias, 0)
    _, classes = linear_top_k(
        directions.astype(weight.dtype), weight, options.classes_per_bucket, bias=out,
        features_first=options.features_first, sharding=sharding,
    )  # fmt: skip
    return members, _on_all(sharding, classes)
