"""The exact loss with the update of its table inside the backward pass: no gradient of the table.

Two passes over tiles of classes, as ``xla_two_pass.py`` makes them: one for the log-sum-exp of each
token, one that computes the logits again. In the second a tile's gradient, of all tokens, moves the
tile's rows in place and is forgotten before the next one's is made; what the hidden states get is
computed from the tile as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels.checks import in_range
from jaxnets.kernels.linear_softmax.checks import check_compute_dtype, check_options, sizes_of
from jaxnets.kernels.linear_softmax.labels import mark_bad_labels
from jaxnets.kernels.linear_softmax.per_token import factors_of, losses_of
from jaxnets.kernels.linear_softmax.tile_sizes import TOKENS, Tiles, even
from jaxnets.kernels.linear_softmax.tiles import (
    Options,
    VocabTile,
    add_at,
    class_count,
    label_logits,
    tile_count,
    token_tiles,
    vocab_tile,
)
from jaxnets.kernels.linear_softmax.update_rules import SGD, RowwiseAdagrad, check_rule, moved
from jaxnets.kernels.linear_softmax.xla_two_pass import TiledEngine, gradients_of_tile, slope_of
from jaxnets.kernels.losses import (
    Reduction,
    check_ignore_index,
    check_labels,
    check_projection,
    check_weights,
    leave_out,
    reduce_losses,
    vocab_size_of,
)
from jaxnets.kernels.meshes import SUM, WHOLE, over_rows, sum_over_rows
from jaxnets.kernels.vocab_sharding import UNSPLIT


class LinearSoftmaxUpdate(NamedTuple):
    """What :func:`linear_softmax_update` returns.

    Attributes:
      loss: [], float32 (float64 where that is computed in).
      hidden_gradient: [..., features], in the dtype of the hidden states, by the table as it was.
      weight: the table after the step, in its layout and dtype.
      bias: [vocab] after the step, or None.
      state: the rule for the next step, with its accumulators as they are now.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import linear_softmax_update
      >>> result = linear_softmax_update(
      ...     jnp.ones((2, 4)), jnp.zeros((10, 4)), jnp.array([3, 5]), SGD(0.1)
      ... )
      >>> result.weight.shape, result.state
      ((10, 4), SGD(learning_rate=0.1))
    """

    loss: jax.Array
    hidden_gradient: jax.Array
    weight: jax.Array
    bias: jax.Array | None
    state: Any


def linear_softmax_update(
    hidden: Float[ArrayLike, "*batch features"],
    weight: Float[ArrayLike, "vocab features"] | Float[ArrayLike, "features vocab"],
    labels: Integer[ArrayLike, "*batch"] | Sequence,
    rule: SGD | RowwiseAdagrad,
    *,
    bias: Float[ArrayLike, " vocab"] | None = None,
    token_weights: Shaped[ArrayLike, "*batch"] | Sequence | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: SupportsFloat = 0.0,
    z_loss: SupportsFloat = 0.0,
    soft_cap: SupportsFloat | None = None,
    reduction: Reduction = "mean",
    features_first: bool = False,
    compute_dtype: DTypeLike | None = None,
    tiles: Tiles | None = None,
) -> LinearSoftmaxUpdate:
    r"""The exact loss, the gradient of its hidden states, and its table already updated.

    For the loss L of :func:`linear_softmax_cross_entropy`, a table W and a rule u,

    .. math::
        W'_v = W_v + u\big(\partial L / \partial W_v\big), \qquad
        \partial L / \partial h = \sum_v \frac{\partial L}{\partial l_v} W_v

    tile by tile: the gradient of a tile of classes, of all tokens and in float32, moves those rows
    in place and is gone before the next (as in "ELMO: Efficiency via Low-precision and Peak Memory
    Optimization in Large Output Spaces", ICML 2025). An array of the gradient's size, which the
    usual step has beside the table, is never there. Four matmuls, as of a loss a token.

    Donate the table and the rule to the jitted step, or they are copied. A trunk below is trained
    by the gradient of the hidden states:

    >>> import jax, jax.numpy as jnp
    >>> from functools import partial
    >>> def trunk(parameters, inputs):
    ...     return jnp.tanh(inputs @ parameters)
    >>> @partial(jax.jit, donate_argnums=(0, 1, 2))
    ... def step(parameters, weight, rule, inputs, labels):
    ...     hidden, pull = jax.vjp(lambda parameters: trunk(parameters, inputs), parameters)
    ...     result = linear_softmax_update(hidden, weight, labels, rule, ignore_index=-1)
    ...     (gradient,) = pull(result.hidden_gradient)
    ...     return parameters - 0.1 * gradient, result.weight, result.state, result.loss
    >>> parameters, weight = jnp.ones((3, 8)), jnp.zeros((1000, 8))
    >>> rule = RowwiseAdagrad(jnp.float32(0.1), jnp.full(1000, 0.1, jnp.float32))
    >>> inputs, labels = jnp.ones((2, 5, 3)), jnp.array([[3, 1, 4, -1, -1], [2, 7, 1, 8, 2]])
    >>> parameters, weight, rule, first = step(parameters, weight, rule, inputs, labels)
    >>> parameters, weight, rule, second = step(parameters, weight, rule, inputs, labels)
    >>> bool(second < first)
    True

    Args:
      hidden: [..., features], float; bfloat16 and float16 are accumulated in float32.
      weight: [vocab, features], float; or, by ``features_first``, [features, vocab]. What is not
        float32 is moved in float32 and rounded once.
      labels: [...], integers of any width in [0, vocab_size), or ``ignore_index``.
      rule: :class:`SGD` or :class:`RowwiseAdagrad`, whose accumulators are updated too.
      bias: [vocab] or None; updated by the same rule. A class of bias -inf is out, and stays so.
      token_weights, ignore_index, label_smoothing, z_loss, soft_cap, compute_dtype: as in
        :func:`linear_softmax_cross_entropy`.
      reduction: "mean" (by weight) or "sum".
      features_first: ``weight`` is [features, vocab], as the kernel of ``nnx.Linear`` is.
      tiles: its ``vocab_tile`` are the classes at a time; None: what serves the platform best.

    Returns:
      :class:`LinearSoftmaxUpdate`, what ``jax.value_and_grad`` and the rule give up to rounding.

    Raises:
      TypeError: float labels, integer hidden, weight, bias or accumulators, or another rule.
      ValueError: shapes that do not fit, an option out of its range, or a label or a learning rate
        out of range where its value is known. Under ``jit`` such a label makes the loss NaN, such a
        learning rate the table.
    """
    hidden, weight, bias = check_projection(hidden, weight, bias, features_first)
    vocab_size, batch = vocab_size_of(weight, features_first), hidden.shape[:-1]
    ignore_index = check_ignore_index(ignore_index)
    token_weights = check_weights(token_weights, batch)
    labels = check_labels(labels, batch, vocab_size, ignore_index, token_weights)
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    sizes = sizes_of(hidden, weight, features_first, UNSPLIT)
    options = check_options(label_smoothing, z_loss, soft_cap, tiles, features_first, sizes)
    computed = check_compute_dtype(compute_dtype, hidden, weight)
    options = options._replace(compute_dtype=computed)
    checked = check_rule(rule, vocab_size, has_bias=bias is not None)
    found = _update(
        options, reduction, ignore_index, hidden, weight, bias, labels, token_weights, checked
    )
    result = LinearSoftmaxUpdate(*found)
    # The numbers as they were given: those of a checked rule may be NaN.
    numbers = {
        name: getattr(rule, name) for name in ("learning_rate", "eps") if name in rule._fields
    }
    return result._replace(state=result.state._replace(**numbers))


@partial(jax.jit, static_argnums=(0, 1, 2))
@jax.named_scope("linear_softmax_update")
@over_rows(
    results=(SUM, 0, WHOLE, WHOLE, WHOLE), hidden=0, weight=WHOLE, bias=WHOLE, labels=0,
    token_weights=0, rule=WHOLE,
)  # fmt: skip
def _update(
    options: Options,
    reduction: str,
    ignore_index: int | None,
    hidden: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    labels: jax.Array,
    token_weights: jax.Array | None,
    rule: SGD | RowwiseAdagrad,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None, SGD | RowwiseAdagrad]:
    shape, dtype = hidden.shape, options.accumulator(hidden, weight)
    vocab_size = weight.shape[options.vocab_axis]
    if not labels.size:
        return jnp.zeros((), dtype), jnp.zeros_like(hidden), weight, bias, rule
    kept, labels = leave_out(token_weights, labels, ignore_index, vocab_size, dtype)
    kept = jnp.ones(labels.shape, dtype) if kept is None else kept
    kept, labels = kept.reshape(-1), labels.reshape(-1)
    unused = kept == 0
    # Masked before any arithmetic: a token that is left out leaves no trace, be it NaN.
    flat = jnp.where(unused[:, None], 0, options.rounded(hidden.reshape(-1, shape[-1])))
    zeros = jnp.zeros(vocab_size, dtype)
    offsets = zeros if bias is None else bias
    classes = class_count(offsets) if options.label_smoothing else 1

    found = TiledEngine().statistics(options, flat, weight, offsets, labels)
    inside = in_range(labels, vocab_size)
    label_logit = jnp.where(inside, found.label_logit, jnp.nan)
    losses = losses_of(options, classes, found._replace(label_logit=label_logit))
    total = sum_over_rows(kept.sum()) if reduction == "mean" else jnp.ones((), dtype)
    slopes = kept / jnp.where(total == 0, 1, total)
    loss = reduce_losses(losses, slopes, "sum")
    factors = factors_of(options, classes, found.log_sum_exp, (slopes, jnp.zeros_like(slopes)))
    factors = jax.tree.map(lambda a: jnp.where(unused, 0, a), factors)
    log_sum_exp = jnp.where(unused, jnp.inf, found.log_sum_exp)

    size = even(labels.size, TOKENS)
    _, label_slope, label_rows = label_logits(flat, weight, offsets, labels, options)
    at_label = jnp.where(inside, factors.label * label_slope, 0)
    by_label = -at_label[:, None] * flat.astype(dtype)
    numbers = jax.tree.map(lambda a: token_tiles(a, size), factors)
    numbers = (token_tiles(log_sum_exp, size, jnp.inf), numbers)
    tokens = token_tiles(flat, size)

    def over_vocab(index, carry):
        hidden_gradient, weight, bias, rule = carry
        offsets = zeros if bias is None else bias
        tile = _unmoved(vocab_tile(weight, offsets, index, options), options)
        (hidden_gradient, _), rows, bias_rows = gradients_of_tile(
            options, tokens, tile, numbers, slope_of(options, tile), (hidden_gradient, None)
        )
        # Classes that an earlier tile saw have got theirs; what lies beyond the tile is dropped.
        count = tile.bias.shape[0]
        local = jnp.where(labels >= index * count, labels - tile.start, count)
        rows = sum_over_rows(add_at(rows, local, by_label, options))
        weight, after = moved(rule, weight, "accumulator", rows, tile.start, options.vocab_axis)
        if bias is not None:
            bias_rows = sum_over_rows(bias_rows.at[local].add(-at_label, mode="drop"))
            bias, after = moved(after, bias, "bias_accumulator", bias_rows, tile.start, 0)
        return hidden_gradient, weight, bias, after

    # The labels' rows are read here, before the loop, so that no copy of the old table is kept.
    by_rows = -at_label[:, None] * jnp.where(inside[:, None], label_rows, 0)
    hidden_gradient, weight, bias, rule = lax.fori_loop(
        0, tile_count(vocab_size, options), over_vocab,
        (token_tiles(by_rows, size), weight, bias, rule),
    )  # fmt: skip
    hidden_gradient = hidden_gradient.reshape(-1, shape[-1])[: labels.size]
    hidden_gradient = mark_bad_labels(hidden_gradient, labels, vocab_size, unused)
    return loss, hidden_gradient.reshape(shape).astype(hidden.dtype), weight, bias, rule


def _unmoved(tile: VocabTile, options: Options) -> VocabTile:
    """``tile`` without the rows that an earlier tile has moved: 0 times NaN would be NaN."""
    if tile.fresh is None:
        return tile
    fresh = jnp.expand_dims(tile.fresh, 1 - options.vocab_axis)
    return tile._replace(weight=jnp.where(fresh, tile.weight, 0))
