"""Where the label stands among all classes of an output projection, by counting, without sorting.

The classes above the label's logit are counted tile by tile, which takes the logit beforehand: two
passes over the vocabulary. Both are turns of one loop, so that one matmul of the program computes
the label's logit and those that it is compared with: of two matmuls, or of a matmul and a dot
product, each rounds in its own way, and equal classes would not tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike, Float, Integer

from jaxnets.kernels.linear_softmax.checks import check_num_classes
from jaxnets.kernels.linear_softmax.excluded import (
    among,
    check_exclude,
    out_of_range,
)
from jaxnets.kernels.linear_softmax.projection import prepared
from jaxnets.kernels.linear_softmax.sharded import own_logits, specs
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
from jaxnets.kernels.losses import (
    check_ignore_index,
    check_labels,
    check_projection,
    leave_out,
    vocab_size_of,
)
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding

_NO_RANK = -1


class LabelRank(NamedTuple):
    """What :func:`linear_label_rank` returns: of each label, [...] int32, or -1 for no rank.

    The rank, 0 for the best, lies between ``above`` and ``above + ties``.

    Attributes:
      above: how many classes have a larger logit.
      ties: how many other classes have the same.

    Example:
      >>> import jax.numpy as jnp
      >>> weight = jnp.array([[1.0], [5.0], [1.0], [0.0]])
      >>> rank = linear_label_rank(jnp.ones((1, 1)), weight, [0])
      >>> rank.above.tolist(), rank.ties.tolist()
      ([1], [1])
    """

    above: jax.Array
    ties: jax.Array


def linear_label_rank(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    num_classes: SupportsIndex | None = None,
    exclude: Integer[ArrayLike, "*batch excluded"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    features_first: bool = False,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> LabelRank:
    r"""The rank of the label among all classes of a linear output layer, without its logits.

    With logits :math:`l = W h + b` and the classes I that are in, of a label y

    .. math::
        \text{above} = |\{v \in I : l_v > l_y\}|, \qquad
        \text{ties} = |\{v \in I \setminus \{y\} : l_v = l_y\}|

    What recall, NDCG and the reciprocal rank are made of, over all items: over a sample of them
    models may come in another order (Krichene and Rendle 2020, "On Sampled Metrics for Item
    Recommendation"). ``jaxnets.models.metrics.RankingMetrics`` takes it. It costs two
    products of the size tokens x features x vocab, :func:`linear_top_k` one.

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32, and those
        logits are compared.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [...], integers of any width in [0, vocab_size), or ``ignore_index``.
      bias: [vocab] or None; a class of bias -inf is out.
      num_classes: how many rows of ``weight`` are classes, the others being padding; None: all.
      exclude: [..., n], integers: for each token classes that are out, such as the items that a
        user has seen. -1 is no class: what pads shorter lists. The label is ranked even where it is
        among them.
      ignore_index: a label that leaves its token out.
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is.
      tiles: None: 4096 classes at a time.
      sharding: over which axes classes and tokens are split; see
        :func:`linear_softmax_cross_entropy`. Of each token its label's logit and counts are sent.

    Returns:
      :class:`LabelRank`. Both are -1 where there is no rank: of a token that is left out, and of
      one with a logit of NaN, be it the label's or another's that is in.

    Raises:
      TypeError: float labels or exclude, or integer hidden, weight or bias.
      ValueError: shapes that do not fit or that the sharding does not divide, or a label or an id
        in exclude out of range where it is known. Under ``jit`` such a token has no rank: -1.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden, weight = jnp.ones((1, 1)), jnp.array([[1.0], [5.0], [3.0], [4.0]])
      >>> linear_label_rank(hidden, weight, [2]).above.tolist()
      [2]
      >>> linear_label_rank(hidden, weight, [2], exclude=[[1, -1]]).above.tolist()
      [1]
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    classes = check_num_classes(num_classes, vocab_size)
    labels = check_labels(labels, batch, classes, ignore_index)
    exclude = check_exclude(exclude, batch, classes)
    tile = check_tiles(tiles).vocab_tile or EVALUATED_CLASSES
    options = Options(vocab_tile=tile, features_first=bool(features_first), num_classes=classes)
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    # Counts have no gradient, and a loss that returns them beside itself keeps nothing for one.
    hidden, weight, bias = lax.stop_gradient((hidden, weight, bias))
    return _label_rank(sharding, options, ignore_index, hidden, weight, bias, labels, exclude)


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("linear_label_rank")
@over_rows(hidden=0, weight=WHOLE, bias=WHOLE, labels=0, exclude=0)
def _label_rank(
    sharding: VocabSharding,
    options: Options,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    exclude: jax.Array | None,
) -> LabelRank:
    vocab_size = weight.shape[options.vocab_axis]
    if not labels.size:
        return LabelRank(*[jnp.zeros(labels.shape, jnp.int32)] * 2)
    hidden, labels = sharding.place_tokens(hidden, labels)
    dtype = accumulator_dtype(hidden, weight)
    kept, labels = leave_out(None, labels, ignore_index, vocab_size, dtype, options.num_classes)
    hidden, weight, bias = prepared(sharding, options, hidden, weight, bias, None, kept)

    def on_device(hidden, weight, bias, labels, exclude):
        flat, flat_labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)
        local, own = sharding.local_ids(flat_labels, bias.shape[0])
        known = flat_labels < vocab_size
        left_out = local[:, None]
        if exclude is not None:
            exclude = exclude.reshape(flat.shape[0], -1)
            start = jnp.asarray(sharding.start(bias.shape[0]), jnp.int32)
            left_out = jnp.concatenate([left_out, exclude - start], 1)
            known &= ~out_of_range(exclude, options.classes(vocab_size))
        above, ties, unknown = _count(sharding, options, flat, weight, bias, local, own, left_out)
        known &= ~unknown
        return LabelRank(*(
            jnp.where(known, a, _NO_RANK).reshape(labels.shape) for a in (above, ties)
        ))  # fmt: skip

    tokens, table, classes = specs(sharding, options)
    in_specs = (tokens, table, classes, tokens, tokens)
    ranks = sharding.run(on_device, in_specs, tokens, hidden, weight, bias, labels, exclude)
    if kept is None:
        return ranks
    return LabelRank(*(jnp.where(kept == 0, _NO_RANK, a) for a in ranks))


def _count(
    sharding: VocabSharding,
    options: Options,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array,
    labels: jax.Array,
    own: jax.Array,
    left_out: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How many classes of all devices are above and equal, and whether a logit is NaN, [tokens].

    ``labels [tokens]`` and ``left_out [tokens, n]``, what a label is not compared with, are numbers
    of this device's classes; ``own [tokens]``: it has the label.
    """
    tokens, dtype = hidden.shape[0], accumulator_dtype(hidden, weight)
    size = even(tokens, TOKENS)
    tiles = jnp.arange(tile_count(bias.shape[0], options))
    nothing = jnp.zeros(size, dtype), (jnp.zeros(size, jnp.int32),) * 3

    def over_tokens(block):
        hidden, labels, own, left_out = block

        def one_pass(turn, before):
            label_logit = before[0]

            def over_vocab(carry, index):
                found, counts = carry
                tile = vocab_tile(weight, bias, index, options)
                logits, _ = tile_logits(hidden, tile, options)
                width = logits.shape[1]
                place = jnp.clip(labels - tile.start, 0, width - 1)[:, None]
                here = labels // width == index  # the tile in which it is fresh
                found = jnp.where(here, jnp.take_along_axis(logits, place, 1)[:, 0], found)

                def counted():
                    others = tile.inside if tile.fresh is None else tile.inside & tile.fresh
                    others = others[None] & ~among(left_out, tile.start, width)
                    label = label_logit[:, None]
                    relations = logits > label, logits == label, jnp.isnan(logits)
                    more = [(others & r).sum(1, dtype=jnp.int32) for r in relations]
                    return jax.tree.map(jnp.add, counts, tuple(more))

                return (found, lax.cond(turn == 1, counted, lambda: counts)), None

            (found, counts), _ = lax.scan(over_vocab, nothing, tiles)
            return own_logits(sharding, own, found), counts

        label_logit, counts = lax.fori_loop(0, 2, one_pass, nothing)
        above, ties, unknown = sharding.sum_over_vocab(counts)
        return above, ties, (unknown > 0) | jnp.isnan(label_logit)

    blocks = [token_tiles(a, size) for a in (hidden, labels, own)]
    counts = lax.map(over_tokens, (*blocks, token_tiles(left_out, size)))
    return jax.tree.map(lambda a: a.reshape(-1)[:tokens], counts)
