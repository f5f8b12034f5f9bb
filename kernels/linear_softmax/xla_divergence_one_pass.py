"""A weighted sum of divergences and its whole gradient, each head's logits computed once.

As in ``xla_one_pass.py``, a tile of tokens goes over the vocabulary tile by tile and keeps what it
computes, here the logits of both heads, [token_tile, vocab] each. Once their log-sum-exps are known
a tile of both becomes the gradient by the student's logits (see ``xla_divergence.py``), and that
its shares of the gradients of the hidden states and the table: three matmuls of the student's size
and one of the teacher's, where a divergence for each token takes five and three.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.sharded import log_sum_exp_of_all
from jaxnets.kernels.linear_softmax.tile_sizes import MOST_ROUNDINGS
from jaxnets.kernels.linear_softmax.tiles import (
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
from jaxnets.kernels.linear_softmax.xla_divergence import (
    Both,
    both_specs,
    divergence_per_token,
    divergence_slope,
    divergence_terms,
)
from jaxnets.kernels.losses import reduce_losses, times_cotangent
from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.vocab_sharding import VocabSharding


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_divergence(
    sharding: VocabSharding,
    both: Both,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    factors: jax.Array,
) -> jax.Array:
    """Sum over tokens of ``factors [...]`` times the divergence; one of factor 0 is left out.

    ``scale [...]`` multiplies the logits; None is 1.
    """
    divergences, _ = divergence_per_token(sharding, both, student, teacher, scale, None)
    return reduce_losses(divergences, factors, "sum")


def _forward(
    sharding: VocabSharding,
    both: Both,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    factors: jax.Array,
) -> tuple[jax.Array, tuple]:
    places, tokens = both_specs(sharding, both), sharding.token_spec
    gradients, divergences = sharding.run(
        partial(_on_device, sharding, both), (*places, tokens, tokens), (places[0], tokens),
        student, teacher, scale, factors,
    )  # fmt: skip
    return reduce_losses(divergences, factors, "sum"), (gradients, divergences)


def _on_device(
    sharding: VocabSharding,
    both: Both,
    student: tuple,
    teacher: tuple,
    scale: jax.Array | None,
    factors: jax.Array,
) -> tuple[tuple, jax.Array]:
    """Gradients of the student's arrays, and the divergences [...]: of a device's own tokens."""
    (hidden, weight, bias), shape, options = student, student[0].shape, both.student
    dtype, count = options.accumulator(hidden, weight), tile_count(bias.shape[0], options)
    heads = (both.student, *student), (both.teacher, *teacher)
    flat = [each.rounded(rows.reshape(-1, rows.shape[-1])) for each, rows, *_ in heads]
    tokens = flat[0].shape[0]
    size = min(options.token_tile, tokens)

    def over_tokens(gradients, xs):
        first, flat, scale, factors = xs
        left_out = factors == 0
        flat = [jnp.where(left_out[:, None], 0, hidden) for hidden in flat]
        scale = None if scale is None else jnp.where(left_out, 1, scale)

        def over_vocab(carry, index):
            found, kept = [], []
            for (each, _, *table), rows, (largest, total) in zip(heads, flat, carry, strict=True):
                logits, _ = tile_logits(rows, vocab_tile(table[0], table[1], index, each), each)
                logits = scaled(logits, scale)
                new = jnp.maximum(largest, largest_of(logits))
                total = total * jnp.exp(largest - new) + jnp.exp(logits - new[:, None]).sum(1)
                found.append((new, total))
                kept.append(logits)
            return found, kept

        zeros = jnp.zeros(size, dtype)
        start = [(jnp.full(size, jnp.finfo(dtype).min), zeros)] * 2
        sums, (of_student, of_teacher) = lax.scan(over_vocab, start, jnp.arange(count))
        # exp(logits - inf) is 0: of tokens that are left out.
        sum_s, sum_t = (
            jnp.where(left_out, jnp.inf, log_sum_exp_of_all(sharding, log_of_sum(*each)))
            for each in sums
        )

        def log_probs(index):
            return of_student[index] - sum_s[:, None], of_teacher[index] - sum_t[:, None]

        def of_tile(index, totals):
            parts = divergence_terms(both, *log_probs(index))
            return [total + part.sum(1) for total, part in zip(totals, parts, strict=True)]

        divergence, own = sharding.sum_over_vocab(lax.fori_loop(0, count, of_tile, [zeros, zeros]))
        factors = scaled(factors, scale)
        by_factor = (flat[0].astype(dtype) * factors[:, None]).astype(flat[0].dtype)

        def over_tiles(index, gradients):
            hidden_gradient, weight_gradient, bias_gradient = gradients
            tile = vocab_tile(weight, bias, index, options)
            log_q, log_p = log_probs(index)
            slope = divergence_slope(both, log_q, log_p, own)
            bias_part = jnp.matmul(factors, slope, precision=options.precision)
            slope = slope.astype(by_factor.dtype)
            part = table_gradient(slope, by_factor, options)
            return (
                hidden_gradient + times_tile(slope, tile, options),
                put_or_add(weight_gradient, part, tile, first, options),
                add_slice(bias_gradient, bias_part, tile.start),
            )

        hidden_gradient, *gradients = lax.fori_loop(
            0, count, over_tiles, (jnp.zeros(flat[0].shape, dtype), *gradients)
        )
        hidden_gradient = sharding.sum_over_vocab(hidden_gradient * factors[:, None])
        return tuple(gradients), (divergence, hidden_gradient.astype(hidden.dtype))

    few = tokens <= MOST_ROUNDINGS * size
    nothing = unset_like(weight, weight.dtype if few else dtype)  # the first tile sets it
    flat_scale = None if scale is None else scale.reshape(-1)
    tiles = jax.tree.map(lambda a: token_tiles(a, size), (flat, flat_scale, factors.reshape(-1)))
    first = jnp.arange(-(-tokens // size)) == 0
    of_table, (divergences, hidden_gradient) = lax.scan(
        over_tokens, (nothing, jnp.zeros(bias.shape, dtype)), (first, *tiles)
    )
    d_weight, d_bias = sharding.sum_over_tokens(of_table)
    d_hidden = hidden_gradient.reshape(-1, shape[-1])[:tokens].reshape(shape)
    gradients = d_hidden, d_weight.astype(weight.dtype), d_bias.astype(bias.dtype)
    return gradients, divergences.reshape(-1)[:tokens].reshape(shape[:-1])


def _backward(
    _sharding: VocabSharding, _both: Both, residuals: tuple, cotangent: jax.Array
) -> tuple[tuple, None, None, jax.Array]:
    gradients, of_factors = times_cotangent(residuals, cotangent)
    return gradients, None, None, of_factors


weighted_divergence.defvjp(_forward, _backward)
