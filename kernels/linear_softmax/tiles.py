"""Tiles of logits: what the one-pass and the two-pass gradient, evaluation and top-k share.

A last tile that would stick out of the vocabulary is moved back inside it, so that every tile has
one static shape and no array is padded; the classes that an earlier tile has seen are masked.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.losses import read_rows
from jaxnets.kernels.numerics import accumulator_dtype, matmul
from jaxnets.kernels.rows.distinct import distinct_ids


class Options(NamedTuple):
    """What shapes the loss and the tiles; static under ``jit``.

    ``features_first``: tables are [features, vocab], and so are their tiles and gradients.
    ``compute_dtype``: what the operands of the matmuls are rounded to; None: nothing is.
    ``precision``: of the matmuls; None: as ``jax_default_matmul_precision`` has it.
    ``num_classes``: how many of a table's rows are classes, the others being padding; None: all.
    ``in_columns``: how the one pass keeps its exponentials, see ``xla_shifted_sums.py``.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0
    soft_cap: float | None = None
    token_tile: int = 128
    vocab_tile: int = 1024
    features_first: bool = False
    compute_dtype: jnp.dtype | None = None
    precision: lax.Precision | None = None
    num_classes: int | None = None
    in_columns: bool = False

    @property
    def vocab_axis(self) -> int:
        """Of a table."""
        return 1 if self.features_first else 0

    def classes(self, vocab_size: int) -> int:
        """How many classes there are in a table of ``vocab_size`` rows."""
        return vocab_size if self.num_classes is None else self.num_classes

    def rounded(self, array: jax.Array) -> jax.Array:
        """``array`` in the dtype that is computed in."""
        return array if self.compute_dtype is None else array.astype(self.compute_dtype)

    def accumulator(self, hidden: jax.Array, weight: jax.Array) -> jnp.dtype:
        """What logits, sums and gradients are kept in."""
        computed = self.compute_dtype
        return (
            accumulator_dtype(hidden, weight) if computed is None else accumulator_dtype(computed)
        )


class VocabTile(NamedTuple):
    """Classes [start, start + size) of the projection, and which of them no earlier tile saw."""

    start: jax.Array
    weight: jax.Array  # [size, features], or [features, size]
    bias: jax.Array  # [size]
    fresh: jax.Array | None  # [size] bool; None: all are

    @property
    def inside(self) -> jax.Array:
        """[size] bool: the classes that are in; one of bias -inf is out, as padding is."""
        return is_in(self.bias)


def is_in(bias: jax.Array) -> jax.Array:
    """Which classes are in: all but those of bias -inf. NaN is no way to be out."""
    return ~jnp.isneginf(bias)


def tile_count(vocab_size: int, options: Options) -> int:
    """How many vocabulary tiles cover ``vocab_size`` classes."""
    return -(-vocab_size // options.vocab_tile)


def vocab_tile(
    weight: jax.Array, bias: jax.Array, index: int | jax.Array, options: Options
) -> VocabTile:
    """The ``index``-th tile of the projection ``weight [vocab, features]``, ``bias [vocab]``.

    The tile is rounded, not the table, of which that would be a whole copy.
    """
    vocab_size = bias.shape[0]
    size = min(options.vocab_tile, vocab_size)
    start = jnp.minimum(index * size, vocab_size - size)
    fresh = (
        None
        if vocab_size % size == 0
        else start + jnp.arange(size, dtype=start.dtype) >= index * size
    )
    return VocabTile(
        start,
        options.rounded(lax.dynamic_slice_in_dim(weight, start, size, options.vocab_axis)),
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
    logits = matmul(hidden, tile.weight, (1, 1 - options.vocab_axis), options.precision)
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
    """The logits [tokens] at ``labels``, their slope, and the rows [tokens, features] they used.

    A label out of range gives NaN, that of a class that is out -inf, with slope 0.
    """
    dtype = options.accumulator(hidden, weight)
    rows = options.rounded(read_rows(weight, labels, options.features_first))
    if options.compute_dtype is not None:
        # XLA may leave out a rounding that is undone at once (xla_allow_excess_precision): the
        # label's logit would be of another precision than the log-sum-exp that it is taken from.
        hidden, rows = lax.optimization_barrier((hidden, rows))
    rows = rows.astype(dtype)
    offsets = bias.at[labels].get(mode="fill", fill_value=jnp.nan).astype(dtype)
    logits, slope = cap_logits((hidden.astype(dtype) * rows).sum(1) + offsets, options.soft_cap)
    inside = is_in(offsets)
    slope = jnp.where(inside, jnp.ones_like(logits) if slope is None else slope, 0)
    return jnp.where(inside, logits, -jnp.inf), slope, rows


def class_count(bias: jax.Array) -> jax.Array:
    """How many classes are in, those of bias -inf being out: what label smoothing divides by."""
    return is_in(bias).sum(dtype=accumulator_dtype(bias))


def scaled(array: jax.Array, scale: jax.Array | None) -> jax.Array:
    """``array [tokens, ...]`` times ``scale [tokens]``; None is 1."""
    if scale is None:
        return array
    return array * jnp.expand_dims(scale, range(1, array.ndim))


def largest_of(logits: jax.Array) -> jax.Array:
    """The maximum of each token, [tokens], finite where a whole tile is -inf: no class is in it.

    exp(-inf - -inf) would be NaN.
    """
    return jnp.maximum(logits.max(1), jnp.finfo(logits.dtype).min)


def times_tile(gradient: jax.Array, tile: VocabTile, options: Options) -> jax.Array:
    """``gradient [tokens, size]`` of a tile's logits as its share of the hidden states'."""
    return matmul(gradient, tile.weight, (1, options.vocab_axis), options.precision)


def table_gradient(gradient: jax.Array, hidden: jax.Array, options: Options) -> jax.Array:
    """``gradient [tokens, size]`` of a tile's logits as that of the tile, in the table's layout."""
    a, b = (hidden, gradient) if options.features_first else (gradient, hidden)
    return matmul(a, b, (0, 0), options.precision)


def add_slice(array: jax.Array, part: jax.Array, start: jax.Array, axis: int = 0) -> jax.Array:
    """``array`` with ``part`` added from ``start`` on; in place where XLA can."""
    old = lax.dynamic_slice_in_dim(array, start, part.shape[axis], axis)
    return lax.dynamic_update_slice_in_dim(array, old + part, start, axis)


def unset_like(table: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """An array for :func:`put_or_add` to fill, of the table's shape and place."""
    sharding = jax.typeof(table).sharding
    return lax.empty(table.shape, dtype, out_sharding=None if sharding.mesh.empty else sharding)


def unset(shape: tuple[int, ...], dtype: jnp.dtype, beside: jax.Array) -> jax.Array:
    """An array to fill, whole on each device of the mesh that ``beside`` is on.

    XLA for TPU fills one of zeros, which takes as long as a matmul.
    """
    mesh = jax.typeof(beside).sharding.mesh
    whole = None if mesh.empty else jax.NamedSharding(mesh, jax.P())
    return lax.empty(shape, dtype, out_sharding=whole)


def put_or_add(
    array: jax.Array, part: jax.Array, tile: VocabTile, first: jax.Array, options: Options
) -> jax.Array:
    """``array``, of the table's shape, with ``part`` in the place of the tile's classes, or added.

    ``first`` [] bool: put, so that nobody need fill the array with zeros before.
    """
    axis = options.vocab_axis
    old = lax.dynamic_slice_in_dim(array, tile.start, part.shape[axis], axis)
    # What a tile that was moved back shares with the one before has been put there already.
    unseen = first if tile.fresh is None else jnp.expand_dims(first & tile.fresh, 1 - axis)
    new = (jnp.where(unseen, 0, old).astype(part.dtype) + part).astype(array.dtype)
    return lax.dynamic_update_slice_in_dim(array, new, tile.start, axis)


def add_at(array: jax.Array, labels: jax.Array, rows: jax.Array, options: Options) -> jax.Array:
    """``array``, of the table's shape, with ``rows [tokens, features]`` added at ``labels``.

    An array of fewer bits than ``rows`` is rounded once, not once a token of the same label.
    """
    if array.dtype != rows.dtype:
        labels, local = distinct_ids(labels, array.shape[options.vocab_axis])
        rows = jnp.zeros_like(rows).at[local].add(rows, mode="drop").astype(array.dtype)
    if options.features_first:
        return array.at[:, labels].add(rows.T, mode="drop")
    return array.at[labels].add(rows, mode="drop")


def token_tiles(array: jax.Array, size: int, padding_value: float = 0) -> jax.Array:
    """``array [tokens, ...]`` as [tiles, size, ...], padded."""
    tokens = array.shape[0]
    padding = -tokens % size
    if padding:
        widths = [(0, padding)] + [(0, 0)] * (array.ndim - 1)
        array = jnp.pad(array, widths, constant_values=padding_value)
    return array.reshape(-1, size, *array.shape[1:])
