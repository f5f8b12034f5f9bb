"""The k best classes of an output projection, the logits never whole in memory."""

from __future__ import annotations

import math
from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnets.kernels.checks import as_int
from jaxnets.kernels.softmax import arguments
from jaxnets.kernels.softmax.tiles import accumulator_dtype, matmul, token_tiles

_TOKENS = 512


def linear_top_k(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"],
    bias: Float[ArrayLike, " vocab"] | None,
    k: SupportsIndex,
    *,
    vocab_tile: SupportsIndex = 4096,
) -> tuple[Float[Array, "*batch k"], Int32[Array, "*batch k"]]:
    """The ``k`` largest of ``hidden @ weight.T + bias``, largest first, and their classes.

    Args:
      hidden: [..., features], float.
      weight: [vocab, features], float.
      bias: [vocab] or None.
      k: from 1 to vocab.
      vocab_tile: classes at a time, at least ``k`` of them (up to two tiles at the start).

    Returns:
      Logits [..., k] in float32 (float64 for float64 input) and ids [..., k] int32, of ``k``
      different classes, be their logits infinite or NaN; among equal logits the smaller id comes
      first. Of no token, none.

    Raises:
      TypeError: integer hidden, weight or bias; ``k`` or ``vocab_tile`` that is no integer.
      ValueError: shapes that do not fit, no class, or ``k`` or ``vocab_tile`` out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, ids = linear_top_k(jnp.ones((1, 1)), jnp.array([[1.0], [5.0], [3.0]]), None, 2)
      >>> logits.tolist(), ids.tolist()
      ([[5.0, 3.0]], [[1, 2]])
    """
    hidden, weight, bias = arguments.check_projection(hidden, weight, bias)
    k, vocab_tile = as_int("k", k), as_int("vocab_tile", vocab_tile, 1)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k must lie in [1, vocab] = [1, {weight.shape[0]}], got {k}")
    return _top_k(vocab_tile, k, hidden, weight, bias)


@partial(jax.jit, static_argnums=(0, 1))
@jax.named_scope("linear_top_k")
def _top_k(vocab_tile, k, hidden, weight, bias):
    """The best of the first tile, which has at least ``k`` classes, then of it and each other.

    So there is never a place to fill with what is no class, and compete with logits of -inf or NaN;
    and the first tile takes what is over, so that no class is in two tiles.
    """
    vocab, dtype = weight.shape[0], accumulator_dtype(hidden, weight)
    tokens, shape = math.prod(hidden.shape[:-1]), (*hidden.shape[:-1], k)
    if not tokens:
        return jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    size = min(max(vocab_tile, k), vocab)
    first = size + vocab % size
    if bias is None:
        bias = jnp.zeros(vocab, dtype)
    flat = hidden.reshape(tokens, hidden.shape[-1])

    def over_tokens(hidden):
        def tile(start, size):
            rows = lax.dynamic_slice_in_dim(weight, start, size)
            offsets = lax.dynamic_slice_in_dim(bias, start, size).astype(dtype)
            logits = matmul(hidden, rows, (1, 1)) + offsets[None]
            classes = start + jnp.arange(size, dtype=jnp.int32)
            return logits, jnp.broadcast_to(classes[None], logits.shape)

        def best_of(logits, classes):
            values, places = lax.top_k(logits, k)
            return values, jnp.take_along_axis(classes, places, 1)

        def over_vocab(best, start):
            both = zip(best, tile(start, size), strict=True)
            return best_of(*(jnp.concatenate(pair, 1) for pair in both)), None

        starts = jnp.arange(first, vocab, size, dtype=jnp.int32)
        best, _ = lax.scan(over_vocab, best_of(*tile(0, first)), starts)
        return best

    values, ids = lax.map(over_tokens, token_tiles(flat, min(_TOKENS, tokens)))
    return values.reshape(-1, k)[:tokens].reshape(shape), ids.reshape(-1, k)[:tokens].reshape(shape)
