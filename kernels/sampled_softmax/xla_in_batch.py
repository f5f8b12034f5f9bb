"""The log-sum-exps of an in-batch softmax by tiles: each query's over the items, and, for the
symmetric form, each item's over the queries.

The logits of a tile of queries and items add to the running sums of both and are forgotten; the
backward pass computes them again and turns them into the gradients of both directions at once. So
either form takes four matmuls, and memory grows with the batch, not with its square.

With the batch split over devices each has its own queries and gathers all items, and the gradients
of the items go back to where they came from: that is what is sent.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    largest_of,
    tile_count,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.xla_two_pass import gradients_by_tile
from jaxnets.kernels.numerics import accumulator_dtype, log_of_sum, matmul, result_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding


class Side(NamedTuple):
    """Queries, or items: vectors [n, features] and what each logit of theirs is shifted by, [n].

    An offset of -inf: no candidate. ``labels [n]``, or None: no two items are the same.
    """

    vectors: jax.Array
    offset: jax.Array
    labels: jax.Array | None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def log_sum_exps(
    sharding: VocabSharding,
    options: Options,
    symmetric: bool,
    queries: Side,
    items: Side,
    extra: Side | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Of each query over items and ``extra`` ones, [batch]; of each item over queries, or None.

    Query i and item i are a pair, which counts whatever its labels are; another item of the same
    label does not. Offsets are constants.
    """
    return _forward(sharding, options, symmetric, queries, items, extra)[0]


def _forward(
    sharding: VocabSharding,
    options: Options,
    symmetric: bool,
    queries: Side,
    items: Side,
    extra: Side | None,
) -> tuple[tuple[jax.Array, jax.Array | None], tuple]:
    def on_device(queries, items, extra):
        every, first = _every_item(sharding, items, extra)
        rows, columns = _over_tiles(options, symmetric, queries, every, first)
        if columns is not None:
            largest, total = columns
            if sharding.token_axes:
                of_all = lax.pmax(largest, sharding.token_axes)
                total = sharding.sum_over_tokens(total * jnp.exp(largest - of_all))
                largest = of_all
            own = lax.dynamic_slice_in_dim(log_of_sum(largest, total), first, rows.shape[0])
            return rows, own
        return rows, None

    tokens = sharding.token_spec
    found = sharding.run(on_device, (tokens, tokens, P()), tokens, queries, items, extra)
    return found, (queries, items, extra, found)


def _every_item(
    sharding: VocabSharding, items: Side, extra: Side | None
) -> tuple[Side, jax.Array | int]:
    """The items of all devices, then the extra ones; and where this device's own begin."""
    first: jax.Array | int = 0
    if sharding.token_axes:
        first = lax.axis_index(sharding.token_axes) * items.offset.shape[0]
        items = jax.tree.map(lambda a: lax.all_gather(a, sharding.token_axes, tiled=True), items)
    if extra is None:
        return items, first
    labels = None
    if items.labels is not None and extra.labels is not None:
        labels = _joined(items.labels, extra.labels)
    vectors, offset = _joined(items.vectors, extra.vectors), _joined(items.offset, extra.offset)
    return Side(vectors, offset, labels), first


def _joined(a: jax.Array, b: jax.Array) -> jax.Array:
    dtype = result_dtype(a, b)
    return jnp.concatenate([a.astype(dtype), b.astype(dtype)])


class _Queries(NamedTuple):
    """What a tile of queries brings, [size] each, beside the vectors."""

    number: jax.Array
    offset: jax.Array
    labels: jax.Array | None


class _Numbers(NamedTuple):
    """What the gradient of a direction's logits takes, [size] each."""

    log_sum_exp: jax.Array
    factor: jax.Array


def _query_tiles(queries: Side, first: jax.Array | int, size: int) -> tuple[jax.Array, _Queries]:
    """Vectors and the rest in tiles; what fills up the last is no candidate."""
    count = queries.offset.shape[0]
    number = first + jnp.arange(count, dtype=jnp.int32)
    labels = None if queries.labels is None else token_tiles(queries.labels, size)
    return token_tiles(queries.vectors, size), _Queries(
        token_tiles(number, size), token_tiles(queries.offset, size, -jnp.inf), labels
    )


def _no_candidate(query: _Queries, labels: jax.Array | None, start: jax.Array, size: int) -> Any:
    """Which pairs of a tile are of the same item, [queries, size], or None."""
    if query.labels is None or labels is None:
        return None
    same = query.labels[:, None] == lax.dynamic_slice_in_dim(labels, start, size)[None]
    number = start + jnp.arange(size, dtype=jnp.int32)
    return same & (query.number[:, None] != number[None])


def _without(logits: jax.Array, out: jax.Array | None) -> jax.Array:
    return logits if out is None else jnp.where(out, -jnp.inf, logits)


def _add(running: tuple[jax.Array, jax.Array], logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maximum and sum [n] with ``logits [n, more]`` added."""
    largest, total = running
    now = jnp.maximum(largest, largest_of(logits))
    return now, total * jnp.exp(largest - now) + jnp.exp(logits - now[:, None]).sum(1)


def _over_tiles(
    options: Options, symmetric: bool, queries: Side, every: Side, first: jax.Array | int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """The log-sum-exps of the queries, and maximum and sum of each item."""
    dtype = accumulator_dtype(queries.vectors, every.vectors)
    count = queries.offset.shape[0]
    size = min(options.token_tile, count)

    def nothing(n):
        return jnp.full(n, jnp.finfo(dtype).min), jnp.zeros(n, dtype)

    def over_queries(columns, block):
        vectors, query = block

        def over_items(carry, index):
            row, columns = carry
            tile = vocab_tile(every.vectors, every.offset, index, options)
            logits = matmul(vectors, tile.weight, (1, 1))
            out = _no_candidate(query, every.labels, tile.start, tile.bias.shape[0])
            if tile.fresh is not None:
                seen = jnp.broadcast_to(~tile.fresh[None], logits.shape)
                out = seen if out is None else out | seen
            logits = _without(logits, out)
            row = _add(row, logits + tile.bias[None])
            if columns is not None:
                largest, total = columns
                width = logits.shape[1]
                here = _add(
                    (
                        lax.dynamic_slice_in_dim(largest, tile.start, width),
                        lax.dynamic_slice_in_dim(total, tile.start, width),
                    ),
                    (logits + query.offset[:, None]).T,
                )
                columns = tuple(
                    lax.dynamic_update_slice_in_dim(a, part, tile.start, 0)
                    for a, part in zip(columns, here, strict=True)
                )
            return (row, columns), None

        tiles = jnp.arange(tile_count(every.offset.shape[0], options))
        (row, columns), _ = lax.scan(over_items, (nothing(size), columns), tiles)
        return columns, log_of_sum(*row)

    start = nothing(every.offset.shape[0]) if symmetric else None
    columns, rows = lax.scan(over_queries, start, _query_tiles(queries, first, size))
    return rows.reshape(-1)[:count], columns


def _backward(
    sharding: VocabSharding, options: Options, symmetric: bool, residuals: tuple, cotangents: Any
) -> tuple[Side, Side, Side | None]:
    tokens = sharding.token_spec
    d_queries, d_items, d_extra = sharding.run(
        partial(_gradients, sharding, options, symmetric),
        ((tokens, tokens, P(), tokens), tokens), (tokens, tokens, P()), residuals, cotangents,
    )  # fmt: skip
    queries, items, extra, _ = residuals
    return (
        _as_gradient(queries, d_queries),
        _as_gradient(items, d_items),
        None if extra is None else _as_gradient(extra, d_extra),
    )


def _as_gradient(side: Side, vectors: jax.Array) -> Side:
    return Side(vectors, jnp.zeros_like(side.offset), None)


def _gradients(
    sharding: VocabSharding, options: Options, symmetric: bool, residuals: tuple, cotangents: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """On each device: of its queries, of its items and of the extra ones."""
    queries, items, extra, found = residuals
    every, first = _every_item(sharding, items, extra)
    count, own = every.offset.shape[0], items.offset.shape[0]
    size = min(options.token_tile, own)
    vectors, query = _query_tiles(queries, first, size)
    row = _numbers(found[0], cotangents[0])
    row = _Numbers(token_tiles(row.log_sum_exp, size, jnp.inf), token_tiles(row.factor, size))
    column = None
    if symmetric:
        column = _numbers(found[1], cotangents[1])
        if sharding.token_axes:
            column = jax.tree.map(
                lambda a: lax.all_gather(a, sharding.token_axes, tiled=True), column
            )
        more = (0, count - column.factor.shape[0])
        column = _Numbers(
            jnp.pad(column.log_sum_exp, more, constant_values=jnp.inf), jnp.pad(column.factor, more)
        )

    def slopes(_index, tile):
        size = tile.bias.shape[0]
        here = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, tile.start, size), column)

        def slope(vectors, numbers):
            query, row = numbers
            logits = matmul(vectors, tile.weight, (1, 1))
            logits = _without(logits, _no_candidate(query, every.labels, tile.start, size))
            of_row = jnp.exp(logits + (tile.bias[None] - row.log_sum_exp[:, None]))
            gradient = row.factor[:, None] * of_row
            if here is not None:
                shift = query.offset[:, None] - here.log_sum_exp[None]
                gradient += here.factor[None] * jnp.exp(logits + shift)
            return gradient

        return slope

    d_queries, d_every, _ = gradients_by_tile(
        options, vectors, every.vectors, every.offset, (query, row), slopes
    )
    d_queries = d_queries[:own].astype(queries.vectors.dtype)
    of_batch = own * sharding.token_shards
    d_items, d_extra = d_every[:of_batch], d_every[of_batch:]
    if sharding.token_axes:
        d_items = lax.psum_scatter(d_items, sharding.token_axes, tiled=True)
    d_items = d_items.astype(items.vectors.dtype)
    if extra is None:
        return d_queries, d_items, None
    return d_queries, d_items, sharding.sum_over_tokens(d_extra).astype(extra.vectors.dtype)


def _numbers(log_sum_exp: jax.Array, factor: jax.Array) -> _Numbers:
    """Of a factor of 0 the softmax is 0: there may have been no candidate at all."""
    return _Numbers(jnp.where(factor == 0, jnp.inf, log_sum_exp), factor)


log_sum_exps.defvjp(_forward, _backward)
