r"""The forward KL from a teacher of whom k classes and the mass of the rest are known.

With :math:`p_j` of the classes T that are named and :math:`r` of all others together, :math:`S` the
sum of them all, and z and :math:`z_r` the log-sum-exp over all classes and over those outside T

.. math::
    \text{loss} = \sum_{j \in T} p_j (\log p_j - l_j + z) + r (\log r - z_r + z), \qquad
    d l_v = S q_v - \begin{cases} p_v & v \in T \\ r\, e^{l_v - z_r} & \text{else} \end{cases}

so forward one pass over the student's logits adds up both sums, and backward a second computes the
logits again. What is known of the teacher is scattered into a tile at a time. As in
``xla_divergence.py`` the logits are multiplied by one number a token, but for the cross-entropy.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.linear_softmax.sharded import specs
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    VocabTile,
    largest_of,
    scaled,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_divergence import cross_entropies, student_gradients
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def top_k_divergence_per_token(
    sharding: VocabSharding,
    options: Options,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    labels: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """The divergence and the cross-entropy of each token, [...]; the latter of ``labels [...]``.

    ``teacher``: ids and p, [..., k] each, and the mass of the rest, [...]. An id that is no class
    counts for nothing.
    """
    return _forward(sharding, options, student, teacher, scale, labels)[0]


def _named(ids: jax.Array, p: jax.Array, tile: VocabTile, size: int) -> tuple[jax.Array, jax.Array]:
    """Of a tile's classes: the teacher's p, and whether it names them, [tokens, size] each."""
    local = ids - tile.start
    local = jnp.where(in_range(local, size), local, size)
    tokens = jnp.arange(ids.shape[0])[:, None]
    dense = jnp.full((ids.shape[0], size), -1, p.dtype).at[tokens, local].max(p, mode="drop")
    named = dense >= 0
    counts = named if tile.fresh is None else named & tile.fresh[None]
    return jnp.where(counts, dense, 0), named


def _forward(
    sharding: VocabSharding,
    options: Options,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    labels: jax.Array | None,
) -> tuple[tuple, tuple]:
    def on_device(student, teacher, scale, labels):
        (hidden, weight, bias), (ids, p, rest) = student, teacher
        scale = None if scale is None else scale.reshape(-1)
        flat = options.rounded(hidden.reshape(-1, hidden.shape[-1]))
        tokens, count = flat.shape[0], bias.shape[0]
        dtype, size = options.accumulator(hidden, weight), even(tokens, TOKENS)
        flat_ids, flat_p = (a.reshape(tokens, -1) for a in (ids - sharding.start(count), p))

        def over_tokens(xs):
            hidden, ids, p, scale = xs

            def over_vocab(carry, index):
                largest, named_sum, rest_sum, plain_sum, product = carry
                tile = vocab_tile(weight, bias, index, options)
                logits, _ = tile_logits(hidden, tile, options)
                dense, named = _named(ids, p, tile, logits.shape[1])
                now = jnp.maximum(largest, largest_of(logits))
                moved, below = largest - now, logits - now[:, None]
                e, decay = jnp.exp(scaled(below, scale)), jnp.exp(scaled(moved, scale))
                named_sum = named_sum * decay + jnp.where(named, e, 0).sum(1)
                rest_sum = rest_sum * decay + jnp.where(named, 0, e).sum(1)
                if labels is not None:
                    plain_sum = plain_sum * jnp.exp(moved) + jnp.exp(below).sum(1)
                product += jnp.where(dense == 0, 0, dense * logits).sum(1)
                return (now, named_sum, rest_sum, plain_sum, product), None

            zeros = jnp.zeros(size, dtype)
            start = jnp.full(size, jnp.finfo(dtype).min), *(zeros,) * 4
            return lax.scan(over_vocab, start, jnp.arange(tile_count(count, options)))[0]

        tiles = jax.tree.map(lambda a: token_tiles(a, size), (flat, flat_ids, flat_p, scale))
        found = lax.map(over_tokens, tiles)
        own, named_sum, rest_sum, plain_sum, product = (a.reshape(-1)[:tokens] for a in found)
        largest = sharding.max_over_vocab(own)
        moved = own - largest
        decay = jnp.exp(scaled(moved, scale))
        sums = named_sum * decay, rest_sum * decay, plain_sum * jnp.exp(moved), product
        named_sum, rest_sum, plain_sum, product = sharding.sum_over_vocab(sums)
        log_sum = log_of_sum(scaled(largest, scale), named_sum + rest_sum)
        log_rest = log_of_sum(scaled(largest, scale), rest_sum)
        flat_rest = rest.reshape(-1)
        losses = _entropy_part(flat_p).sum(1) + _entropy_part(flat_rest) - scaled(product, scale)
        losses += (flat_p.sum(1) + flat_rest) * log_sum
        losses -= jnp.where(flat_rest == 0, 0, flat_rest * log_rest)
        plain = log_of_sum(largest, plain_sum)
        of_labels = cross_entropies(sharding, options, flat, student, labels, plain)
        results = losses, log_sum, log_rest, *of_labels
        return jax.tree.map(lambda a: a.reshape(rest.shape), results)

    tokens = sharding.token_spec
    in_specs = specs(sharding, options), tokens, tokens, tokens
    divergence, log_sum, log_rest, loss, plain = sharding.run(
        on_device, in_specs, tokens, student, teacher, scale, labels
    )
    return (divergence, loss), (student, teacher, scale, labels, log_sum, log_rest, plain)


def _entropy_part(p: jax.Array) -> jax.Array:
    """``p log p``, 0 where p is."""
    return jnp.where(p == 0, 0, p * jnp.log(jnp.where(p == 0, 1, p)))


def _backward(
    sharding: VocabSharding, options: Options, residuals: tuple, cotangents: tuple
) -> tuple[tuple, None, None, None]:
    def on_device(student, teacher, scale, labels, log_sum, log_rest, plain, cotangents):
        (ids, p, rest), bias = teacher, student[2]
        of_teacher = (a.reshape(rest.size, -1) for a in (ids - sharding.start(bias.shape[0]), p))
        # Where no other class has a logit, as where there is no other, exp(-inf - inf) is 0.
        log_rest = jnp.where(jnp.isneginf(log_rest), jnp.inf, log_rest)
        rest, log_sum, log_rest = (a.reshape(-1) for a in (rest, log_sum, log_rest))

        def slopes(_index, tile):
            def slope(logits, _scale, ids, p, rest, log_sum, log_rest):
                dense, named = _named(ids, p, tile, logits.shape[1])
                others = rest[:, None] * jnp.exp(logits - log_rest[:, None])
                whole = (p.sum(1) + rest)[:, None] * jnp.exp(logits - log_sum[:, None])
                return whole - jnp.where(named, dense, others)

            return slope

        numbers = *of_teacher, rest, log_sum, log_rest
        return student_gradients(
            sharding, options, student, cotangents, scale, labels, plain, numbers, slopes
        )

    tokens, places = sharding.token_spec, specs(sharding, options)
    in_specs = places, *(tokens,) * 7
    gradients = sharding.run(on_device, in_specs, places, *residuals, cotangents)
    return gradients, None, None, None


top_k_divergence_per_token.defvjp(_forward, _backward)
