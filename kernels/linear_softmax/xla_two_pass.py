"""The engine on XLA: two passes over tiles of the vocabulary, the logits computed in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.linear_softmax.per_token import Factors, Statistics
from jaxnets.kernels.linear_softmax.tiles import (
    TOKENS,
    Options,
    VocabTile,
    add_at,
    add_slice,
    label_logits,
    largest_of,
    put_or_add,
    table_gradient,
    tile_count,
    tile_logits,
    times_tile,
    token_tiles,
    unset_like,
    vocab_tile,
)
from jaxnets.kernels.losses import safe_ids
from jaxnets.kernels.numerics import log_of_sum


class TiledEngine(NamedTuple):
    """An :class:`Engine` that runs wherever XLA does."""

    def statistics(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: jax.Array,
    ) -> Statistics:
        return _statistics(options, hidden, weight, bias, labels)

    def gradient(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: jax.Array,
        log_sum_exp: jax.Array,
        factors: Factors,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _gradient(options, hidden, weight, bias, labels, log_sum_exp, factors)


def _statistics(
    options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array
) -> Statistics:
    """Online, over tiles of the vocabulary."""
    tokens = hidden.shape[0]
    dtype = options.accumulator(hidden, weight)
    size = min(TOKENS, tokens)

    def over_tokens(hidden):
        def over_vocab(carry, index):
            running_max, running_sum, logit_sum = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            new_max = jnp.maximum(running_max, largest_of(logits))
            running_sum = running_sum * jnp.exp(running_max - new_max)
            running_sum += jnp.exp(logits - new_max[:, None]).sum(1)
            if options.label_smoothing:
                seen = tile.inside if tile.fresh is None else tile.inside & tile.fresh
                logit_sum += jnp.where(seen[None], logits, 0).sum(1)
            return (new_max, running_sum, logit_sum), None

        zeros = jnp.zeros(size, dtype)
        (row_max, row_sum, logit_sum), _ = lax.scan(
            over_vocab,
            (jnp.full(size, jnp.finfo(dtype).min), zeros, zeros),
            jnp.arange(tile_count(bias.shape[0], options)),
        )
        return log_of_sum(row_max, row_sum), logit_sum

    log_sum_exp, logit_sum = lax.map(over_tokens, token_tiles(hidden, size))
    label_logit, _, _ = label_logits(hidden, weight, bias, labels, options)
    return Statistics(log_sum_exp.reshape(-1)[:tokens], logit_sum.reshape(-1)[:tokens], label_logit)


def _gradient(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    log_sum_exp: jax.Array,
    factors: Factors,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    tokens, vocab_size = hidden.shape[0], bias.shape[0]
    size = min(TOKENS, tokens)
    numbers = jax.tree.map(lambda x: token_tiles(x, size), factors)

    def slopes(_index, tile):
        def slope(hidden, numbers):
            log_sum_exp, factors = numbers
            logits, bend = tile_logits(hidden, tile, options)
            log_p = logits - log_sum_exp[:, None]
            p = jnp.exp(log_p)
            gradient = factors.softmax[:, None] * p
            if factors.entropy is not None:
                gradient -= factors.entropy[:, None] * jnp.where(p == 0, 0, p * log_p)
            if options.label_smoothing:
                gradient -= jnp.where(tile.inside[None], factors.uniform[:, None], 0)
            return gradient if bend is None else gradient * bend

        return slope

    hidden_gradient, weight_gradient, bias_gradient = gradients_by_tile(
        options, token_tiles(hidden, size), weight, bias,
        (token_tiles(log_sum_exp, size, jnp.inf), numbers), slopes,
    )  # fmt: skip
    hidden_gradient = hidden_gradient[:tokens]

    inside = in_range(labels, vocab_size)
    _, label_slope, label_rows = label_logits(hidden, weight, bias, labels, options)
    label_factor = jnp.where(inside, factors.label * label_slope, 0)
    hidden_gradient -= label_factor[:, None] * jnp.where(inside[:, None], label_rows, 0)
    labels = safe_ids(labels, vocab_size)
    rows = -label_factor[:, None] * hidden.astype(hidden_gradient.dtype)
    weight_gradient = add_at(weight_gradient, labels, rows, options)
    bias_gradient = bias_gradient.at[labels].add(-label_factor, mode="drop")
    return hidden_gradient, weight_gradient, bias_gradient


def gradients_by_tile(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    numbers: Any,
    slopes: Callable[[jax.Array, VocabTile], Callable[[jax.Array, Any], Any]],
    totals: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """The gradients of hidden [tokens, features], weight and bias, by those of the logits.

    And the totals, if there are any.

    Args:
      options: the layout and the tiles of classes.
      hidden: [tiles, size, features], with which the tokens are padded.
      weight: as the options lay it out.
      bias: [vocab].
      numbers: a pytree of what else the slopes depend on, [tiles, size, ...] each.
      slopes: of the index of a tile and the tile, a function of hidden states [size, features] and
        the numbers that gives the gradient by the logits, [size, classes]; for classes that an
        earlier tile saw it may be anything. With totals, a pair of that and of what is added to
        them, [size].
      totals: [tiles, size], of each token: a sum over the classes, which costs no other pass.
    """
    dtype = options.accumulator(hidden, weight)

    def over_vocab(index, gradients):
        of_tokens, weight_gradient, bias_gradient = gradients
        tile = vocab_tile(weight, bias, index, options)
        slope = slopes(index, tile)

        def over_tokens(tile_gradients, xs):
            weight_rows, bias_rows = tile_gradients
            hidden, numbers, (hidden_gradient, total) = xs
            gradient = slope(hidden, numbers)
            if total is not None:
                gradient, more = gradient
                total += more
            if tile.fresh is not None:
                gradient = jnp.where(tile.fresh[None], gradient, 0)
            bias_rows += gradient.sum(0)
            gradient = gradient.astype(hidden.dtype)
            weight_rows += table_gradient(gradient, hidden, options)
            hidden_gradient += times_tile(gradient, tile, options)
            return (weight_rows, bias_rows), (hidden_gradient, total)

        zeros = (jnp.zeros(tile.weight.shape, dtype), jnp.zeros(tile.bias.shape, dtype))
        (weight_rows, bias_rows), of_tokens = lax.scan(
            over_tokens, zeros, (hidden, numbers, of_tokens)
        )
        return (
            of_tokens,
            put_or_add(weight_gradient, weight_rows, tile, jnp.bool(True), options),
            add_slice(bias_gradient, bias_rows, tile.start),
        )

    start = (
        (jnp.zeros(hidden.shape, dtype), totals),
        # Each tile is put there once, in the table's own dtype: no float32 copy, and no zeros.
        unset_like(weight, weight.dtype),
        jnp.zeros(bias.shape, dtype),
    )
    count = tile_count(bias.shape[0], options)
    (hidden_gradient, totals), *others = lax.fori_loop(0, count, over_vocab, start)
    gradients = hidden_gradient.reshape(-1, hidden.shape[-1]), *others
    return gradients if totals is None else (*gradients, totals)
