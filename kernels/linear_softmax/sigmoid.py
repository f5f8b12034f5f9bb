"""The exact one-vs-all loss of an output projection: each class is true or false by itself.

``xla_sigmoid.py`` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import as_integers, in_range, is_known
from jaxnets.kernels.linear_softmax.checks import check_compute_dtype, check_options, sizes_of
from jaxnets.kernels.linear_softmax.projection import factors_by_reduction, prepared
from jaxnets.kernels.linear_softmax.tile_sizes import Tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.linear_softmax.xla_sigmoid import one_vs_all, weighted_sum
from jaxnets.kernels.losses import (
    Reduction,
    check_ignore_index,
    check_labels,
    check_projection,
    check_reduction,
    check_weights,
    reduce_losses,
    vocab_size_of,
)
from jaxnets.kernels.losses_over_rows import losses_over_rows
from jaxnets.kernels.meshes import WHOLE, eager_gradients
from jaxnets.kernels.samplers.samples import CLASS_IDS
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


def linear_sigmoid_cross_entropy(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch num_true"] | Sequence,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    positive_weight: Shaped[ArrayLike, ""] | Shaped[ArrayLike, " vocab"] | Sequence | None = None,
    label_weights: Shaped[ArrayLike, "*batch num_true"] | Sequence | None = None,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = -1,
    reduction: Reduction = "mean",
    features_first: bool = False,
    compute_dtype: DTypeLike | None = None,
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Exact binary cross-entropy of every class, with the logits never whole in memory.

    For a token with hidden state :math:`h` and the set Y of its true classes, of all V classes

    .. math::
        \text{loss} = -\sum_{v \in Y} f_v \log \sigma(l_v) - \sum_{v \notin Y} \log \sigma(-l_v),
        \qquad l_v = w_v \cdot h + b_v

    one-vs-all, as for extreme multi-label classification (Babbar and Schoelkopf 2017, "DiSMEC:
    Distributed Sparse Machines for Extreme Multi-label Classification", with a logistic loss). It
    is a sum over the classes, not a mean. Factors f above 1 make up for true classes that are
    missing in the data: inverse propensities (Jain et al. 2016, "Extreme Multi-label Loss Functions
    for Recommendation, Tagging, Ranking and Other Missing Label Applications").

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab].
      labels: [..., num_true], integers of any width in [0, vocab_size), the true classes in any
        order, filled up with ``ignore_index``. One that is named twice counts once, the first. A
        token without any has false classes only, and counts.
      bias: [vocab] or None. A class of bias -inf is out.
      positive_weight: f of all classes, a number, or [vocab], by class; the same on every device.
      label_weights: [..., num_true], a factor of f for each true class; 0: the class is neither
        true nor false.
      token_weights: [...], a factor for each token; 0 (or False) leaves the token out, whatever its
        hidden state and labels are.
      ignore_index: what fills up labels; None: nothing does.
      reduction: "mean" (by weight), "sum" or "none" (one loss a token).
      features_first, compute_dtype, tiles, sharding: as of :func:`linear_softmax_cross_entropy`.

    Returns:
      The loss, a scalar or [...] for "none", in float32 (float64 where that is computed in), 0
      without tokens.

    Raises:
      TypeError: float labels, or integer hidden, weight, bias or ``compute_dtype``.
      ValueError: shapes that do not fit, or that the sharding does not divide, a factor known to be
        below 0, or a label out of range where its value is known at trace time. Under ``jit`` a
        label out of range gives NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> hidden, weight = jnp.ones((2, 4)), jnp.zeros((10, 4))
      >>> labels = jnp.array([[3, 7, 1], [5, -1, -1]])
      >>> losses = linear_sigmoid_cross_entropy(
      ...     hidden, weight, labels, positive_weight=3.0, reduction="none"
      ... )
      >>> [round(float(loss) / float(jnp.log(2.0)), 3) for loss in losses]  # 7 + 3 * 3, and 9 + 3
      [16.0, 12.0]
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    token_weights = check_weights(token_weights, batch)
    check_reduction(reduction)
    labels = as_integers("labels", labels, CLASS_IDS)
    if labels.ndim != hidden.ndim or labels.shape[:-1] != batch:
        raise ValueError(
            f"labels must be [..., num_true] with the first axes of hidden, {batch}, got shape "
            f"{labels.shape}"
        )
    of_each = None if token_weights is None else token_weights[..., None]
    check_labels(labels, labels.shape, vocab_size, ignore_index, of_each)
    label_weights = check_weights(label_weights, labels.shape, "label_weights", "true class")
    positive_weight = _check_positive_weight(positive_weight, vocab_size)
    _check_factors("label_weights", label_weights)
    sharding = as_sharding(sharding)
    sharding.check(vocab_size, batch)
    sizes = sizes_of(hidden, weight, features_first, sharding)
    options = check_options(0.0, 0.0, None, tiles, features_first, sizes)
    options = options._replace(compute_dtype=check_compute_dtype(compute_dtype, hidden, weight))
    return _loss(
        sharding, options, reduction, ignore_index,
        hidden, weight, bias, labels, positive_weight, label_weights, token_weights,
    )  # fmt: skip


def _check_positive_weight(positive_weight: Any, vocab_size: int) -> jax.Array | None:
    if positive_weight is None:
        return None
    shape = jnp.shape(positive_weight)
    if shape not in ((), (vocab_size,)):
        raise ValueError(
            f"positive_weight must be a number or [vocab] = {(vocab_size,)}, got shape {shape}"
        )
    positive_weight = check_weights(positive_weight, shape, "positive_weight", "class")
    _check_factors("positive_weight", positive_weight)
    return positive_weight


def _check_factors(name: str, factors: jax.Array | None) -> None:
    if factors is None or not is_known(factors):
        return
    wrong = np.asarray(factors)[~(np.asarray(factors) >= 0)]
    if wrong.size:
        raise ValueError(f"{name} must be at least 0, got {wrong.flat[0]}")


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("linear_sigmoid_cross_entropy")
@losses_over_rows(
    hidden=0, weight=WHOLE, bias=WHOLE, labels=0, positive_weight=WHOLE, label_weights=0,
    token_weights=0,
)  # fmt: skip
def _loss(
    sharding: VocabSharding,
    options: Options,
    reduction: str,
    padding: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    positive_weight: jax.Array | None,
    label_weights: jax.Array | None,
    token_weights: jax.Array | None,
) -> jax.Array:
    batch, vocab_size = labels.shape[:-1], weight.shape[options.vocab_axis]
    dtype = options.accumulator(hidden, weight)
    if not hidden[..., 0].size:
        return jnp.zeros(batch if reduction == "none" else (), dtype)
    hidden, labels, label_weights, token_weights = sharding.place_tokens(
        hidden, labels, label_weights, token_weights
    )
    kept = None if token_weights is None else token_weights.astype(dtype)
    hidden, weight, bias = prepared(sharding, options, hidden, weight, bias, None, kept)
    ids, factors = _true_classes(
        sharding, vocab_size, padding, labels, positive_weight, label_weights, kept, dtype
    )
    arrays = hidden, weight, bias, ids, factors
    if reduction == "none":
        return reduce_losses(one_vs_all(sharding, options, *arrays), kept, reduction)
    factors = factors_by_reduction(sharding, kept, batch, reduction, dtype)
    return weighted_sum(sharding, options, *arrays, factors)


def _true_classes(
    sharding: VocabSharding,
    vocab_size: int,
    padding: int | None,
    labels: jax.Array,
    positive_weight: jax.Array | None,
    label_weights: jax.Array | None,
    kept: jax.Array | None,
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    """The distinct classes of each token, as ``one_vs_all`` takes them, and their factors."""
    none = jnp.zeros(labels.shape, bool) if padding is None else labels == padding
    if kept is not None:
        none |= (kept == 0)[..., None]
    labels = jnp.where(in_range(labels, vocab_size), labels, vocab_size + 1)
    labels = jnp.where(none, vocab_size, labels)
    factors = jnp.ones(labels.shape, dtype)
    if label_weights is not None:
        factors = jnp.where(none, factors, label_weights.astype(dtype))
    if positive_weight is not None:
        if positive_weight.ndim:
            positive_weight = sharding.run(
                lambda ids, table: table.at[ids].get(mode="fill", fill_value=1),
                (sharding.token_spec, P()), sharding.token_spec, labels, positive_weight,
            )  # fmt: skip
        factors = factors * positive_weight.astype(dtype)
    labels, factors = jax.lax.sort((labels, factors), num_keys=1)
    place = jax.lax.broadcasted_iota(jnp.int32, labels.shape, labels.ndim - 1)
    again = (labels == jnp.roll(labels, 1, -1)) & (place > 0)
    return jnp.where(again & (labels < vocab_size), vocab_size, labels), factors
