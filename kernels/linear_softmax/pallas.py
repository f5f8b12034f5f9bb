"""The engine on Pallas: logits live in registers or VMEM only, tile by tile.

The forward pass is one kernel: each tile of logits, classes x tokens, leaves a maximum, a sum of
exponentials and its share of the label's logit. The backward pass goes over the vocabulary in
chunks: the kernel computes a chunk's logits again and writes their gradient, label and all, in the
dtype of the hidden states; two plain matmuls, at which XLA's libraries are hard to beat, turn it
into the rows of the weights' gradient and into a share of the hidden states'. So four matmuls of
the size tokens x features x vocab in all, and temporaries of ``_CHUNK`` logits. (Compare "Cut Your
Losses in Large-Vocabulary Language Models", Wijmans et al. 2025, section 4, which adds up the
gradients by atomics.)
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.linear_softmax.per_token import Factors, Statistics
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    VocabTile,
    add_slice,
    cap_logits,
    tile_count,
    vocab_tile,
)
from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.pallas.contract import Inputs, PallasOptions, Reduced, Tile
from jaxnets.kernels.pallas.fused_matmul import fused_matmul
from jaxnets.kernels.pallas.log_sum_exp import combine_tiles, tile_log_sum_exp

_CHUNK = 2**26  # logits whose gradients are in memory at one time
_FLOAT32 = jnp.dtype(jnp.float32)


class FusedEngine(NamedTuple):
    """An :class:`Engine` for GPU and TPU."""

    call: PallasOptions

    def statistics(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: jax.Array,
    ) -> Statistics:
        if not options.features_first and options.compute_dtype is None:
            return self._statistics(options, hidden, weight, bias, labels)
        # The kernel wants classes in rows, and in the dtype that is computed in: a chunk of the
        # table at a time is turned and rounded.
        tokens, vocab_size = hidden.shape[0], bias.shape[0]
        chunked = options._replace(vocab_tile=_chunk(tokens, vocab_size))

        def over_vocab(_, index):
            tile = vocab_tile(weight, bias, index, chunked)
            seen = jnp.where(_fresh(tile), tile.bias, -jnp.inf)
            own = labels >= index * chunked.vocab_tile
            here = jnp.where(own & in_range(labels, vocab_size), labels - tile.start, -1)
            rows = tile.weight.T if options.features_first else tile.weight
            part = self._statistics(options, hidden, rows, seen, here)
            return None, part

        _, parts = lax.scan(over_vocab, None, jnp.arange(tile_count(vocab_size, chunked)))
        log_sum_exp = jax.nn.logsumexp(parts.log_sum_exp, 0)
        return Statistics(log_sum_exp, parts.logit_sum.sum(0), parts.label_logit.sum(0))

    def _statistics(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: jax.Array,
    ) -> Statistics:
        smoothing = bool(options.label_smoothing)
        partials = fused_matmul(
            self.call, weight, hidden, Inputs([bias], [labels]),
            epilogue=partial(tile_statistics, options.soft_cap, weight.shape[0], smoothing),
            outputs=(Reduced(_FLOAT32),) * (4 if smoothing else 3),
            name="softmax_statistics",
        )  # fmt: skip
        label_logit, *logit_sum = (p.sum(0) for p in partials[2:])
        log_sum_exp = combine_tiles(*partials[:2])
        return Statistics(
            log_sum_exp, logit_sum[0] if smoothing else jnp.zeros_like(label_logit), label_logit
        )

    def gradient(
        self,
        options: Options,
        hidden: jax.Array,
        weight: jax.Array,
        bias: jax.Array,
        labels: jax.Array,
        log_sum_exp: jax.Array,
        factors: Factors,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        (tokens, features), vocab_size = hidden.shape, bias.shape[0]
        chunked = options._replace(vocab_tile=_chunk(tokens, vocab_size))

        def over_vocab(index, gradients):
            hidden_gradient, weight_gradient, bias_gradient = gradients
            tile = vocab_tile(weight, bias, index, chunked)
            here = jnp.where(in_range(labels, vocab_size), labels - tile.start, -1)
            (gradient,) = fused_matmul(
                self.call,
                tile.weight.T if options.features_first else tile.weight,
                hidden,
                Inputs(
                    [tile.bias, _fresh(tile).astype(_FLOAT32)], [here, log_sum_exp, *factors[:3]]
                ),
                epilogue=partial(tile_gradient, options.soft_cap),
                outputs=(Tile(hidden.dtype),),
                name="softmax_gradient",
            )
            both = (hidden, gradient) if options.features_first else (gradient, hidden)
            contract = (0, 1) if options.features_first else (1, 0)
            part = matmul(*both, contract).astype(weight.dtype)
            return (
                hidden_gradient + matmul(gradient, tile.weight, (0, options.vocab_axis)),
                add_slice(weight_gradient, part, tile.start, options.vocab_axis),
                add_slice(bias_gradient, gradient.sum(1, dtype=_FLOAT32), tile.start),
            )

        zeros = (
            jnp.zeros((tokens, features), _FLOAT32),
            jnp.zeros(weight.shape, weight.dtype),  # each row is written once: no need to be wide
            jnp.zeros(vocab_size, _FLOAT32),
        )
        return lax.fori_loop(0, tile_count(vocab_size, chunked), over_vocab, zeros)


def _chunk(tokens: int, vocab_size: int) -> int:
    """Classes of a chunk: in whole hardware tiles, and no more than there are."""
    return min(vocab_size, max(512, _CHUNK // tokens // 512 * 512))


def _fresh(tile: VocabTile) -> jax.Array:
    """[size] bool: the classes that no earlier chunk had."""
    return jnp.ones(tile.bias.shape, bool) if tile.fresh is None else tile.fresh


def tile_statistics(
    soft_cap: float | None,
    vocab_size: int,
    smoothing: bool,
    product: jax.Array,
    row_ids: jax.Array,
    rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    _tiles: Sequence[jax.Array],
) -> list[jax.Array]:
    """Maximum, sum of exponentials above it, logit of the label and, if asked, sum of logits."""
    (bias,), (labels,) = rows, columns
    bias = bias.astype(jnp.float32)
    logits, _ = cap_logits(product + bias, soft_cap)
    inside = (row_ids < vocab_size) & (bias != -jnp.inf)
    logits = jnp.where(inside, logits, -jnp.inf)
    results = [*tile_log_sum_exp(logits)]
    results.append(jnp.where(row_ids == labels, logits, 0).sum(0))
    if smoothing:
        results.append(jnp.where(inside, logits, 0).sum(0))
    return results


def tile_gradient(
    soft_cap: float | None,
    product: jax.Array,
    row_ids: jax.Array,
    rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    _tiles: Sequence[jax.Array],
) -> tuple[jax.Array]:
    """The gradient of a tile of logits, times their slope under the cap."""
    bias, fresh = rows
    labels, log_sum_exp, softmax, uniform, label = columns
    bias = bias.astype(jnp.float32)
    logits, slope = cap_logits(product + bias, soft_cap)
    gradient = softmax * jnp.exp(logits - log_sum_exp) - uniform
    gradient -= jnp.where(row_ids == labels, label, 0)
    if slope is not None:
        gradient *= slope
    return (jnp.where((fresh > 0) & (bias != -jnp.inf), gradient, 0),)
