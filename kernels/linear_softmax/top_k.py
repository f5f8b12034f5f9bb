"""The k best classes of an output projection, the logits never whole in memory."""

from __future__ import annotations

from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int32

from jaxnets.kernels.checks import as_int
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.losses import check_projection
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype

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
      vocab_tile: classes at a time.

    Returns:
      Logits [..., k] in float32 (float64 for float64 input) and ids [..., k] int32; among equal
      logits the smaller id comes first, and an id comes once, even where logits are -inf or NaN
      (which is taken for the largest). Without tokens both are empty.

    Raises:
      TypeError: integer hidden, weight or bias, or a k or vocab_tile that is no integer.
      ValueError: shapes that do not fit, or k or vocab_tile out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, ids = linear_top_k(jnp.ones((1, 1)), jnp.array([[1.0], [5.0], [3.0]]), None, 2)
      >>> logits.tolist(), ids.tolist()
      ([[5.0, 3.0]], [[1, 2]])
    """
    hidden, weight, bias = check_projection(hidden, weight, bias)
    k, tile = as_int("k", k), as_int("vocab_tile", vocab_tile, 1)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k must lie in [1, vocab] = [1, {weight.shape[0]}], got {k}")
    return _top_k(Options(vocab_tile=tile), k, hidden, weight, bias)


@partial(jax.jit, static_argnums=(0, 1))
@jax.named_scope("linear_top_k")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE)
def _top_k(
    options: Options, k: int, hidden: jax.Array, weight: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    dtype = accumulator_dtype(hidden, weight)
    if bias is None:
        bias = jnp.zeros(weight.shape[0], dtype)
    flat = hidden.reshape(-1, hidden.shape[-1])
    tokens = flat.shape[0]
    shape = (*hidden.shape[:-1], k)
    if not tokens:
        return jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    size = min(_TOKENS, tokens)
    # The first tile has k classes or more: what is best so far are classes of data from the start,
    # and no sentinel competes with a logit of -inf. Nor do classes seen before, which stand behind
    # the best, and of equal logits the first is taken.
    options = options._replace(vocab_tile=max(k, options.vocab_tile))

    def over_tokens(hidden):
        def logits_of(index):
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            classes = (tile.start + jnp.arange(logits.shape[1])).astype(jnp.int32)
            return logits, jnp.broadcast_to(classes[None], logits.shape)

        def best_of(logits, classes):
            # Bits decide in top_k: -0 comes after 0, and a NaN after -inf if its sign bit is set.
            keys = jnp.where(jnp.isnan(logits), jnp.nan, jnp.where(logits == 0, 0, logits))
            _, places = lax.top_k(keys, k)
            return tuple(jnp.take_along_axis(a, places, 1) for a in (logits, classes))

        def over_vocab(best, index):
            both = zip(best, logits_of(index), strict=True)
            return best_of(*(jnp.concatenate(pair, 1) for pair in both)), None

        others = jnp.arange(1, tile_count(weight.shape[0], options))
        best, _ = lax.scan(over_vocab, best_of(*logits_of(0)), others)
        return best

    values, ids = lax.map(over_tokens, token_tiles(flat, size))
    return values.reshape(-1, k)[:tokens].reshape(shape), ids.reshape(-1, k)[:tokens].reshape(shape)
