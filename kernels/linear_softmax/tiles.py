"""Tiles of logits: what the one-pass and the two-pass gradient, evaluation and top-k share.

A last tile that would stick out of the vocabulary is moved back inside it, so that every tile has
one static shape and no array is padded; the classes that an earlier tile has seen are masked.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.numerics import accumulator_dtype, matmul


class Options(NamedTuple):
    """What shapes the loss and the tiles; static under ``jit``."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None
    token_tile: int = 128
    vocab_tile: int = 1024


class VocabTile(NamedTuple):
    """Rows [start, start + size) of the projection, and which of them no earlier tile has seen."""

    start: jax.Array
    weight: jax.Array  # [size, features]
    bias: jax.Array  # [size]
    fresh: jax.Array | None  # [size] bool; None: all are

    @property
    def inside(self) -> jax.Array:
        """[size] bool: the classes that are in; one of bias -inf is out, as padding is."""
        return is_in(self.bias)


def is_in(bias: jax.Array) -> jax.Array:
    """Which classes are in: all but those of bias -inf. NaN is no way to be out."""
    return ~jnp.isneginf(bias)


def tile_count(vocab: int, options: Options) -> int:
    """How many vocabulary tiles cover ``vocab`` classes."""
    return -(-vocab // options.vocab_tile)


def vocab_tile(
    weight: jax.Array, bias: jax.Array, index: int | jax.Array, options: Options
) -> VocabTile:
    """The ``index``-th tile of the projection ``weight [vocab, features]``, ``bias [vocab]``."""
    vocab = weight.shape[0]
    size = min(options.vocab_tile, vocab)
    start = jnp.minimum(index * size, vocab - size)
    fresh = (
        None if vocab % size == 0 else start + jnp.arange(size, dtype=start.dtype) >= index * size
    )
    return VocabTile(
        start,
        lax.dynamic_slice_in_dim(weight, start, size),
        lax.dynamic_slice_in_dim(bias, start, size),
        fresh,
    )


def cap_logits(logits: jax.Array, soft_cap: float | None) -> tuple[jax.Array, jax.Array | None]:
    """The soft-capped logits and their slope, d capped / d logits (None: nothing is capped)."""
    if soft_cap is None:
        return logits, None
    bent = jnp.tanh(logits / soft_cap)
    return soft_cap * bent, 1 - bent * bent


def tile_logits(
    hidden: jax.Array, tile: VocabTile, options: Options
) -> tuple[jax.Array, jax.Array | None]:
    """Logits [tokens, size] of one tile, and their slope under the cap.

    -inf where a class is not fresh or is out, which a cap would bring back.
    """
    logits = matmul(hidden, tile.weight, (1, 1))
    logits = logits + tile.bias[None].astype(logits.dtype)
    logits, slope = cap_logits(logits, options.soft_cap)
    counts = tile.fresh
    if options.soft_cap is not None:
        counts = tile.inside if counts is None else counts & tile.inside
    if counts is not None:
        logits = jnp.where(counts[None], logits, -jnp.inf)
    return logits, slope


def label_logits(
    hidden: jax.Array, weight: jax.Array, bias: jax.Array, labels: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The logits [tokens] at ``labels``, their slope, and the rows of ``weight`` they used.

    A label out of range gives NaN, that of a class that is out -inf, with slope 0.
    """
    dtype = accumulator_dtype(hidden, weight)
    rows = weight.at[labels].get(mode="fill", fill_value=jnp.nan).astype(dtype)
    offsets = bias.at[labels].get(mode="fill", fill_value=jnp.nan).astype(dtype)
    logits, slope = cap_logits((hidden.astype(dtype) * rows).sum(1) + offsets, options.soft_cap)
    inside = is_in(offsets)
    slope = jnp.where(inside, jnp.ones_like(logits) if slope is None else slope, 0)
    return jnp.where(inside, logits, -jnp.inf), slope, rows


def class_count(bias: jax.Array) -> jax.Array:
    """How many classes are in, those of bias -inf being out: what label smoothing divides by."""
    return is_in(bias).sum(dtype=accumulator_dtype(bias))


def largest_of(logits: jax.Array) -> jax.Array:
    """The maximum of each token, [tokens], finite where a whole tile is -inf: no class is in it.

    exp(-inf - -inf) would be NaN.
    """
    return jnp.maximum(logits.max(1), jnp.finfo(logits.dtype).min)


def add_rows(array: jax.Array, tile: VocabTile, rows: jax.Array) -> jax.Array:
    """``array`` with ``rows`` added at the tile's classes; in place where XLA can."""
    size = rows.shape[0]
    old = lax.dynamic_slice_in_dim(array, tile.start, size)
    return lax.dynamic_update_slice_in_dim(array, old + rows, tile.start, 0)


def token_tiles(array: jax.Array, size: int, padding_value: float = 0) -> jax.Array:
    """``array [tokens, ...]`` as [tiles, size, ...], padded."""
    tokens = array.shape[0]
    padding = -tokens % size
    if padding:
        widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, widths, constant_values=padding_value)
    return array.reshape(-1, size, *array.shape[1:])
