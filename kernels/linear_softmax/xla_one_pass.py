"""A weighted sum of losses and its whole gradient in one pass: each logit is computed once.

A tile of tokens goes over the vocabulary tile by tile and keeps ``e = exp(logits - shift)``, where
``shift`` is known for each token before its first logit is:

    softmax = e / total,    loss = log(total) + shift - label_logit

Any shift gives the same softmax, since floats keep their relative precision, as long as ``e``
neither overflows nor vanishes. The largest logit of a few classes is a lower bound of the token's
maximum, so no total is too small; where a token's logits reach some 66 above it, its tile of tokens
is done again with the maximum itself. So no logit is written to memory, and no pass over a
tile waits for its maximum: exponential and sum are the end of the matmul where XLA fuses them.

The softmax is never multiplied out, [token_tile, vocab]; ``1 / total`` goes into the other operand
of the matmul, ``hidden [token_tile, features]``:

    weight_gradient[tile] += e^T @ (hidden / total)

so a logit costs one multiply-add over the features and one exponential, and the whole gradient
three matmuls. The gradient of ``hidden`` is ``e @ weight / total``, divided at the end.

The gradient of a table of bfloat16 has no float32 copy, which would be the largest array there is:
each tile of tokens adds its part, of float32, to the table's own dtype. That rounds it once a tile,
so with more than ``MOST_ROUNDINGS`` tiles it is accumulated in float32 after all.

Where one tile has all tokens, and nothing is narrower than the sums, that gradient is one matmul
over all classes, which writes it where it stays.

A ``gradient_filter`` leaves out the matmuls of a tile where every softmax is smaller. That of the
hidden states' gradient is to know before the last tile is seen: a softmax is below ``e`` over the
sum so far, which later tiles only raise.

With the vocabulary split over devices, each goes over its own classes; a token's shift, total and
gradient are put together between the two halves of a tile of tokens.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.labels import (
    Labels,
    flat_labels,
    label_logits_of_all,
    labels_without,
    less_labels,
    local_labels,
    mark_bad_labels,
)
from jaxnets.kernels.linear_softmax.per_token import (
    losses_without_smoothing,
    softmax_slope,
    token_losses,
)
from jaxnets.kernels.linear_softmax.sharded import classes_of_all, specs
from jaxnets.kernels.linear_softmax.tile_sizes import MOST_ROUNDINGS
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    add_slice,
    is_in,
    largest_of,
    put_or_add,
    table_gradient,
    tile_count,
    tile_logits,
    token_tiles,
    unset_like,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_shifted_sums import (
    Pass,
    kept_tile,
    shifted_sums,
    unless_small,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.losses import reduce_losses, times_cotangent
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding

FEW_CLASSES = 128  # whose largest logit is a token's first shift


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def weighted_sum(
    sharding: VocabSharding,
    engine: TiledEngine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    factors: jax.Array,
) -> jax.Array:
    """Sum over tokens of ``factors`` times the loss: the scalar of ``api.py``.

    ``hidden [..., features]``, ``weight [vocab, features]``, ``bias [vocab]``, ``labels [...]``
    int32 or soft (out of range: NaN), ``factors [...]`` (0: left out).
    """
    arrays = hidden, weight, bias, labels
    losses, _ = token_losses(sharding, engine, options, *arrays)
    return reduce_losses(losses, factors, "sum")


def _forward(
    sharding: VocabSharding,
    engine: TiledEngine,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    factors: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    tokens, table, classes = specs(sharding, options)
    *gradients, losses = sharding.run(
        partial(_on_device, sharding, engine.gradient_filter, options),
        (tokens, table, classes, tokens, tokens),
        (tokens, table, classes, tokens),
        hidden, weight, bias, labels, factors,
    )  # fmt: skip
    return reduce_losses(losses, factors, "sum"), (*gradients, losses)


def _on_device(
    sharding: VocabSharding,
    gradient_filter: float | None,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    factors: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Gradients of hidden, weight and bias, and the losses [...]: of a device's own tokens."""
    shape, own_dtype, dtype = hidden.shape, hidden.dtype, options.accumulator(hidden, weight)
    hidden = options.rounded(hidden.reshape(-1, shape[-1]))
    labels, factors = flat_labels(labels), factors.reshape(-1)
    tokens, vocab_size = hidden.shape[0], bias.shape[0]
    smoothing = options.label_smoothing
    product = partial(jnp.matmul, precision=options.precision)
    size = min(options.token_tile, tokens)
    if smoothing:
        # The mean logit is linear in the mean row, so smoothing costs no pass over the logits.
        inside = is_in(bias)
        share = jnp.asarray(smoothing / classes_of_all(sharding, options, bias), dtype)
        columns = jnp.expand_dims(inside, 1 - options.vocab_axis)
        mean_row = jnp.where(columns, weight, 0).sum(options.vocab_axis, dtype=dtype) * share
        mean_bias = jnp.where(inside, bias, 0).sum(dtype=dtype) * share

    def over_tokens(gradients, xs):
        weight_gradient, bias_gradient = gradients
        first, hidden, labels, factors = xs
        # A token that is left out must not spread a NaN of its own.
        left_out = factors == 0
        hidden = jnp.where(left_out[:, None], 0, hidden)
        labels = labels_without(labels, left_out)

        shift = lax.stop_gradient(largest_of(tile_logits(hidden, few_classes, options)[0]))
        shift, (total, hidden_gradient, kept) = shifted_sums(
            how, shift, left_out, hidden, weight, bias
        )
        row_shift = sharding.max_over_vocab(shift)
        lowered = jnp.exp(shift - row_shift)
        total = sharding.sum_over_vocab(total * lowered)
        log_sum_exp = log_of_sum(row_shift, total)
        total = jnp.where(left_out, 1, total)  # 0 where all classes are out

        label_logit = label_logits_of_all(sharding, options, hidden, weight, bias, labels)
        losses = losses_without_smoothing(options, log_sum_exp, label_logit)
        # d loss / d logits = softmax * softmax_factor - onehot * label_factor - smoothing / classes
        # By the sum: with the log-sum-exp of large logits, which is rounded, they add up to more.
        scale = factors * softmax_slope(options, log_sum_exp) * lowered / total
        hidden_gradient = hidden_gradient * scale[:, None]
        if smoothing:
            losses -= sharding.sum_over_vocab(product(hidden.astype(dtype), mean_row) + mean_bias)
            hidden_gradient -= factors[:, None] * mean_row[None]
        losses = jnp.where(left_out, 0, losses)

        if how.by_class:
            weight_gradient = table_gradient(kept.e, hidden * scale[:, None], options)
            bias_gradient = product(scale, kept.e)
        else:
            # In float16 most of a mean's factors times hidden states would vanish.
            largest_scale = jnp.abs(scale).max()
            share_of_it = scale / jnp.where(largest_scale == 0, 1, largest_scale)
            by_scale = (hidden.astype(dtype) * share_of_it[:, None]).astype(hidden.dtype)

            def over_tiles(index, gradients):
                weight_gradient, bias_gradient = gradients
                tile = vocab_tile(weight, bias, index, options)
                e, largest = kept_tile(how, kept, index, tile)
                part = unless_small(
                    how,
                    largest,
                    total / lowered,
                    left_out,
                    lambda: table_gradient(e, by_scale, options),
                )
                part *= largest_scale
                weight_gradient = put_or_add(weight_gradient, part, tile, first, options)
                of_bias = product(scale, e.astype(dtype))
                return weight_gradient, add_slice(bias_gradient, of_bias, tile.start)

            weight_gradient, bias_gradient = lax.fori_loop(
                0, tiles, over_tiles, (weight_gradient, bias_gradient)
            )
        local = local_labels(sharding, labels, vocab_size)
        gradients = hidden_gradient, weight_gradient, bias_gradient
        hidden_gradient, *gradients = less_labels(
            options, hidden, weight, bias, local, factors * (1 - smoothing), gradients
        )
        hidden_gradient = mark_bad_labels(
            sharding.sum_over_vocab(hidden_gradient), labels, sharding.shards * vocab_size, left_out
        )
        return tuple(gradients), (losses, hidden_gradient.astype(own_dtype))

    tiles = tile_count(vocab_size, options)
    by_class = (
        tokens <= size
        and hidden.dtype == weight.dtype == dtype
        and gradient_filter is None
        and not options.in_columns
    )
    how = Pass(options, gradient_filter, dtype, by_class)
    # Once: in the loop, XLA for TPU copies the whole table to a layout for these rows.
    few_classes = lax.optimization_barrier(
        vocab_tile(
            weight, bias, 0, options._replace(vocab_tile=min(FEW_CLASSES, options.vocab_tile))
        )
    )
    few = tokens <= MOST_ROUNDINGS * size
    nothing = unset_like(weight, weight.dtype if few else dtype)  # the first tile sets it
    xs = jax.tree.map(lambda a: token_tiles(a, size), (hidden, labels, factors))
    first = jnp.arange(-(-tokens // size)) == 0
    (weight_gradient, bias_gradient), (losses, hidden_gradient) = lax.scan(
        over_tokens, (nothing, jnp.zeros(bias.shape, dtype)), (first, *xs)
    )
    if smoothing:
        clean = jnp.where(factors[:, None] == 0, 0, hidden).astype(dtype)
        every_row = jnp.expand_dims(share * product(factors, clean), options.vocab_axis)
        weight_gradient -= jnp.where(columns, every_row, 0).astype(weight_gradient.dtype)
        bias_gradient -= jnp.where(inside, share * factors.sum(), 0)
    weight_gradient, bias_gradient = sharding.sum_over_tokens((weight_gradient, bias_gradient))
    return (
        hidden_gradient.reshape(-1, shape[-1])[:tokens].reshape(shape),
        weight_gradient.astype(weight.dtype),
        bias_gradient.astype(bias.dtype),
        losses.reshape(-1)[:tokens].reshape(shape[:-1]),
    )


def _backward(
    _sharding: VocabSharding,
    _engine: TiledEngine,
    _options: Options,
    gradients: tuple[jax.Array, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array | None, ...]:
    hidden, weight, bias, factors = times_cotangent(gradients, cotangent)
    return hidden, weight, bias, None, factors


weighted_sum.defvjp(_forward, _backward)
