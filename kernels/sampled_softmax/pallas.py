"""The sampled softmax on Pallas: gather, matmul and log-sum-exp in one kernel.

The logits of the samples, [num_sampled, tokens], are never in memory in the forward pass; on GPU
neither are the gathered rows. The few true classes of each token are left to XLA.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.pallas.contract import Inputs, PallasOptions, Reduced, Tile
from jaxnets.kernels.pallas.fused_matmul import fused_matmul
from jaxnets.kernels.pallas.log_sum_exp import combine_tiles, tile_log_sum_exp

_FLOAT32 = jnp.dtype(jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sampled_log_sum_exp(
    call: PallasOptions,
    hidden: jax.Array,
    table: jax.Array,
    rows: jax.Array,
    ids: jax.Array,
    offset: jax.Array,
    labels: jax.Array,
) -> jax.Array:
    """Log-sum-exp [tokens] of ``table[rows] @ hidden + offset`` over the samples.

    ``hidden [tokens, features]``, ``table [all rows, features]``, ``rows [num_sampled]`` int32 into
    it, ``ids [num_sampled]`` int32: which classes they are, ``offset [num_sampled]`` float32,
    ``labels [tokens, num_true]`` int32: a sample is left out for the tokens whose label it is (-1:
    no label). -inf where all are left out.
    """
    largest, total = fused_matmul(
        call, table, hidden, Inputs([offset, ids], list(labels.T)),
        epilogue=partial(_tile_statistics, ids.shape[0]),
        outputs=(Reduced(_FLOAT32), Reduced(_FLOAT32)),
        name="sampled_softmax_statistics", left_ids=rows,
    )  # fmt: skip
    return combine_tiles(largest, total)


def _logits(
    product: jax.Array, rows: Sequence[jax.Array], labels: Sequence[jax.Array]
) -> jax.Array:
    offset, ids = rows
    logits = product + offset
    for label in labels:
        logits = jnp.where(ids == label, -jnp.inf, logits)
    return logits


def _tile_statistics(
    num_sampled: int,
    product: jax.Array,
    row_ids: jax.Array,
    rows: Sequence[jax.Array],
    labels: Sequence[jax.Array],
    _tiles: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    logits = _logits(product, rows, labels)
    return tile_log_sum_exp(jnp.where(row_ids < num_sampled, logits, -jnp.inf))


def _tile_gradient(
    product: jax.Array,
    _row_ids: jax.Array,
    rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    _tiles: Sequence[jax.Array],
) -> tuple[jax.Array]:
    log_sum_exp, cotangent, *labels = columns
    return (cotangent * jnp.exp(_logits(product, rows, labels) - log_sum_exp),)


def _forward(
    call: PallasOptions,
    hidden: jax.Array,
    table: jax.Array,
    rows: jax.Array,
    ids: jax.Array,
    offset: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, tuple]:
    log_sum_exp = sampled_log_sum_exp(call, hidden, table, rows, ids, offset, labels)
    return log_sum_exp, (hidden, table, rows, ids, offset, labels, log_sum_exp)


def _backward(
    call: PallasOptions, residuals: tuple, cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    hidden, table, rows, ids, offset, labels, log_sum_exp = residuals
    finite = jnp.where(jnp.isneginf(log_sum_exp), 0, log_sum_exp)  # no sample is left: all 0
    (gradient,) = fused_matmul(
        call, table, hidden, Inputs([offset, ids], [finite, cotangent, *labels.T]),
        epilogue=_tile_gradient, outputs=(Tile(hidden.dtype),),
        name="sampled_softmax_gradient", left_ids=rows,
    )  # fmt: skip
    by_row = matmul(gradient, hidden, (1, 0))
    return (
        matmul(gradient, table[rows], (0, 0)).astype(hidden.dtype),
        jnp.zeros(table.shape, by_row.dtype).at[rows].add(by_row).astype(table.dtype),
        None,
        None,
        gradient.sum(1, dtype=_FLOAT32).astype(offset.dtype),
        None,
    )


sampled_log_sum_exp.defvjp(_forward, _backward)
