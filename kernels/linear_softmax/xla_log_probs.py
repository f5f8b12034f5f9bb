r"""Log-probability and entropy of each token from one pass over the vocabulary, without logits.

Beside the online log-sum-exp a tile adds to :math:`t = \sum_v e^{d_v} d_v`, with :math:`d_v = l_v -
m` and m the largest logit so far. With :math:`s = \sum_v e^{d_v}` the entropy is

.. math:: H = -\sum_v p_v \log p_v = \log s - t / s

which takes no difference of large numbers. Where m grows by :math:`\delta`, :math:`t` becomes
:math:`e^{-\delta} (t - \delta s)`. The gradient with respect to a logit is, for cotangents a of
the log-probability, b of the entropy and c of the log-sum-exp,

.. math:: d l_v = a\, [v = y] + p_v\, (c - a - b\, (\log p_v + H))

so the backward pass is the one of ``xla_two_pass.py`` with one number more a token: the logits are
computed again, tile by tile, and four matmuls are all there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.labels import label_logits_of_all
from jaxnets.kernels.linear_softmax.per_token import Factors, gradients_on_device
from jaxnets.kernels.linear_softmax.sharded import specs
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.top_k import better, largest_of_all
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def statistics(
    sharding: VocabSharding,
    options: Options,
    top_k: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, ...]:
    """Log-probability, entropy, log-sum-exp and argmax, [...] each.

    With ``top_k``, which is 0 for none, the log-probabilities and ids of the best too, [..., k].
    """

    def on_device(hidden, weight, bias, labels):
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        flat_labels = labels.reshape(-1)
        (largest, total, product, first), best = _passes(options, top_k, flat, weight, bias)
        everywhere = sharding.max_over_vocab(largest)
        shift = largest - everywhere
        total, product = sharding.sum_over_vocab(_moved(shift, total, product))
        # Of equal maxima the first class of all devices.
        candidate = jnp.where(
            shift == 0, first + sharding.start(bias.shape[0]), jnp.iinfo(jnp.int32).max
        )
        first = -sharding.max_over_vocab(-candidate)
        log_sum_exp = log_of_sum(everywhere, total)
        label_logit = label_logits_of_all(sharding, options, flat, weight, bias, flat_labels)
        log_prob = label_logit - log_sum_exp
        entropy = jnp.log(total) - product / total
        results: tuple[jax.Array, ...] = log_prob, entropy, log_sum_exp, first.astype(jnp.int32)
        if best is not None:
            logits, ids = best[0], best[1] + sharding.start(bias.shape[0])
            logits, ids = largest_of_all(sharding, top_k, logits, ids.astype(jnp.int32))
            results = *results, logits - log_sum_exp[:, None], ids
        return tuple(a.reshape(*labels.shape, *a.shape[1:]) for a in results)

    tokens, table, classes = specs(sharding, options)
    in_specs = tokens, table, classes, tokens
    return sharding.run(on_device, in_specs, tokens, hidden, weight, bias, labels)


def _passes(
    options: Options, top_k: int, hidden: jax.Array, weight: jax.Array, bias: jax.Array
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, jax.Array] | None]:
    """m, s, t and the first class of the largest logit, [tokens] each; logits and ids of the best.

    The latter [tokens, k], or of as many classes as there are, and None without ``top_k``.
    """
    tokens, dtype = hidden.shape[0], options.accumulator(hidden, weight)
    size = even(tokens, TOKENS)
    lowest = jnp.finfo(dtype).min
    k = min(top_k, bias.shape[0])
    options = options._replace(vocab_tile=max(k, options.vocab_tile))

    def over_tokens(hidden):
        def over_vocab(carry, index):
            (largest, total, product, first), best = carry
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            here = logits.max(1)
            place = (tile.start + jnp.argmax(logits, 1)).astype(jnp.int32)
            first = jnp.where(here > largest, place, first)
            now = jnp.maximum(largest, here)
            total, product = _moved(largest - now, total, product)
            below = logits - now[:, None]
            total += jnp.exp(below).sum(1)
            product += _times_exp(below).sum(1)
            if k:
                best = better(k, best, logits, tile.start)
            return ((now, total, product, first), best), None

        zeros = jnp.zeros(size, dtype)
        start: Any = (jnp.full(size, lowest), zeros, zeros, jnp.zeros(size, jnp.int32)), None
        if k:  # the first tile has k classes, with which no sentinel competes
            start, _ = over_vocab(start, 0)
        rest = jnp.arange(min(k, 1), tile_count(bias.shape[0], options))
        found, _ = lax.scan(over_vocab, start, rest)
        return found

    found = lax.map(over_tokens, token_tiles(hidden, size))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:tokens], found)


def _times_exp(distance: jax.Array) -> jax.Array:
    """``x exp(x)``, 0 where the exponential is, be the distance infinite."""
    e = jnp.exp(distance)
    return jnp.where(e == 0, 0, distance * e)


def _moved(shift: jax.Array, total: jax.Array, product: jax.Array) -> tuple[jax.Array, jax.Array]:
    """s and t by a maximum that is larger by ``-shift``."""
    decay = jnp.exp(shift)
    return total * decay, product * decay + total * _times_exp(shift)


def _forward(
    sharding: VocabSharding,
    options: Options,
    top_k: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
) -> tuple[tuple, tuple]:
    found = statistics(sharding, options, top_k, hidden, weight, bias, labels)
    return found, (hidden, weight, bias, labels, *found[1:3])


def _backward(
    sharding: VocabSharding,
    options: Options,
    _top_k: int,
    residuals: tuple,
    cotangents: Sequence[Any],
) -> tuple[jax.Array | None, ...]:
    def on_device(residuals, cotangents):
        hidden, weight, bias, labels, entropy, log_sum_exp = residuals
        of_label, of_entropy, of_sum = (a.reshape(-1) for a in cotangents)
        unused = (of_label == 0) & (of_entropy == 0) & (of_sum == 0)
        straight = of_sum - of_label - of_entropy * entropy.reshape(-1)
        factors = Factors(straight, jnp.zeros_like(straight), -of_label, of_entropy)
        return gradients_on_device(
            sharding, TiledEngine(), options, hidden, weight, bias, labels,
            log_sum_exp.reshape(-1), factors, unused,
        )  # fmt: skip

    tokens, table, classes = specs(sharding, options)
    in_specs = ((tokens, table, classes, tokens, tokens, tokens), (tokens,) * 3)
    out_specs = (tokens, table, classes)
    gradients = sharding.run(on_device, in_specs, out_specs, residuals, tuple(cotangents[:3]))
    return (*gradients, None)


statistics.defvjp(_forward, _backward)
