"""What every loss of an output projection checks at trace time, leaves out and reduces."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.checks import (
    INT32_MAX,
    as_floats,
    as_int,
    as_integers,
    holds_tracers,
    in_range,
    is_known,
)

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = get_args(Reduction)


class LossAndLogSumExp(NamedTuple):
    """What the exact loss returns with ``return_log_sum_exp``.

    Attributes:
      loss: a scalar, or [...] for the reduction "none".
      log_sum_exp: [...]: z of each token, 0 for one that is left out.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import linear_softmax_cross_entropy
      >>> result = linear_softmax_cross_entropy(
      ...     jnp.ones((2, 4)), jnp.zeros((10, 4)), jnp.array([3, 5]), return_log_sum_exp=True
      ... )
      >>> result.loss.shape, result.log_sum_exp.shape
      ((), (2,))
    """

    loss: jax.Array
    log_sum_exp: jax.Array


def check_projection(
    hidden: Any, weight: Any, bias: Any, features_first: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``hidden [..., features]``, ``weight [vocab, features]`` and ``bias [vocab]`` as arrays.

    With ``features_first``, ``weight [features, vocab]``. Raises unless they fit.
    """
    hidden, weight = as_floats("hidden", hidden), as_floats("weight", weight)
    bias = None if bias is None else as_floats("bias", bias)
    axes = "[features, vocab]" if features_first else "[vocab, features]"
    if weight.ndim != 2 or not weight.size:
        raise ValueError(f"weight must be {axes}, got shape {weight.shape}")
    vocab_size, features = weight.shape[::-1] if features_first else weight.shape
    if hidden.ndim < 1 or hidden.shape[-1] != features:
        hint = ""
        if hidden.ndim and hidden.shape[-1] == vocab_size:
            hint = (
                "; weight looks transposed: pass [features, vocab], or leave out features_first"
                if features_first
                else "; weight looks transposed: pass [vocab, features], or say "
                "features_first=True for [features, vocab]"
            )
        raise ValueError(
            f"hidden must be [..., features] with features = "
            f"weight.shape[{0 if features_first else 1}] = {features}, "
            f"got shape {hidden.shape} with weight {weight.shape}{hint}"
        )
    if vocab_size > INT32_MAX:
        raise ValueError(f"vocab_size must fit int32 ({INT32_MAX}), got {vocab_size}")
    if bias is not None and bias.shape != (vocab_size,):
        raise ValueError(
            f"bias must be [vocab] = {(vocab_size,)} as weight has it, got shape {bias.shape}"
        )
    return hidden, weight, bias


def vocab_size_of(weight: Any, features_first: bool) -> int:
    """How many classes a table has."""
    return jnp.shape(weight)[1 if features_first else 0]


def check_ignore_index(ignore_index: Any) -> int | None:
    """``ignore_index`` as an int that an int32 label can equal, or None."""
    if ignore_index is None:
        return None
    return min(max(as_int("ignore_index", ignore_index), -INT32_MAX - 1), INT32_MAX)


def check_labels(
    labels: Any,
    shape: tuple[int, ...],
    vocab_size: int,
    ignore_index: int | None = None,
    token_weights: Any = None,
) -> jax.Array:
    """``labels`` as int32; raises unless they have ``shape`` and, where known, are in range.

    A token of weight 0 may have any label. A traced label out of [0, vocab_size) gives a loss of
    NaN; :mod:`jaxnets.kernels.checked` turns it into an error.
    """
    labels = as_integers("labels", labels, "integer class ids")
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {shape} as hidden has it, got {labels.shape}")
    if not is_known(labels) or not is_known(token_weights):
        return labels
    values = np.asarray(labels)
    wrong = ~in_range(values, vocab_size)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if token_weights is not None:
        wrong &= np.asarray(token_weights) != 0
    if wrong.any():
        first = values[wrong].flat[0]
        hint = f" (ignore_index is {ignore_index})"
        if ignore_index is None:
            hint = f"; say ignore_index={first} to leave such tokens out" if first < 0 else ""
        raise ValueError(
            f"labels must lie in [0, vocab_size) = [0, {vocab_size}), got {first}{hint}"
        )
    return labels


def check_weights(
    weights: Any, shape: tuple[int, ...], name: str = "token_weights", of: str = "token"
) -> jax.Array | None:
    """``weights``, by default of tokens, as an array of one number (or bool) each, or None."""
    if weights is None:
        return None
    if not isinstance(weights, jax.Array) and not holds_tracers(weights):
        weights = np.asarray(weights)
        if weights.dtype.kind in "iu":  # JAX would cut 64 bits to 32
            weights = weights.astype(np.float64)
        elif weights.dtype.kind not in "bfV":  # V: bfloat16
            raise TypeError(f"{name} must be numbers, got dtype {weights.dtype}")
    weights = jnp.asarray(weights)
    if jnp.iscomplexobj(weights):
        raise TypeError(f"{name} must be numbers, got dtype {weights.dtype}")
    if weights.shape != shape:
        raise ValueError(f"{name} must have one value a {of}, shape {shape}, got {weights.shape}")
    return weights


def check_reduction(reduction: str) -> None:
    """Raise unless ``reduction`` is one of ``REDUCTIONS``."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def safe_ids(ids: jax.Array, vocab_size: int, num_classes: int | None = None) -> jax.Array:
    """``ids`` as int32 with anything outside [0, num_classes) sent to ``vocab_size``.

    ``num_classes``: None is ``vocab_size``.

    JAX wraps a negative index around to the end of an array; sent to ``vocab_size`` it is out of
    bounds instead, so that ``mode="fill"`` gives NaN and ``mode="drop"`` drops it.
    """
    known = in_range(ids, vocab_size if num_classes is None else num_classes)
    return jnp.where(known, ids, vocab_size).astype(jnp.int32)


def read_rows(
    table: jax.Array, ids: jax.Array, features_first: bool = False, mode: str = "fill"
) -> jax.Array:
    """``table[ids]``, [..., features] or [...], NaN where an id is out of bounds.

    The rows of a table [features, vocab] are its columns. ``ids`` are those of :func:`safe_ids`.
    With the mode "clip" what is out of bounds is the last row, and no row is written anew.
    """
    if features_first and table.ndim > 1:
        columns = table.at[:, ids].get(mode=mode, fill_value=jnp.nan)
        return jnp.moveaxis(columns, 0, -1)
    return table.at[ids].get(mode=mode, fill_value=jnp.nan)


def kept_weights(
    labels: jax.Array,
    token_weights: jax.Array | None,
    ignore_index: int | None,
    batch: tuple[int, ...],
    dtype: jnp.dtype,
    label_weights: jax.Array | None = None,
) -> jax.Array | None:
    """Weights ``batch`` of ``dtype``, 0 for a token without a label but ``ignore_index``.

    ``labels``: ``batch`` or [..., num_true]; one of weight 0 is none. None where nothing can be
    left out.
    """
    if ignore_index is None and label_weights is None:
        return None if token_weights is None else token_weights.astype(dtype)
    present = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    if label_weights is not None:
        present &= label_weights != 0
    if labels.ndim > len(batch):
        present = present.any(-1)
    token_weights = jnp.ones(batch, dtype) if token_weights is None else token_weights.astype(dtype)
    return jnp.where(present, token_weights, jnp.zeros((), dtype))


def leave_out(
    token_weights: jax.Array | None,
    labels: jax.Array,
    ignore_index: int | None,
    vocab_size: int,
    dtype: jnp.dtype,
    num_classes: int | None = None,
) -> tuple[jax.Array | None, jax.Array]:
    """Weights [...] of ``dtype`` that are 0 at ignored labels, or None; and safe labels [...].

    The label of a token that is left out becomes 0: it must not make what it does not count NaN.
    """
    kept = kept_weights(labels, token_weights, ignore_index, labels.shape, dtype)
    if kept is not None:
        labels = jnp.where(kept == 0, 0, labels)
    return kept, safe_ids(labels, vocab_size, num_classes)


def reduce_losses(losses: jax.Array, token_weights: jax.Array | None, reduction: str) -> jax.Array:
    """``losses [...]`` times ``token_weights [...]``, as they are, summed, or averaged by weight.

    A token of weight 0 is left out even where its loss is NaN. The mean over no weight at all is 0.
    """
    if token_weights is None:
        weighted, total = losses, jnp.asarray(losses.size, losses.dtype)
    else:
        token_weights = token_weights.astype(losses.dtype)
        # The losses, not the product: the gradient of the weights would be 0 times NaN.
        weighted = jnp.where(token_weights == 0, 0, losses) * token_weights
        total = token_weights.sum()
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return jnp.where(total == 0, 0, weighted.sum() / jnp.where(total == 0, 1, total))


def times_cotangent(gradients: Any, cotangent: jax.Array) -> Any:
    """``gradients`` of a scalar loss, kept since its forward pass, times the loss' cotangent.

    Multiplied in the dtype of the loss, and each in its own again.
    """

    def times(gradient):
        return (cotangent * gradient.astype(cotangent.dtype)).astype(gradient.dtype)

    return jax.tree.map(times, gradients)
