"""The k best classes of an output projection, the logits never whole in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike, Float, Integer

from jaxnets.kernels.checks import as_int
from jaxnets.kernels.linear_softmax.checks import check_num_classes
from jaxnets.kernels.linear_softmax.excluded import (
    among,
    check_exclude,
    out_of_range,
)
from jaxnets.kernels.linear_softmax.projection import whole_bias
from jaxnets.kernels.linear_softmax.sharded import specs
from jaxnets.kernels.linear_softmax.tile_sizes import (
    EVALUATED_CLASSES,
    TOKENS,
    Tiles,
    check_tiles,
    even,
)
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    tile_count,
    tile_logits,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.losses import check_projection, vocab_size_of
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


class TopK(NamedTuple):
    """What :func:`linear_top_k` returns.

    Attributes:
      logits: [..., k], the largest first, float32 (float64 for float64 input).
      ids: [..., k] int32: their classes.

    Example:
      >>> import jax.numpy as jnp
      >>> weight = jnp.array([[1.0], [5.0], [3.0], [4.0]])
      >>> linear_top_k(jnp.ones((1, 1)), weight, 2).ids.tolist()
      [[1, 3]]
    """

    logits: jax.Array
    ids: jax.Array


def linear_top_k(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    k: SupportsIndex,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    num_classes: SupportsIndex | None = None,
    exclude: Integer[ArrayLike, "*batch excluded"] | Sequence | None = None,
    features_first: bool = False,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> TopK:
    """The ``k`` largest of ``hidden @ weight.T + bias``, largest first, and their classes.

    Args:
      hidden: [..., features], float.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      k: from 1 to the number of classes.
      bias: [vocab] or None; a class of bias -inf is out.
      num_classes: how many rows of ``weight`` are classes, the others being padding; None: all.
      exclude: [..., n], integers: for each token classes that are out, such as the items that a
        user has seen; in any order, repeated or not. -1 is no class: what pads shorter lists.
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is.
      tiles: None: 4096 classes at a time.
      sharding: over which axes classes and tokens are split; see
        :func:`linear_softmax_cross_entropy`. Each device finds the best of its own classes; k of
        each are sent.

    Returns:
      :class:`TopK`. Among equal logits the smaller id comes first, and an id comes once, even where
      logits are -inf or NaN (which is taken for the largest). Where fewer than k classes are in,
      classes that are out come last, with a logit of -inf. Without tokens both are empty.

    Raises:
      TypeError: integer hidden, weight or bias, float exclude, or a k that is no integer.
      ValueError: shapes that do not fit or that the sharding does not divide, k out of range, or an
        id in exclude outside [-1, vocab_size) where it is known. Under ``jit`` the logits of its
        token are NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden, weight = jnp.ones((1, 1)), jnp.array([[1.0], [5.0], [3.0], [4.0]])
      >>> logits, ids = linear_top_k(hidden, weight, 2)
      >>> logits.tolist(), ids.tolist()
      ([[5.0, 4.0]], [[1, 3]])
      >>> linear_top_k(hidden, weight, 2, exclude=[[1, -1]]).ids.tolist()
      [[3, 2]]
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, k = vocab_size_of(weight, features_first), as_int("k", k)
    classes = check_num_classes(num_classes, vocab_size)
    if not 1 <= k <= classes:
        raise ValueError(f"k must lie in [1, num_classes] = [1, {classes}], got {k}")
    exclude = check_exclude(exclude, hidden.shape[:-1], classes)
    tile = check_tiles(tiles).vocab_tile or EVALUATED_CLASSES
    options = Options(vocab_tile=tile, features_first=bool(features_first), num_classes=classes)
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, hidden.shape[:-1])
    return _top_k(sharding, options, k, hidden, weight, bias, exclude)


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("linear_top_k")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE, exclude=0)
def _top_k(
    sharding: VocabSharding,
    options: Options,
    k: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    exclude: jax.Array | None,
) -> TopK:
    def on_device(hidden, weight, bias, exclude):
        own = weight.shape[options.vocab_axis]
        start = jnp.asarray(sharding.start(own), jnp.int32)
        local = None if exclude is None else exclude - start
        logits, ids = _best(options, min(k, own), hidden, weight, bias, local)
        if exclude is not None:
            wrong = out_of_range(exclude, options.classes(sharding.shards * own))
            logits = jnp.where(wrong[..., None], jnp.nan, logits)
        return TopK(*largest_of_all(sharding, k, logits, ids + start))

    tokens, table, classes = specs(sharding, options)
    in_specs = (tokens, table, classes, tokens)
    bias = whole_bias(sharding, options, hidden, weight, bias)
    return sharding.run(on_device, in_specs, tokens, hidden, weight, bias, exclude)


def largest_of_all(
    sharding: VocabSharding, k: int, logits: jax.Array, ids: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Inside ``run``: the ``k`` largest of all devices, from each one's own [..., n]."""
    if sharding.vocab_axes:  # in the order of the classes, of which equal ones keep theirs
        logits, ids = (
            lax.all_gather(a, sharding.vocab_axes, axis=a.ndim - 1, tiled=True)
            for a in (logits, ids)
        )
    return _largest(k, logits, ids)


def better(
    k: int, best: tuple[jax.Array, jax.Array] | None, logits: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The best [tokens, k] so far, and their classes, with a tile of ``logits`` from ``start`` on.

    Of equal logits those that were there before stay. None: nothing is there before.
    """
    classes = (start + jnp.arange(logits.shape[1])).astype(jnp.int32)
    ids = jnp.broadcast_to(classes[None], logits.shape)
    if best is not None:
        logits, ids = jnp.concatenate([best[0], logits], 1), jnp.concatenate([best[1], ids], 1)
    return _largest(k, logits, ids)


def _largest(k: int, logits: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The ``k`` largest of ``logits [..., n]``, and their ``classes``."""
    # Bits decide in top_k: -0 comes after 0, and a NaN after -inf if its sign bit is set.
    keys = jnp.where(jnp.isnan(logits), jnp.nan, jnp.where(logits == 0, 0, logits))
    _, places = lax.top_k(keys, k)
    return jnp.take_along_axis(logits, places, -1), jnp.take_along_axis(classes, places, -1)


def _best(
    options: Options,
    k: int,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    exclude: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Logits and classes [..., k], over tiles of the vocabulary."""
    dtype, vocab_size = accumulator_dtype(hidden, weight), weight.shape[options.vocab_axis]
    flat = hidden.reshape(-1, hidden.shape[-1])
    tokens = flat.shape[0]
    shape = (*hidden.shape[:-1], k)
    if not tokens:
        return jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
    size = even(tokens, TOKENS)
    # The first tile has k classes or more: what is best so far are classes of data from the start,
    # and no sentinel competes with a logit of -inf. Nor do classes seen before, which stand behind
    # the best, and of equal logits the first is taken.
    options = options._replace(vocab_tile=max(k, options.vocab_tile))

    def over_tokens(block):
        hidden, exclude = block

        def over_vocab(best, index):
            tile = vocab_tile(weight, bias, index, options)
            logits, _ = tile_logits(hidden, tile, options)
            if exclude is not None:
                logits = jnp.where(among(exclude, tile.start, logits.shape[1]), -jnp.inf, logits)
            return better(k, best, logits, tile.start), None

        others = jnp.arange(1, tile_count(vocab_size, options))
        best, _ = lax.scan(over_vocab, over_vocab(None, 0)[0], others)
        return best

    if exclude is not None:
        exclude = token_tiles(exclude.reshape(tokens, -1), size)
    values, ids = lax.map(over_tokens, (token_tiles(flat, size), exclude))
    return values.reshape(-1, k)[:tokens].reshape(shape), ids.reshape(-1, k)[:tokens].reshape(shape)
