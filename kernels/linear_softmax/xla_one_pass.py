"""A weighted sum of losses and its whole gradient in one pass: each logit is computed once.

A tile of tokens goes over the vocabulary tile by tile and keeps ``e = exp(logits - tile_max)``.
The softmax is ``e`` times one number for each (token, vocabulary tile),

    softmax = e * exp(tile_max - row_max) / row_sum,

which is known only once the last tile is seen. It is never multiplied into ``e``,
[token_tile, vocab], but into the other *operand* of the matmul, ``hidden [token_tile, features]``:

    weight_gradient[tile] += e^T @ (scale[tile] * hidden)

so a logit costs one multiply-add over the features and one exponential, and the whole gradient
three matmuls. The gradient of ``hidden`` is accumulated online, as flash attention does it.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.per_token import (
    losses_without_smoothing,
    softmax_slope,
    token_losses,
)
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    add_rows,
    class_count,
    is_in,
    label_logits,
    largest_of,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.numerics import accumulator_dtype, log_of_sum, matmul


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_sum(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
) -> jax.Array:
    """Sum over tokens of ``factors`` times the loss: the scalar of ``api.py``.

    ``hidden [tokens, features]``, ``weight [vocab, features]``, ``bias [vocab]``,
    ``labels [tokens]`` int32 (out of range: NaN), ``factors [tokens]`` (0: left out).
    """
    losses, _ = token_losses(TiledEngine(), options, hidden, weight, bias, labels)
    return _total(losses, factors)


def _total(losses: jax.Array, factors: jax.Array) -> jax.Array:
    return jnp.where(factors == 0, 0, losses * factors).sum()


def _forward(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    tokens, vocab = hidden.shape[0], weight.shape[0]
    dtype = accumulator_dtype(hidden, weight)
    smoothing = options.label_smoothing
    size = min(options.token_tile, tokens)
    if smoothing:
        # The mean logit is linear in the mean row, so smoothing costs no pass over the logits.
        inside, share = is_in(bias), smoothing / class_count(bias).astype(dtype)
        mean_row = jnp.where(inside[:, None], weight, 0).sum(0, dtype=dtype) * share
        mean_bias = jnp.where(inside, bias, 0).sum(dtype=dtype) * share

    def over_tokens(gradients, xs):
        weight_gradient, bias_gradient = gradients
        hidden, labels, factors = xs
        # A token that is left out must not spread a NaN of its own.
        left_out = factors == 0
        hidden = jnp.where(left_out[:, None], 0, hidden)
        labels = jnp.where(left_out, 0, labels)

        def over_vocab(carry, index):
            running_max, hidden_gradient = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, slope = tile_logits(hidden, tile, options)
            tile_max = largest_of(logits)
            e = jnp.exp(logits - tile_max[:, None])
            tile_sum = e.sum(1)
            e = (e if slope is None else e * slope).astype(hidden.dtype)
            new_max = jnp.maximum(running_max, tile_max)
            hidden_gradient = (
                hidden_gradient * jnp.exp(running_max - new_max)[:, None]
                + matmul(e, tile.weight, (1, 0)) * jnp.exp(tile_max - new_max)[:, None]
            )
            return (new_max, hidden_gradient), (e, tile_max, tile_sum)

        start = (jnp.full(size, jnp.finfo(dtype).min), jnp.zeros(hidden.shape, dtype))
        (row_max, hidden_gradient), (e, tile_max, tile_sum) = lax.scan(
            over_vocab, start, jnp.arange(tile_count(vocab, options))
        )
        above = jnp.exp(tile_max - row_max[None])
        row_sum = (tile_sum * above).sum(0)
        log_sum_exp = log_of_sum(row_max, row_sum)
        row_sum = jnp.where(left_out, 1, row_sum)  # 0 where all classes are out

        wide = hidden.astype(dtype)
        label_logit, label_slope, label_rows = label_logits(hidden, weight, bias, labels, options)
        losses = losses_without_smoothing(options, log_sum_exp, label_logit)
        # d loss / d logits = softmax * softmax_factor - onehot * label_factor - smoothing / classes
        softmax_factor = factors * softmax_slope(options, log_sum_exp)
        label_factor = factors * (1 - smoothing) * label_slope
        hidden_gradient = (
            hidden_gradient * (softmax_factor / row_sum)[:, None]
            - label_factor[:, None] * label_rows
        )
        if smoothing:
            losses -= wide @ mean_row + mean_bias
            hidden_gradient -= factors[:, None] * mean_row[None]
        losses = jnp.where(left_out, 0, losses)

        # By the sum: with the log-sum-exp of large logits, which is rounded, they add up to more.
        scale = (softmax_factor / row_sum)[None] * above

        def over_tiles(index, gradients):
            weight_gradient, bias_gradient = gradients
            tile = vocab_tile(weight, bias, index, options)
            here, scaled = e[index], scale[index]
            rows = matmul(here, (wide * scaled[:, None]).astype(here.dtype), (0, 0))
            weight_gradient = add_rows(weight_gradient, tile, rows)
            bias_gradient = add_rows(bias_gradient, tile, scaled @ here.astype(dtype))
            return weight_gradient, bias_gradient

        weight_gradient, bias_gradient = lax.fori_loop(
            0, tile_count(vocab, options), over_tiles, (weight_gradient, bias_gradient)
        )
        weight_gradient = weight_gradient.at[labels].add(-label_factor[:, None] * wide, mode="drop")
        bias_gradient = bias_gradient.at[labels].add(-label_factor, mode="drop")
        return (weight_gradient, bias_gradient), (losses, hidden_gradient.astype(hidden.dtype))

    zeros = (jnp.zeros(weight.shape, dtype), jnp.zeros(bias.shape, dtype))
    tiles = (token_tiles(hidden, size), token_tiles(labels, size), token_tiles(factors, size))
    (weight_gradient, bias_gradient), (losses, hidden_gradient) = lax.scan(
        over_tokens, zeros, tiles
    )
    if smoothing:
        clean = jnp.where(factors[:, None] == 0, 0, hidden).astype(dtype)
        weight_gradient -= jnp.where(inside[:, None], (share * (factors @ clean))[None], 0)
        bias_gradient -= jnp.where(inside, share * factors.sum(), 0)
    losses = losses.reshape(-1)[:tokens]
    gradients = (
        hidden_gradient.reshape(-1, hidden.shape[1])[:tokens],
        weight_gradient.astype(weight.dtype),
        bias_gradient.astype(bias.dtype),
        losses,
    )
    return _total(losses, factors), gradients


def _backward(
    _options: Options, gradients: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    hidden, weight, bias, factors = (
        (cotangent * gradient.astype(cotangent.dtype)).astype(gradient.dtype)
        for gradient in gradients
    )
    return hidden, weight, bias, None, factors


weighted_sum.defvjp(_forward, _backward)
