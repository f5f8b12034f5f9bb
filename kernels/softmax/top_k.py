"""The k best classes of an output projection, the logits never whole in memory."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from jaxnets.kernels.softmax import arguments
from jaxnets.kernels.softmax.tiles import (
    Options,
    accumulator_dtype,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)

_TOKENS = 512


def linear_top_k(
    hidden: Float[Array, "*batch features"],
    weight: Float[Array, "vocab features"],
    bias: Float[Array, " vocab"] | None,
    k: int,
    *,
    vocab_tile: int = 4096,
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
      logits the smaller id comes first.

    Raises:
      TypeError: integer hidden, weight or bias.
      ValueError: shapes that do not fit, an empty batch, or k out of range.

    Example:
      >>> import jax.numpy as jnp
      >>> logits, ids = linear_top_k(jnp.ones((1, 1)), jnp.array([[1.0], [5.0], [3.0]]), None, 2)
      >>> logits.tolist(), ids.tolist()
      ([[5.0, 3.0]], [[1, 2]])
    """
    hidden, weight = jnp.asarray(hidden), jnp.asarray(weight)
    arguments.check_projection(hidden, weight, bias)
    if not 1 <= k <= weight.shape[0]:
        raise ValueError(f"k must lie in [1, vocab] = [1, {weight.shape[0]}], got {k}")
    return _top_k(Options(vocab_tile=vocab_tile), k, hidden, weight, bias)


@partial(jax.jit, static_argnums=(0, 1))
@jax.named_scope("linear_top_k")
def _top_k(options, k, hidden, weight, bias):
    dtype = accumulator_dtype(hidden, weight)
    if bias is None:
        bias = jnp.zeros(weight.shape[0], dtype)
    flat = hidden.reshape(-1, hidden.shape[-1])
    tokens = flat.shape[0]
    size = min(_TOKENS, tokens)

    def over_tokens(hidden):
        def over_vocab(best, index):
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            classes = jnp.broadcast_to(tile.start + jnp.arange(logits.shape[1]), logits.shape)
            logits = jnp.concatenate([best[0], logits], 1)
            classes = jnp.concatenate([best[1], classes.astype(jnp.int32)], 1)
            values, places = lax.top_k(logits, k)
            return (values, jnp.take_along_axis(classes, places, 1)), None

        nothing = (jnp.full((size, k), -jnp.inf, dtype), jnp.zeros((size, k), jnp.int32))
        best, _ = lax.scan(over_vocab, nothing, jnp.arange(tile_count(weight.shape[0], options)))
        return best

    values, ids = lax.map(over_tokens, token_tiles(flat, size))
    shape = (*hidden.shape[:-1], k)
    return values.reshape(-1, k)[:tokens].reshape(shape), ids.reshape(-1, k)[:tokens].reshape(shape)
