"""What every loss of an output projection checks at trace time, leaves out and reduces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.checks import (
    INT32_MAX,
    as_floats,
    as_int,
    as_integers,
    holds_tracers,
    is_known,
)

REDUCTIONS = ("mean", "sum", "none")


def check_projection(
    hidden: Any, weight: Any, bias: Any
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """``hidden [..., features]``, ``weight [vocab, features]`` and ``bias [vocab]`` as arrays.

    Raises unless they fit.
    """
    hidden, weight = as_floats("hidden", hidden), as_floats("weight", weight)
    bias = None if bias is None else as_floats("bias", bias)
    if weight.ndim != 2 or not weight.size:
        raise ValueError(f"weight must be [vocab, features], got shape {weight.shape}")
    if hidden.ndim < 1 or hidden.shape[-1] != weight.shape[1]:
        hint = ""
        if hidden.ndim and hidden.shape[-1] == weight.shape[0]:
            hint = "; weight looks transposed: pass [vocab, features], not [features, vocab]"
        raise ValueError(
            f"hidden must be [..., features] with features = weight.shape[1] = {weight.shape[1]}, "
            f"got shape {hidden.shape} with weight {weight.shape}{hint}"
        )
    if weight.shape[0] > INT32_MAX:
        raise ValueError(f"vocab must fit int32 ({INT32_MAX}), got {weight.shape[0]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must be [vocab] = {weight.shape[:1]} as weight has it, got shape {bias.shape}"
        )
    return hidden, weight, bias


def check_ignore_index(ignore_index: Any) -> int | None:
    """``ignore_index`` as an int that an int32 label can equal, or None."""
    if ignore_index is None:
        return None
    return min(max(as_int("ignore_index", ignore_index), -INT32_MAX - 1), INT32_MAX)


def check_labels(
    labels: Any,
    shape: tuple[int, ...],
    vocab: int,
    ignore_index: int | None = None,
    weights: jax.Array | None = None,
) -> jax.Array:
    """``labels`` as int32; raises unless they have ``shape`` and, where known, are in range.

    A token of weight 0 may have any label. A traced label out of [0, vocab) gives a loss of NaN;
    :mod:`jaxnets.kernels.checked` turns it into an error.
    """
    labels = as_integers("labels", labels, "integer class ids")
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {shape} as hidden has it, got {labels.shape}")
    if not is_known(labels) or not is_known(weights):
        return labels
    values = np.asarray(labels)
    wrong = (values < 0) | (values >= vocab)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if weights is not None:
        wrong &= np.asarray(weights) != 0
    if wrong.any():
        first = values[wrong].flat[0]
        hint = f" (ignore_index is {ignore_index})"
        if ignore_index is None:
            hint = f"; say ignore_index={first} to leave such tokens out" if first < 0 else ""
        raise ValueError(f"labels must lie in [0, vocab) = [0, {vocab}), got {first}{hint}")
    return labels


def check_weights(weights: Any, shape: tuple[int, ...]) -> jax.Array | None:
    """``weights`` as an array of one number (or bool) a token, or None."""
    if weights is None:
        return None
    if not isinstance(weights, jax.Array) and not holds_tracers(weights):
        weights = np.asarray(weights)
        if weights.dtype.kind in "iu":  # JAX would cut 64 bits to 32
            weights = weights.astype(np.float64)
        elif weights.dtype.kind not in "bfV":  # V: bfloat16
            raise TypeError(f"weights must be numbers, got dtype {weights.dtype}")
    weights = jnp.asarray(weights)
    if jnp.iscomplexobj(weights):
        raise TypeError(f"weights must be numbers, got dtype {weights.dtype}")
    if weights.shape != shape:
        raise ValueError(f"weights must have one value a token, shape {shape}, got {weights.shape}")
    return weights


def check_reduction(reduction: str) -> None:
    """Raise unless ``reduction`` is one of ``REDUCTIONS``."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be one of {REDUCTIONS}, got {reduction!r}")


def safe_ids(ids: jax.Array, vocab: int) -> jax.Array:
    """``ids`` as int32 with anything outside [0, vocab) sent to ``vocab``.

    JAX wraps a negative index around to the end of an array; sent to ``vocab`` it is out of bounds
    instead, so that ``mode="fill"`` gives NaN and ``mode="drop"`` drops it.
    """
    return jnp.where((ids < 0) | (ids >= vocab), vocab, ids).astype(jnp.int32)


def token_weights(
    labels: jax.Array,
    weights: jax.Array | None,
    ignore_index: int | None,
    batch: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array | None:
    """Weights ``batch`` of ``dtype``, 0 for a token without a label but ``ignore_index``.

    ``labels``: ``batch`` or [..., num_true]. None where nothing can be left out.
    """
    if ignore_index is None:
        return None if weights is None else weights.astype(dtype)
    present = labels != ignore_index
    if labels.ndim > len(batch):
        present = present.any(-1)
    weights = jnp.ones(batch, dtype) if weights is None else weights.astype(dtype)
    return jnp.where(present, weights, jnp.zeros((), dtype))


def leave_out(
    weights: jax.Array | None,
    labels: jax.Array,
    ignore_index: int | None,
    vocab: int,
    dtype: jnp.dtype,
) -> tuple[jax.Array | None, jax.Array]:
    """Weights [...] of ``dtype`` that are 0 at ignored labels, or None; and safe labels [...].

    The label of a token that is left out becomes 0: it must not make what it does not count NaN.
    """
    kept = token_weights(labels, weights, ignore_index, labels.shape, dtype)
    if kept is not None:
        labels = jnp.where(kept == 0, 0, labels)
    return kept, safe_ids(labels, vocab)


def reduce_losses(losses: jax.Array, weights: jax.Array | None, reduction: str) -> jax.Array:
    """``losses [...]`` times ``weights [...]``, as they are, summed, or averaged by weight.

    A token of weight 0 is left out even where its loss is NaN. The mean over no weight at all is 0.
    """
    if weights is None:
        weighted, total = losses, jnp.asarray(losses.size, losses.dtype)
    else:
        weights = weights.astype(losses.dtype)
        # The losses, not the product: the gradient of the weights would be 0 times NaN.
        weighted = jnp.where(weights == 0, 0, losses) * weights
        total = weights.sum()
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return jnp.where(total == 0, 0, weighted.sum() / jnp.where(total == 0, 1, total))
