"""Sums of exponentials of a tile of tokens over all classes, above a shift that is known ahead.

The exponentials are kept for the gradient of the table: ``xla_one_pass.py`` says why they may be
those above any shift that is not too low. Totals tell whether it was, and then all is done again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    largest_of,
    tile_count,
    tile_logits,
    times_tile,
    unset,
    vocab_tile,
)

# A token's sum of exponentials above its shift. Where it is larger, or NaN, the shift was too low:
# times rows of the table it must not overflow, and its reciprocal, times hidden states, not vanish.
LARGEST_TOTAL = 2.0**96


class Pass(NamedTuple):
    """What is static of a tile of tokens' way over all classes."""

    options: Options
    gradient_filter: float | None
    dtype: jnp.dtype  # of sums


Sums = tuple[jax.Array, jax.Array, tuple[jax.Array, jax.Array | None]]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def shifted_sums(
    how: Pass,
    shift: jax.Array,
    left_out: jax.Array,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, Sums]:
    """A shift [tokens], at least the one that is given, at which no sum overflows, and the sums."""
    tiles = tile_count(bias.shape[0], how.options)

    def raised(index, shift):
        tile = vocab_tile(weight, bias, index, how.options)
        return jnp.maximum(shift, largest_of(tile_logits(hidden, tile, how.options)[0]))

    def attempt(state):
        tries, shift, (_, _, kept) = state
        shift = lax.fori_loop(0, jnp.where(tries == 1, tiles, 0), raised, shift)
        return tries + 1, shift, _sums_at(how, shift, kept, left_out, hidden, weight, bias)

    def overflows(state):
        tries, _, (total, *_) = state
        return (tries < 2) & ~(total <= LARGEST_TOTAL).all()

    # Of float16 the kept exponentials have too few exponents for a shift that is not the maximum.
    tries = 0 if float(jnp.finfo(hidden.dtype).max) > LARGEST_TOTAL else 1
    unknown = jnp.full_like(shift, jnp.inf), jnp.zeros(hidden.shape, how.dtype)
    start = jnp.int32(tries), shift, (*unknown, _room(how, hidden, bias))
    return lax.while_loop(overflows, attempt, start)[1:]


@shifted_sums.defjvp
def _at_that_shift(how: Pass, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """For second derivatives, which go through no loop of unknown length."""
    shift, sums = shifted_sums(how, *primals)
    _, left_out, hidden, _, bias = primals
    at_it = partial(_sums_at, how, shift, _room(how, hidden, bias), left_out)
    return (shift, sums), (jnp.zeros_like(shift), jax.jvp(at_it, primals[2:], tangents[2:])[1])


def _room(how: Pass, hidden: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """For what is kept of each tile: exponentials and, with a filter, the largest of a token."""
    tokens, tiles = hidden.shape[0], tile_count(bias.shape[0], how.options)
    tile_size = min(how.options.vocab_tile, bias.shape[0])
    e = unset((tiles, tokens, tile_size), hidden.dtype, hidden)
    return e, None if how.gradient_filter is None else unset((tiles, tokens), how.dtype, hidden)


def _sums_at(
    how: Pass,
    shift: jax.Array,
    kept: tuple[jax.Array, jax.Array | None],
    left_out: jax.Array,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
) -> Sums:
    """Of ``e``: the totals [tokens], the products with ``weight``, and what is kept."""

    def over_vocab(index, sums):
        total, hidden_gradient, kept = sums
        tile = vocab_tile(weight, bias, index, how.options)
        logits, slope = tile_logits(hidden, tile, how.options)
        e = jnp.exp(logits - shift[:, None])
        largest = None if how.gradient_filter is None else e.max(1)
        tile_total = e.sum(1)
        e = (e if slope is None else e * slope).astype(hidden.dtype)
        # XLA for TPU would compute it three times: for the sum, what is kept and the matmul.
        e, tile_total = lax.optimization_barrier((e, tile_total))
        total += tile_total
        hidden_gradient += unless_small(
            how, largest, total, left_out, lambda: times_tile(e, tile, how.options)
        )
        kept = jax.tree.map(
            lambda array, part: lax.dynamic_update_index_in_dim(array, part, index, 0),
            kept, (e, largest),
        )  # fmt: skip
        return total, hidden_gradient, kept

    nothing = jnp.zeros(shift.shape, how.dtype), jnp.zeros(hidden.shape, how.dtype), kept
    return lax.fori_loop(0, tile_count(bias.shape[0], how.options), over_vocab, nothing)


def unless_small(
    how: Pass,
    largest: jax.Array | None,
    total: jax.Array,
    left_out: jax.Array,
    matmul: Callable[[], jax.Array],
) -> jax.Array:
    """``matmul()``; zeros where the softmax, at most ``largest / total``, is too small."""
    if largest is None or how.gradient_filter is None:
        return matmul()
    small = left_out | (largest < how.gradient_filter * total)
    like = jax.eval_shape(matmul)
    return lax.cond(small.all(), lambda: jnp.zeros(like.shape, like.dtype), matmul)
