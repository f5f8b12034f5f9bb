"""The exact loss with its vocabulary split over the devices of a mesh.

Each device runs an engine of ``per_token.py`` on its own classes. Over the wire go, for a token,

- forward, along the axes of the vocabulary: a maximum, a sum of exponentials and a label's logit;
- backward, along the same: the gradient of its hidden state.

That does not depend on the size of the vocabulary. Where the tokens are split over an axis of their
own, the gradient of a device's classes is summed along it, as data parallelism must for a dense
gradient; with the vocabulary split over all axes of the mesh there is no such sum, and nothing that
grows with the vocabulary is ever sent. (Compare Shoeybi et al. 2019, "Megatron-LM", section 3.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.linear_softmax.api import check_options, choose_engine
from jaxnets.kernels.linear_softmax.per_token import (
    Statistics,
    factors_of,
    losses_of,
    mark_bad_labels,
    without_unused,
)
from jaxnets.kernels.linear_softmax.tiles import Options, class_count
from jaxnets.kernels.losses import (
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    leave_out,
    reduce_losses,
)
from jaxnets.kernels.meshes import eager_gradients
from jaxnets.kernels.numerics import accumulator_dtype, log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def sharded_linear_softmax_cross_entropy(
    sharding: VocabSharding,
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"],
    bias: Float[ArrayLike, " vocab"] | None,
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    *,
    weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str = "mean",
    vocab_tile: int = 1024,
    implementation: str | None = None,
) -> Float[Array, "..."]:
    """:func:`linear_softmax_cross_entropy` of arrays that are split over devices.

    Value and gradients are those of one device up to rounding. The gradients are split as their
    arrays are.

    Args:
      sharding: over which axes classes and tokens are split.
      hidden: [..., features], float, its first axis split over ``sharding.tokens``.
      weight: [vocab, features], float, split over ``sharding.vocab``.
      bias: [vocab], split likewise, or None. A class of bias -inf is out: pad with such where the
        vocabulary is no multiple of the shards.
      labels: [...], as ``hidden`` without features.
      weights: [...], as ``labels``.
      ignore_index, label_smoothing, z_loss, soft_cap, reduction, vocab_tile, implementation: of
        :func:`linear_softmax_cross_entropy`.

    Returns:
      The loss, a scalar on all devices or [...], in float32 (float64 for float64 input).

    Raises:
      TypeError, ValueError: as on one device; or a sharding that does not fit mesh and arrays.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> sharding = VocabSharding(jax.make_mesh((1, 1), ("data", "vocab")), "vocab", "data")
      >>> labels = jnp.zeros(4, jnp.int32)
      >>> loss = sharded_linear_softmax_cross_entropy(
      ...     sharding, jnp.ones((4, 8)), jnp.zeros((10, 8)), None, labels
      ... )
      >>> bool(jnp.isclose(loss, jnp.log(10.0)))
      True
    """
    sharding = as_sharding(sharding)
    hidden, weight, bias = check_projection(hidden, weight, bias)
    ignore_index = check_ignore_index(ignore_index)
    weights = check_weights(weights, hidden.shape[:-1])
    labels = check_labels(labels, hidden.shape[:-1], weight.shape[0], ignore_index, weights)
    check_reduction(reduction)
    options = check_options(label_smoothing, z_loss, soft_cap, vocab_tile=vocab_tile)
    sharding.check(weight.shape[0], hidden.shape[:-1])
    tokens, classes = labels.size // sharding.token_shards, weight.shape[0] // sharding.shards
    engine = choose_engine(hidden, weight, tokens, classes, implementation)
    static = sharding, engine, options
    return _loss(static, reduction, ignore_index, hidden, weight, bias, labels, weights)


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("sharded_linear_softmax_cross_entropy")
def _loss(
    static: tuple,
    reduction: str,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    weights: jax.Array | None,
) -> jax.Array:
    vocab, accumulator = weight.shape[0], accumulator_dtype(hidden, weight)
    if not labels.size:
        return jnp.zeros(labels.shape if reduction == "none" else (), accumulator)
    hidden, labels, weights = static[0].place_tokens(hidden, labels, weights)
    if bias is None:
        bias = static[0].place(jnp.zeros(vocab, accumulator), static[0].table_spec)
    kept, labels = leave_out(weights, labels, ignore_index, vocab, accumulator)
    if kept is not None:
        hidden = jnp.where((kept == 0)[..., None], 0, hidden)
    losses, _ = _per_token(static, hidden, weight, bias, labels)
    return reduce_losses(losses, kept, reduction)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _per_token(
    static: tuple, hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Losses and log-sum-exp [...]; ``shard_map`` is not differentiated, so its sums are ours."""
    sharding, engine, options = static
    vocab = weight.shape[0]

    def on_device(hidden, weight, bias, labels):
        flat, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        local, own = sharding.local_ids(flat_labels, weight.shape[0])
        part = engine.statistics(options, flat, weight, bias, local)
        lowest = jnp.finfo(part.log_sum_exp.dtype).min  # a whole shard may be out
        largest = jnp.maximum(sharding.max_over_vocab(part.log_sum_exp), lowest)
        total, label_logit, logit_sum = sharding.sum_over_vocab((
            jnp.exp(part.log_sum_exp - largest), jnp.where(own, part.label_logit, 0),
            part.logit_sum if options.label_smoothing else None,
        ))  # fmt: skip
        whole = Statistics(log_of_sum(largest, total), logit_sum, label_logit)
        losses = losses_of(options, vocab, _classes(sharding, options, bias), whole, flat_labels)
        return losses.reshape(labels.shape), whole.log_sum_exp.reshape(labels.shape)

    tokens, table = sharding.token_spec, sharding.table_spec
    specs = (tokens, table, table, tokens)
    return sharding.run(on_device, specs, (tokens, tokens), hidden, weight, bias, labels)


def _forward(
    static: tuple, hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple]:
    losses, log_sum_exp = _per_token(static, hidden, weight, bias, labels)
    return (losses, log_sum_exp), (hidden, weight, bias, labels, log_sum_exp)


def _backward(
    static: tuple, residuals: tuple, cotangents: Sequence[jax.Array]
) -> tuple[jax.Array | None, ...]:
    sharding, engine, options = static
    vocab = residuals[1].shape[0]

    def on_device(residuals, cotangents):
        hidden, weight, bias, labels, log_sum_exp = residuals
        flat, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        log_sum_exp = log_sum_exp.reshape(-1)
        cotangents = [cotangent.reshape(-1) for cotangent in cotangents]
        classes = _classes(sharding, options, bias)
        factors = factors_of(options, classes, log_sum_exp, cotangents)
        unused, flat, log_sum_exp, factors = without_unused(flat, log_sum_exp, factors, cotangents)
        local, _ = sharding.local_ids(labels, weight.shape[0])
        d_hidden, d_weight, d_bias = engine.gradient(
            options, flat, weight, bias, local, log_sum_exp, factors
        )
        d_hidden = mark_bad_labels(sharding.sum_over_vocab(d_hidden), labels, vocab, unused)
        d_weight, d_bias = sharding.sum_over_tokens((d_weight, d_bias))
        return (
            d_hidden.reshape(hidden.shape).astype(hidden.dtype),
            d_weight.astype(weight.dtype),
            d_bias.astype(bias.dtype),
        )

    tokens, table = sharding.token_spec, sharding.table_spec
    specs = ((tokens, table, table, tokens, tokens), (tokens, tokens))
    gradients = sharding.run(on_device, specs, (tokens, table, table), residuals, tuple(cotangents))
    return (*gradients, None)


_per_token.defvjp(_forward, _backward)


def _classes(sharding: VocabSharding, options: Options, bias: jax.Array) -> jax.Array | int:
    """Inside ``run``: how many classes of all shards are in, where smoothing asks."""
    return sharding.sum_over_vocab(class_count(bias)) if options.label_smoothing else 1
