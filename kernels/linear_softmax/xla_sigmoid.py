"""One-vs-all logistic losses over all classes by tiles: of the public function in ``sigmoid.py``.

Every class is taken for a false one first, tile by tile: the sum of log(1 + exp(l)), whose gradient
by a logit is its sigmoid. A token's true classes are few, and what they change is added for them
alone, one of each token at a time: their logits are read, not searched in the tiles.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.sharded import own_logits, specs
from jaxnets.kernels.linear_softmax.tiles import (
    TOKENS,
    Options,
    add_at,
    label_logits,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import gradients_by_tile
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def one_vs_all(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
) -> jax.Array:
    """The loss of each token, [...].

    ``labels [..., n]`` int32, distinct in each token; vocab_size is none, and what is beyond makes
    the loss NaN. ``factors [..., n]``: of the losses of the true classes.
    """
    return _forward(sharding, options, hidden, weight, bias, labels, factors)[0]


def _forward(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
) -> tuple[jax.Array, tuple]:
    def on_device(hidden, weight, bias, labels, factors):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        by_place, vocab_size = _by_place(labels), sharding.shards * bias.shape[0]
        local, own = sharding.local_ids(by_place, bias.shape[0])

        def at_place(_, labels):
            return None, label_logits(flat, weight, bias, labels, options)[0]

        _, logits = lax.scan(at_place, None, local)  # [n, tokens]
        logits = own_logits(sharding, own, logits)
        # f log(1 + e^-l) in the place of log(1 + e^l), which is l + log(1 + e^-l).
        change = (_by_place(factors) - 1) * jax.nn.softplus(-logits) - logits
        losses = sharding.sum_over_vocab(_as_false(options, flat, weight, bias))
        losses += jnp.where(by_place < vocab_size, change, 0).sum(0)
        losses = jnp.where((by_place > vocab_size).any(0), jnp.nan, losses)
        return losses.reshape(labels.shape[:-1]), logits.T.reshape(labels.shape)

    tokens, table, classes = specs(sharding, options)
    losses, logits = sharding.run(
        on_device, (tokens, table, classes, tokens, tokens), tokens,
        hidden, weight, bias, labels, factors,
    )  # fmt: skip
    return losses, (hidden, weight, bias, labels, factors, logits)


def _by_place(array: jax.Array) -> jax.Array:
    """[..., n] as [n, tokens]: the first true class of each token, then the second."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1]).T


def _as_false(options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum of log(1 + exp(l)) over all classes, [tokens]."""
    tokens, dtype = hidden.shape[0], options.accumulator(hidden, weight)
    size = min(TOKENS, tokens)

    def over_tokens(hidden):
        def over_vocab(total, index):
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            return total + jax.nn.softplus(logits).sum(1), None

        tiles = jnp.arange(tile_count(bias.shape[0], options))
        return lax.scan(over_vocab, jnp.zeros(size, dtype), tiles)[0]

    return lax.map(over_tokens, token_tiles(hidden, size)).reshape(-1)[:tokens]


def _backward(
    sharding: VocabSharding, options: Options, residuals: tuple, cotangents: jax.Array
) -> tuple[jax.Array | None, ...]:
    def on_device(hidden, weight, bias, labels, factors, logits, cotangents):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        cotangents, tokens = cotangents.reshape(-1), flat.shape[0]
        unused = cotangents == 0
        # A token that nothing depends on must not spread a NaN of its own.
        flat = jnp.where(unused[:, None], 0, flat)
        size = min(TOKENS, tokens)

        def slopes(_index, tile):
            def slope(hidden, cotangents):
                logits, _ = tile_logits(hidden, tile, options)
                return cotangents[:, None] * jax.nn.sigmoid(logits)

            return slope

        tiles = token_tiles(flat, size), weight, bias, token_tiles(cotangents, size)
        d_hidden, d_weight, d_bias = gradients_by_tile(options, *tiles, slopes)
        by_place, vocab_size = _by_place(labels), sharding.shards * bias.shape[0]
        local, own = sharding.local_ids(by_place, bias.shape[0])
        logits, factors = _by_place(logits), _by_place(factors)
        true = (by_place < vocab_size) & ~unused[None]
        change = jnp.where(true, -(1 + (factors - 1) * jax.nn.sigmoid(-logits)), 0) * cotangents
        d_factors = jnp.where(true, jax.nn.softplus(-logits), 0) * cotangents

        def at_place(gradients, xs):
            d_hidden, d_weight, d_bias = gradients
            labels, own, change = xs
            _, _, rows = label_logits(flat, weight, bias, labels, options)
            d_hidden += change[:, None] * jnp.where(own[:, None], rows, 0)
            by_label = change[:, None] * flat.astype(d_hidden.dtype)
            d_weight = add_at(d_weight, labels, by_label, options)
            return (d_hidden, d_weight, d_bias.at[labels].add(change, mode="drop")), None

        gradients = d_hidden[:tokens], d_weight, d_bias
        (d_hidden, *of_classes), _ = lax.scan(at_place, gradients, (local, own, change))
        d_hidden = sharding.sum_over_vocab(d_hidden)
        bad = (by_place > vocab_size).any(0) & ~unused
        d_hidden = jnp.where(bad[:, None], jnp.nan, d_hidden)
        d_weight, d_bias = sharding.sum_over_tokens(of_classes)
        return (
            d_hidden.reshape(hidden.shape).astype(hidden.dtype),
            d_weight.astype(weight.dtype),
            d_bias.astype(bias.dtype),
            d_factors.T.reshape(labels.shape),
        )

    tokens, table, classes = specs(sharding, options)
    d_hidden, d_weight, d_bias, d_factors = sharding.run(
        on_device, (tokens, table, classes, tokens, tokens, tokens, tokens),
        (tokens, table, classes, tokens), *residuals, cotangents,
    )  # fmt: skip
    return d_hidden, d_weight, d_bias, None, d_factors


one_vs_all.defvjp(_forward, _backward)
