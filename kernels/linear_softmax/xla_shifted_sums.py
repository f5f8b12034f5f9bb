"""Sums of exponentials of a tile of tokens over all classes, above a shift that is known ahead.

The exponentials are kept for the gradient of the table: ``xla_one_pass.py`` says why they may be
those above any shift that is not too low. Totals tell whether it was, and then all is done again.

They are kept tile by tile, [tiles, tokens, size], or ``in_columns``, [tokens, tiles * size]: there
XLA for TPU lets the matmul of the logits write them, where else it copies each tile once more. Or
``by_class``, [tokens, vocab], for one matmul over all of them.
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
    VocabTile,
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
    by_class: bool  # how exponentials are kept, where no filter leaves any out


class Kept(NamedTuple):
    """What is kept of tiles of classes, or of one of them."""

    e: jax.Array
    largest: jax.Array | None  # of a token, [tiles, tokens]; only a filter wants it


Sums = tuple[jax.Array, jax.Array, Kept]


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


def _room(how: Pass, hidden: jax.Array, bias: jax.Array) -> Kept:
    tokens, tiles = hidden.shape[0], tile_count(bias.shape[0], how.options)
    size = min(how.options.vocab_tile, bias.shape[0])
    shape: tuple[int, ...] = (tiles, tokens, size)
    if how.by_class:
        shape = tokens, bias.shape[0]
    elif how.options.in_columns:
        shape = tokens, tiles * size
    largest = None if how.gradient_filter is None else unset((tiles, tokens), how.dtype, hidden)
    return Kept(unset(shape, hidden.dtype, hidden), largest)


def _column(kept: Kept, index: jax.Array, size: int) -> jax.Array:
    """The first column of a tile.

    It exceeds no bound, and XLA for TPU is not to know: of a place that each step has of its own it
    makes a copy from VMEM, and no end of the matmul.
    """
    return jnp.minimum(index * size, kept.e.shape[1] - size)


def _with_tile(how: Pass, kept: Kept, index: jax.Array, tile: VocabTile, new: Kept) -> Kept:
    """``kept`` with ``new``, of one tile of classes, in its place."""
    size = tile.bias.shape[0]
    if how.by_class:
        e = new.e
        if tile.fresh is not None:
            # What a tile that was moved back shares with the one before is there already.
            old = lax.dynamic_slice_in_dim(kept.e, tile.start, size, 1)
            e = jnp.where(tile.fresh[None], e, old)
        e = lax.dynamic_update_slice_in_dim(kept.e, e, tile.start, 1)
    elif how.options.in_columns:
        column = _column(kept, index, size)
        e = lax.dynamic_update_slice_in_dim(kept.e, new.e, column, 1)
    else:
        e = lax.dynamic_update_index_in_dim(kept.e, new.e, index, 0)
    if kept.largest is None:
        return Kept(e, None)
    return Kept(e, lax.dynamic_update_index_in_dim(kept.largest, new.largest, index, 0))


def kept_tile(how: Pass, kept: Kept, index: jax.Array, tile: VocabTile) -> Kept:
    """What is kept of ``tile``, the ``index``-th: exponentials [tokens, size], and the largest."""
    if how.options.in_columns:
        size = tile.bias.shape[0]
        e = lax.dynamic_slice_in_dim(kept.e, _column(kept, index, size), size, 1)
    else:
        e = kept.e[index]
    return Kept(e, None if kept.largest is None else kept.largest[index])


def _sums_at(
    how: Pass,
    shift: jax.Array,
    kept: Kept,
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
        kept = _with_tile(how, kept, index, tile, Kept(e, largest))
        if how.options.in_columns:
            # Read again from there: XLA for TPU would compute it once more for the matmul.
            e, _ = kept_tile(how, kept, index, tile)
        total += tile_total
        hidden_gradient += unless_small(
            how, largest, total, left_out, lambda: times_tile(e, tile, how.options)
        )
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
