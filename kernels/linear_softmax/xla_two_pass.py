"""The engine on XLA: two passes over tiles of the vocabulary, the logits computed in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.labels import Labels, less_labels, own_label_logits
from jaxnets.kernels.linear_softmax.per_token import Factors, Statistics
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    VocabTile,
    add_slice,
    largest_of,
    put_or_add,
    scaled,
    table_gradient,
    tile_count,
    tile_logits,
    times_tile,
    token_tiles,
    unset_like,
    vocab_tile,
)
from jaxnets.kernels.numerics import log_of_sum


class TiledEngine(NamedTuple):
    """An :class:`Engine` that runs wherever XLA does.

    ``gradient_filter``: of the one-pass gradient, ``xla_one_pass.py``; None: none.
    """

    gradient_filter: float | None = None

    def statistics(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: Labels,
    ) -> Statistics:
        return _statistics(options, hidden, weight, bias, labels)

    def gradient(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: Labels,
        log_sum_exp: jax.Array,
        factors: Factors,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return _gradient(options, hidden, weight, bias, labels, log_sum_exp, factors)


def _statistics(
    options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: Labels
) -> Statistics:
    (log_sum_exp,), logit_sum = log_sum_exps(options, hidden, weight, bias, [None])
    label_logit = own_label_logits(options, hidden, weight, bias, labels)
    return Statistics(log_sum_exp, logit_sum, label_logit)


def log_sum_exps(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    scales: Sequence[jax.Array | None],
) -> tuple[list[jax.Array], jax.Array]:
    """Online, over tiles of the vocabulary: log-sum-exps, and the sum of the logits, [tokens].

    ``scales``: what the logits are multiplied by in each log-sum-exp, [tokens], or None for 1. The
    sum is 0 unless smoothing needs it.
    """
    tokens = hidden.shape[0]
    dtype = options.accumulator(hidden, weight)
    size = even(tokens, TOKENS)

    def over_tokens(xs):
        hidden, scales = xs

        def over_vocab(carry, index):
            running_max, running_sums, logit_sum = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            new_max = jnp.maximum(running_max, largest_of(logits))
            moved, below = running_max - new_max, logits - new_max[:, None]
            running_sums = [
                total * jnp.exp(scaled(moved, scale)) + jnp.exp(scaled(below, scale)).sum(1)
                for total, scale in zip(running_sums, scales, strict=True)
            ]
            if options.label_smoothing:
                seen = tile.inside if tile.fresh is None else tile.inside & tile.fresh
                logit_sum += jnp.where(seen[None], logits, 0).sum(1)
            return (new_max, running_sums, logit_sum), None

        zeros = jnp.zeros(size, dtype)
        (row_max, row_sums, logit_sum), _ = lax.scan(
            over_vocab,
            (jnp.full(size, jnp.finfo(dtype).min), [zeros] * len(scales), zeros),
            jnp.arange(tile_count(bias.shape[0], options)),
        )
        found = [log_of_sum(scaled(row_max, s), t) for s, t in zip(scales, row_sums, strict=True)]
        return found, logit_sum

    tiles = [None if scale is None else token_tiles(scale, size, 1.0) for scale in scales]
    found = lax.map(over_tokens, (token_tiles(hidden, size), tiles))
    return jax.tree.map(lambda a: a.reshape(-1)[:tokens], found)


def _gradient(
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: Labels,
    log_sum_exp: jax.Array,
    factors: Factors,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    size = even(hidden.shape[0], TOKENS)
    numbers = jax.tree.map(lambda x: token_tiles(x, size), factors)

    hidden_gradient, weight_gradient, bias_gradient = gradients_by_tile(
        options, token_tiles(hidden, size), weight, bias,
        (token_tiles(log_sum_exp, size, jnp.inf), numbers),
        lambda _, tile: slope_of(options, tile),
    )  # fmt: skip
    gradients = hidden_gradient[: hidden.shape[0]], weight_gradient, bias_gradient
    return less_labels(options, hidden, weight, bias, labels, factors.label, gradients)


def slope_of(
    options: Options, tile: VocabTile
) -> Callable[[jax.Array, tuple[jax.Array, Factors]], jax.Array]:
    """The gradient by a tile's logits, [size, classes], but for what is the labels'.

    Of hidden states [size, features], their log-sum-exp and their factors, [size] each.
    """

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
        of_tokens, weight_rows, bias_rows = gradients_of_tile(
            options, hidden, tile, numbers, slopes(index, tile), of_tokens
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


def gradients_of_tile(
    options: Options,
    hidden: jax.Array,
    tile: VocabTile,
    numbers: Any,
    slope: Callable[[jax.Array, Any], Any],
    of_tokens: tuple[jax.Array, jax.Array | None],
) -> tuple[tuple[jax.Array, jax.Array | None], jax.Array, jax.Array]:
    """``of_tokens`` with what a tile of classes adds, and the gradients of its rows and bias.

    ``of_tokens`` are the gradient of the hidden states and the totals, or None; other arguments are
    those of :func:`gradients_by_tile`. The rows are those of all tokens, 0 for classes that an
    earlier tile saw.
    """
    dtype = of_tokens[0].dtype

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
    (weight_rows, bias_rows), of_tokens = lax.scan(over_tokens, zeros, (hidden, numbers, of_tokens))
    return of_tokens, weight_rows, bias_rows
