"""A loss and a log-sum-exp for each token; the gradient computes the logits again, tile by tile."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.softmax.tiles import (
    Options,
    accumulator_dtype,
    add_rows,
    label_logits,
    matmul,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)

# Tokens at a time where nothing but one tile of logits is kept: a tile of weights is reused by
# that many tokens while it is in cache.
_TOKENS = 512


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def per_token(options: Options, hidden, weight, bias, labels):
    """The loss of ``full.py`` and the log-sum-exp, each [tokens].

    ``hidden [tokens, features]``, ``weight [vocab, features]``, ``bias [vocab]``,
    ``labels [tokens]`` int32 (out of range: NaN).
    """
    return token_losses(options, hidden, weight, bias, labels)


def token_losses(options: Options, hidden, weight, bias, labels):
    """What :func:`per_token` computes, without its gradient rule."""
    log_sum_exp, logit_sum = _log_sum_exp(options, hidden, weight, bias)
    smoothing = options.label_smoothing
    label_logit, _, _ = label_logits(hidden, weight, bias, labels, options)
    losses = log_sum_exp - (1 - smoothing) * label_logit + options.z_loss * log_sum_exp**2
    if smoothing:
        losses -= smoothing / weight.shape[0] * logit_sum
    return losses, log_sum_exp


def _log_sum_exp(options: Options, hidden, weight, bias):
    """Log-sum-exp and, where smoothing needs it, sum of the logits: [tokens] each, online."""
    tokens = hidden.shape[0]
    dtype = accumulator_dtype(hidden, weight)
    size = min(_TOKENS, tokens)

    def over_tokens(hidden):
        def over_vocab(carry, index):
            running_max, running_sum, logit_sum = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            new_max = jnp.maximum(running_max, logits.max(1))
            running_sum = running_sum * jnp.exp(running_max - new_max)
            running_sum += jnp.exp(logits - new_max[:, None]).sum(1)
            if options.label_smoothing:
                seen = True if tile.fresh is None else tile.fresh
                logit_sum += jnp.where(seen, logits, 0).sum(1)
            return (new_max, running_sum, logit_sum), None

        zeros = jnp.zeros(size, dtype)
        (row_max, row_sum, logit_sum), _ = lax.scan(
            over_vocab,
            (zeros - jnp.inf, zeros, zeros),
            jnp.arange(tile_count(weight.shape[0], options)),
        )
        return row_max + jnp.log(row_sum), logit_sum

    log_sum_exp, logit_sum = lax.map(over_tokens, token_tiles(hidden, size))
    return log_sum_exp.reshape(-1)[:tokens], logit_sum.reshape(-1)[:tokens]


def _forward(options: Options, hidden, weight, bias, labels):
    losses, log_sum_exp = token_losses(options, hidden, weight, bias, labels)
    return (losses, log_sum_exp), (hidden, weight, bias, labels, log_sum_exp)


def _backward(options: Options, residuals, cotangents):
    hidden, weight, bias, labels, log_sum_exp = residuals
    loss_cotangent, log_sum_exp_cotangent = cotangents
    tokens, vocab = hidden.shape[0], weight.shape[0]
    dtype = accumulator_dtype(hidden, weight)
    size = min(_TOKENS, tokens)
    softmax_factor = loss_cotangent * (1 + 2 * options.z_loss * log_sum_exp) + log_sum_exp_cotangent
    uniform = loss_cotangent * (options.label_smoothing / vocab)
    # A token that nothing depends on must not spread a NaN of its own.
    unused = (loss_cotangent == 0) & (log_sum_exp_cotangent == 0)
    clean = jnp.where(unused[:, None], 0, hidden)
    log_sum_exp = jnp.where(unused, 0, log_sum_exp)
    softmax_factor = jnp.where(unused, 0, softmax_factor)
    tiles = tuple(token_tiles(x, size) for x in (clean, log_sum_exp, softmax_factor, uniform))

    def over_vocab(index, gradients):
        hidden_gradient, weight_gradient, bias_gradient = gradients
        tile = vocab_tile(weight, bias, index, options)

        def over_tokens(tile_gradients, xs):
            weight_rows, bias_rows = tile_gradients
            (hidden, log_sum_exp, softmax_factor, uniform), hidden_gradient = xs
            logits, slope = tile_logits(hidden, tile, options)
            gradient = softmax_factor[:, None] * jnp.exp(logits - log_sum_exp[:, None])
            if options.label_smoothing:
                gradient -= uniform[:, None]
            if slope is not None:
                gradient *= slope
            if tile.fresh is not None:
                gradient = jnp.where(tile.fresh, gradient, 0)
            bias_rows += gradient.sum(0)
            gradient = gradient.astype(hidden.dtype)
            weight_rows += matmul(gradient, hidden, (0, 0))
            hidden_gradient += matmul(gradient, tile.weight, (1, 0))
            return (weight_rows, bias_rows), hidden_gradient

        zeros = (jnp.zeros(tile.weight.shape, dtype), jnp.zeros(tile.bias.shape, dtype))
        (weight_rows, bias_rows), hidden_gradient = lax.scan(
            over_tokens, zeros, (tiles, hidden_gradient)
        )
        return (
            hidden_gradient,
            add_rows(weight_gradient, tile, weight_rows),
            add_rows(bias_gradient, tile, bias_rows),
        )

    hidden_gradient, weight_gradient, bias_gradient = lax.fori_loop(
        0,
        tile_count(vocab, options),
        over_vocab,
        (
            jnp.zeros(tiles[0].shape, dtype),
            jnp.zeros(weight.shape, dtype),
            jnp.zeros(bias.shape, dtype),
        ),
    )
    hidden_gradient = hidden_gradient.reshape(-1, hidden.shape[1])[:tokens]

    _, label_slope, label_rows = label_logits(clean, weight, bias, labels, options)
    label_factor = loss_cotangent * (1 - options.label_smoothing)
    if label_slope is not None:
        label_factor = label_factor * label_slope
    label_factor = jnp.where(unused, 0, label_factor)
    hidden_gradient -= jnp.where(unused[:, None], 0, label_factor[:, None] * label_rows)
    weight_gradient = weight_gradient.at[labels].add(
        -label_factor[:, None] * clean.astype(dtype), mode="drop"
    )
    bias_gradient = bias_gradient.at[labels].add(-label_factor, mode="drop")
    return (
        hidden_gradient.astype(hidden.dtype),
        weight_gradient.astype(weight.dtype),
        bias_gradient.astype(bias.dtype),
        None,
    )


per_token.defvjp(_forward, _backward)
