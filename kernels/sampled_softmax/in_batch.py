"""The loss of each query over the items of its own batch: no table, and no other row, is read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import checks, dispatch
from jaxnets.kernels.linear_softmax.checks import check_temperature
from jaxnets.kernels.linear_softmax.tile_sizes import Tiles, check_tiles
from jaxnets.kernels.linear_softmax.tiles import Options
from jaxnets.kernels.losses import Reduction, check_reduction, check_weights, reduce_losses
from jaxnets.kernels.meshes import WHOLE, eager_gradients, over_rows, split_of
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.sampled_softmax.xla_in_batch import Side, log_sum_exps
from jaxnets.kernels.samplers.samples import CLASS_IDS, as_mask
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


class ExtraItems(NamedTuple):
    """Items beside those of a batch: negatives of all of its queries.

    Attributes:
      items: [n, features], float.
      labels: [n], integer ids in the range of int32, or None where the batch has none.
      log_probability: [n], float: as that of the batch's items; infinity: this is no item. None: no
        correction.

    Example:
      >>> import jax.numpy as jnp
      >>> vectors, extra = 10 * jnp.eye(3), ExtraItems(10 * jnp.eye(3), jnp.array([4, 7, 1]))
      >>> losses = in_batch_softmax_cross_entropy(
      ...     vectors, vectors, jnp.array([4, 7, 9]), extra=extra, reduction="none"
      ... )
      >>> jnp.exp(losses).round(3).tolist()  # the third has a copy of its item for a negative
      [1.0, 1.0, 2.0]
    """

    items: Any
    labels: Any = None
    log_probability: Any = None


def in_batch_softmax_cross_entropy(
    hidden: Float[ArrayLike, "batch features"],
    items: Float[ArrayLike, "batch features"],
    labels: Integer[ArrayLike, " batch"] | Sequence | None = None,
    log_probability: Float[ArrayLike, " batch"] | Sequence | None = None,
    *,
    extra: ExtraItems | tuple | None = None,
    symmetric: bool = False,
    temperature: Shaped[ArrayLike, ""] = 1.0,
    token_weights: Shaped[ArrayLike, " batch"] | Sequence | None = None,
    mask: Shaped[ArrayLike, " batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    reduction: Reduction = "mean",
    tiles: Tiles | None = None,
    sharding: VocabSharding | None = None,
) -> Float[Array, "..."]:
    r"""Softmax of each query over the batch's own items, corrected for how common they are.

    .. math::
        \text{loss}_i = \log \sum_{j : j = i \text{ or } y_j \ne y_i} e^{s_{ij}} - s_{ii},
        \qquad s_{ij} = h_i \cdot v_j / \tau - \log q_j

    (Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
    Recommendations", equations 3 to 6). Another row with the same item is no negative. With
    ``symmetric`` it is the mean of that and of the same for each item over the queries,

    .. math::
        \log \sum_{j : j = i \text{ or } y_j \ne y_i} e^{h_j \cdot v_i / \tau}
        - h_i \cdot v_i / \tau

    as for images and texts (Radford et al. 2021, "Learning Transferable Visual Models From Natural
    Language Supervision", section 2.3). The logits are never whole: memory grows with the batch,
    not with its square, and both directions together cost little more than one.

    Args:
      hidden: [batch, features], float: the queries.
      items: [batch, features], float: the item of each query.
      labels: [batch], integer ids of the items, of any size: they are only compared with each
        other. (Outside ``jax.enable_x64`` give ids of 64 bits as NumPy arrays, outside ``jit``.)
        None: no two items are the same.
      log_probability: [batch]: log of each item's share of the data, a constant; None: no
        correction, as for an item whose share is 0 (-infinity).
      extra: :class:`ExtraItems` or a tuple of the same, negatives of every query: hard ones, or
        those of a :class:`CandidateQueue`. They have a gradient of their own.
      symmetric: also tell each item's query from the others.
      temperature: tau, above 0; may be traced, and then has a gradient.
      token_weights: [batch], a factor for each query; 0 (or False) leaves out the query, not its
        item.
      mask: [batch], bool or 0 and 1: False marks a padded row, neither a query nor an item.
      ignore_index: a label that marks padded rows likewise.
      reduction: "mean" (by weight), "sum" or "none".
      tiles: how many queries and items are computed at a time; None: what serves the platform.
      sharding: its ``token_axis`` names the axes of a mesh over which queries and items are split;
        each device gathers the items of all. The axes of classes have no part.

    Returns:
      The loss, a scalar or [batch] for "none", in float32 (float64 for float64 input).

    Raises:
      TypeError: float labels, or integer hidden, items or ``log_probability``.
      ValueError: shapes that do not fit, a temperature known to be no number above 0, or ids with
        ``extra`` that are known to be beyond int32.

    Example:
      >>> import jax.numpy as jnp
      >>> vectors = 10 * jnp.eye(3)
      >>> loss = in_batch_softmax_cross_entropy(vectors, vectors, jnp.array([4, 7, 9]))
      >>> bool(loss < 1e-6)
      True
      >>> loss = in_batch_softmax_cross_entropy(vectors, vectors, symmetric=True, temperature=0.1)
      >>> bool(loss < 1e-6)
      True
    """
    hidden, items = checks.as_floats("hidden", hidden), checks.as_floats("items", items)
    check_reduction(reduction)
    if hidden.ndim != 2 or items.shape != hidden.shape:
        raise ValueError(
            "hidden and items must be [batch, features] alike, "
            f"got {hidden.shape} and {items.shape}"
        )
    batch, more = hidden.shape[:1], None
    sharding = as_sharding(sharding)
    sharding.check(sharding.shards, batch)
    if ignore_index is not None:
        ignore_index = checks.as_int("ignore_index", ignore_index)
        if labels is None:
            raise ValueError("ignore_index must come with labels, got None")
    token_weights = check_weights(token_weights, batch)
    if jnp.ndim(temperature):
        raise ValueError(f"temperature must be one number, got shape {jnp.shape(temperature)}")
    divisor = check_temperature(temperature, (), None)
    if extra is not None:
        labels, more = _checked_extra(extra, labels, hidden.shape[1])
    ignored = jnp.zeros(batch, bool)
    if labels is not None:
        labels, ignored = _item_codes(labels, ignore_index)
        _check_shape("labels", labels, batch)
    offset = _offset("log_probability", log_probability, batch)
    true = None
    if mask is not None or ignore_index is not None:
        true = as_mask("mask", mask, batch) & ~ignored
    tiles = check_tiles(tiles)
    rows, columns = (512, 1024) if dispatch.target().platform == "cpu" else (2048, 4096)
    options = Options(token_tile=tiles.token_tile or rows, vocab_tile=tiles.vocab_tile or columns)
    return _in_batch(
        sharding, options, bool(symmetric), reduction, hidden, Side(items, offset, labels), more,
        divisor, token_weights, true,
    )  # fmt: skip


def _check_shape(name: str, array: jax.Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {list(shape)}, got {array.shape}")


def _offset(name: str, log_probability: Any, shape: tuple[int, ...]) -> jax.Array:
    """What the logits of items are shifted by: 0 for one whose share is 0."""
    if log_probability is None:
        return jnp.zeros(shape, jnp.float32)
    log_probability = checks.as_floats(name, log_probability)
    _check_shape(name, log_probability, shape)
    return -jnp.where(jnp.isneginf(log_probability), 0, log_probability)


def _checked_extra(extra: Any, labels: Any, features: int) -> tuple[jax.Array | None, Side]:
    """The batch's labels as int32, which those of the extra items can be compared with."""
    if not isinstance(extra, tuple) or not 1 <= len(extra) <= len(ExtraItems._fields):
        raise TypeError(f"extra must be ExtraItems or a tuple, got {type(extra).__name__}")
    items, others, log_probability = ExtraItems(*extra)
    items = checks.as_floats("extra.items", items)
    if items.ndim != 2 or items.shape[1] != features:
        raise ValueError(f"extra.items must be [n, features = {features}], got {items.shape}")
    count = items.shape[:1]
    offset = _offset("extra.log_probability", log_probability, count)
    if (labels is None) != (others is None):
        raise ValueError("labels and extra.labels must be given both or neither")
    if labels is None:
        return None, Side(items, offset, None)
    labels = checks.as_integers("labels", labels, CLASS_IDS)
    others = checks.as_integers("extra.labels", others, CLASS_IDS)
    _check_shape("extra.labels", others, count)
    for name, ids in (("labels", labels), ("extra.labels", others)):
        checks.check_range(name, ids, -checks.INT32_MAX, checks.INT32_MAX, "the range of int32")
    return labels, Side(items, offset, others)


def _item_codes(labels: Any, ignore_index: SupportsIndex | None) -> tuple[jax.Array, jax.Array]:
    """Numbers that are equal where ``labels`` are; and where those are ``ignore_index``.

    JAX would cut NumPy's 64 bits to 32 and make one item of two; so NumPy numbers the items.
    """
    checks.as_integers("labels", labels, CLASS_IDS)
    if ignore_index is not None:
        ignore_index = checks.as_int("ignore_index", ignore_index)
    if checks.holds_tracers(labels):
        labels = jnp.asarray(labels)
    if not isinstance(labels, jax.Array):
        values = np.asarray(labels)
        _, codes = np.unique(values, return_inverse=True)
        return jnp.asarray(codes.reshape(values.shape), jnp.int32), jnp.asarray(
            values == ignore_index
        )
    limits = jnp.iinfo(labels.dtype)
    if ignore_index is None or not limits.min <= ignore_index <= limits.max:
        return labels, jnp.zeros(labels.shape, bool)
    return labels, labels == ignore_index


@eager_gradients
@partial(jax.jit, static_argnums=(0, 1, 2, 3))
@jax.named_scope("in_batch_softmax_cross_entropy")
def _in_batch(
    sharding: VocabSharding,
    options: Options,
    symmetric: bool,
    reduction: str,
    hidden: jax.Array,
    items: Side,
    extra: Side | None,
    temperature: jax.Array | None,
    token_weights: jax.Array | None,
    true: jax.Array | None,
) -> jax.Array:
    dtype = accumulator_dtype(hidden, items.vectors)
    if not sharding.is_split and (split := split_of({"hidden": hidden}, {"hidden": 0})):
        sharding = VocabSharding(split.mesh, None, split.axes)
    items = items._replace(offset=jax.lax.stop_gradient(items.offset).astype(dtype))
    kept = token_weights
    if true is not None:
        kept = true.astype(dtype) if kept is None else jnp.where(true, kept, 0)
        vectors = jnp.where(true[:, None], items.vectors, 0)
        items = items._replace(vectors=vectors, offset=jnp.where(true, items.offset, -jnp.inf))
    no_query = jnp.zeros_like(items.offset)
    if kept is not None:
        hidden = jnp.where((kept == 0)[:, None], 0, hidden)
        no_query = jnp.where(kept == 0, -jnp.inf, no_query)
    if temperature is not None:
        # What is no temperature is NaN, where it is found out only now.
        scale = 1 / jnp.where(temperature > 0, temperature, jnp.nan).astype(dtype)
        # float16 ends at 65,504, which what is divided by a small temperature may pass.
        narrow = dtype if hidden.dtype == jnp.float16 else hidden.dtype
        hidden = (hidden.astype(dtype) * scale).astype(narrow)
    if extra is not None:
        offset = jax.lax.stop_gradient(extra.offset).astype(dtype)
        vectors = jnp.where(jnp.isneginf(offset)[:, None], 0, extra.vectors)
        extra = Side(vectors, offset, extra.labels)
    queries = Side(hidden, no_query, items.labels)
    losses = _losses(sharding, options, symmetric, queries, items, extra)
    return reduce_losses(losses, kept, reduction)


@over_rows(queries=0, items=0, extra=WHOLE)
def _losses(
    sharding: VocabSharding,
    options: Options,
    symmetric: bool,
    queries: Side,
    items: Side,
    extra: Side | None,
) -> jax.Array:
    """The loss of each pair, [batch]."""
    dtype = accumulator_dtype(queries.vectors, items.vectors)
    if not items.offset.size:
        return jnp.zeros(items.offset.shape, dtype)
    rows, columns = log_sum_exps(sharding, options, symmetric, queries, items, extra)
    own = (queries.vectors.astype(dtype) * items.vectors.astype(dtype)).sum(1)
    losses = rows - own - jnp.where(jnp.isneginf(items.offset), 0, items.offset)
    return losses if columns is None else (losses + (columns - own)) / 2
