"""One-vs-all logistic losses over all classes by tiles: of the public function in ``sigmoid.py``.

Every class is taken for a false one first, tile by tile: the sum of log(1 + exp(l)), whose gradient
by a logit is its sigmoid. A token's true classes are few, and what they change is added for them
alone, one of each token at a time: their logits are read, not searched in the tiles.

A sigmoid needs no sum over the classes. So where each token's factor is known, loss and gradient
come from one pass of three matmuls; a loss for each token has its cotangents only afterwards, and
computes the logits again.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.sharded import own_logits, specs
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    add_at,
    label_logits,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import gradients_by_tile
from jaxnets.kernels.losses import reduce_losses, times_cotangent
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_sum(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    token_factors: jax.Array,
) -> jax.Array:
    """Sum over tokens of ``token_factors [...]`` (0: left out) times :func:`one_vs_all`."""
    losses = one_vs_all(sharding, options, hidden, weight, bias, labels, factors)
    return reduce_losses(losses, token_factors, "sum")


def _sum_forward(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    token_factors: jax.Array,
) -> tuple[jax.Array, tuple]:
    *gradients, losses = _on_devices(
        sharding, options, True, hidden, weight, bias, labels, factors, token_factors
    )
    return reduce_losses(losses, token_factors, "sum"), (*gradients, losses)


def _sum_backward(
    _sharding: VocabSharding, _options: Options, gradients: tuple, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    hidden, weight, bias, factors, token_factors = times_cotangent(gradients, cotangent)
    return hidden, weight, bias, None, factors, token_factors


weighted_sum.defvjp(_sum_forward, _sum_backward)


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

    def on_device(hidden, weight, bias, labels, factors):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        by_place, factors = _by_place(labels), _by_place(factors)
        local, own = sharding.local_ids(by_place, bias.shape[0])

        def at_place(losses, xs):
            labels, local, own, factor = xs
            logits, _, _ = label_logits(flat, weight, bias, local, options)
            logits = own_logits(sharding, own, logits)
            true = labels < sharding.shards * bias.shape[0]
            return losses + jnp.where(true, _change(logits, factor), 0), None

        losses = sharding.sum_over_vocab(_as_false(options, flat, weight, bias))
        losses, _ = lax.scan(at_place, losses, (by_place, local, own, factors))
        bad = (by_place > sharding.shards * bias.shape[0]).any(0)
        return jnp.where(bad, jnp.nan, losses).reshape(labels.shape[:-1])

    tokens, table, classes = specs(sharding, options)
    in_specs = (tokens, table, classes, tokens, tokens)
    return sharding.run(on_device, in_specs, tokens, hidden, weight, bias, labels, factors)


def _by_place(array: jax.Array) -> jax.Array:
    """[..., n] as [n, tokens]: the first true class of each token, then the second."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1]).T


def _change(logits: jax.Array, factors: jax.Array) -> jax.Array:
    """f log(1 + e^-l) less log(1 + e^l), which is l + log(1 + e^-l)."""
    return (factors - 1) * jax.nn.softplus(-logits) - logits


def _as_false(options: Options, hidden: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """The sum of log(1 + exp(l)) over all classes, [tokens]."""
    tokens, dtype = hidden.shape[0], options.accumulator(hidden, weight)
    size = even(tokens, TOKENS)

    def over_tokens(hidden):
        def over_vocab(total, index):
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            return total + jax.nn.softplus(logits).sum(1), None

        tiles = jnp.arange(tile_count(bias.shape[0], options))
        return lax.scan(over_vocab, jnp.zeros(size, dtype), tiles)[0]

    return lax.map(over_tokens, token_tiles(hidden, size)).reshape(-1)[:tokens]


def _forward(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
) -> tuple[jax.Array, tuple]:
    arrays = hidden, weight, bias, labels, factors
    return one_vs_all(sharding, options, *arrays), arrays


def _backward(
    sharding: VocabSharding, options: Options, residuals: tuple, cotangents: jax.Array
) -> tuple[jax.Array | None, ...]:
    hidden, weight, bias, labels, factors = residuals
    d_hidden, d_weight, d_bias, d_factors, _ = _on_devices(
        sharding, options, False, hidden, weight, bias, labels, factors, cotangents
    )
    return d_hidden, d_weight, d_bias, None, d_factors


one_vs_all.defvjp(_forward, _backward)


def _on_devices(
    sharding: VocabSharding,
    options: Options,
    with_losses: bool,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    cotangents: jax.Array,
) -> tuple[jax.Array, ...]:
    """Gradients of hidden, weight, bias and factors by ``cotangents [...]``; losses, or 0."""
    tokens, table, classes = specs(sharding, options)
    return sharding.run(
        partial(_derived, sharding, options, with_losses),
        (tokens, table, classes, tokens, tokens, tokens), (tokens, table, classes, tokens, tokens),
        hidden, weight, bias, labels, factors, cotangents,
    )  # fmt: skip


def _derived(
    sharding: VocabSharding,
    options: Options,
    with_losses: bool,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    factors: jax.Array,
    cotangents: jax.Array,
) -> tuple[jax.Array, ...]:
    flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
    shape, cotangents, tokens = cotangents.shape, cotangents.reshape(-1), flat.shape[0]
    unused = cotangents == 0
    # A token that nothing depends on must not spread a NaN of its own.
    flat = jnp.where(unused[:, None], 0, flat)
    size = even(tokens, TOKENS)

    def slopes(_index, tile):
        def slope(hidden, cotangents):
            logits, _ = tile_logits(hidden, tile, options)
            gradient = cotangents[:, None] * jax.nn.sigmoid(logits)
            return (gradient, jax.nn.softplus(logits).sum(1)) if with_losses else gradient

        return slope

    of_tokens = token_tiles(cotangents, size)
    d_hidden, d_weight, d_bias, *totals = gradients_by_tile(
        options, token_tiles(flat, size), weight, bias, of_tokens, slopes,
        jnp.zeros_like(of_tokens) if with_losses else None,
    )  # fmt: skip
    losses = jnp.zeros_like(cotangents)
    if with_losses:
        losses = sharding.sum_over_vocab(totals[0].reshape(-1)[:tokens])
    by_place, vocab_size = _by_place(labels), sharding.shards * bias.shape[0]
    local, own = sharding.local_ids(by_place, bias.shape[0])

    def at_place(carry, xs):
        d_hidden, d_weight, d_bias, losses = carry
        labels, local, own, factor = xs
        logits, _, rows = label_logits(flat, weight, bias, local, options)
        logits = own_logits(sharding, own, logits)
        true = (labels < vocab_size) & ~unused
        slope = jnp.where(true, -1 - (factor - 1) * jax.nn.sigmoid(-logits), 0) * cotangents
        d_factor = jnp.where(true, jax.nn.softplus(-logits), 0) * cotangents
        d_hidden += slope[:, None] * jnp.where(own[:, None], rows, 0)
        by_label = slope[:, None] * flat.astype(d_hidden.dtype)
        d_weight = add_at(d_weight, local, by_label, options)
        d_bias = d_bias.at[local].add(slope, mode="drop")
        losses += jnp.where(true, _change(logits, factor), 0)
        return (d_hidden, d_weight, d_bias, losses), d_factor

    (d_hidden, d_weight, d_bias, losses), d_factors = lax.scan(
        at_place,
        (d_hidden[:tokens], d_weight, d_bias, losses),
        (by_place, local, own, _by_place(factors)),
    )
    bad = (by_place > vocab_size).any(0) & ~unused
    d_hidden = jnp.where(bad[:, None], jnp.nan, sharding.sum_over_vocab(d_hidden))
    d_weight, d_bias = sharding.sum_over_tokens((d_weight, d_bias))
    losses = jnp.where(unused, 0, jnp.where(bad, jnp.nan, losses))
    return (
        d_hidden.reshape(hidden.shape).astype(hidden.dtype),
        d_weight.astype(weight.dtype),
        d_bias.astype(bias.dtype),
        d_factors.T.reshape(labels.shape),
        losses.reshape(shape),
    )
