"""Checks that every loss of this folder makes at trace time, in one place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

REDUCTIONS = ("mean", "sum", "none")
INT32_MAX = 2**31 - 1


def check_projection(hidden, weight, bias) -> None:
    """Raise unless ``hidden [..., features]`` fits ``weight [vocab, features]`` and ``bias``."""
    for name, array in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if array is not None and not jnp.issubdtype(jnp.result_type(array), jnp.floating):
            raise TypeError(f"{name} must be floating point, got {jnp.result_type(array)}")
    if weight.ndim != 2:
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


def check_integers(name: str, array) -> None:
    """Raise ``TypeError`` unless ``array`` holds integers."""
    if not jnp.issubdtype(jnp.result_type(array), jnp.integer):
        raise TypeError(f"{name} must be integer class ids, got dtype {jnp.result_type(array)}")


def check_labels(labels, shape: tuple[int, ...], vocab: int, ignore_index: int | None = None):
    """Raise unless ``labels`` are integers of ``shape`` and, where that is known, in range.

    Values are known when ``labels`` is a concrete array (outside ``jit``). A traced label out of
    [0, vocab) gives a loss of NaN; :mod:`jaxnets.kernels.softmax.checked` turns it into an error.
    """
    check_integers("labels", labels)
    if labels.shape != shape:
        raise ValueError(f"labels must have shape {shape} as hidden has it, got {labels.shape}")
    if isinstance(labels, jax.core.Tracer):
        return
    values = np.asarray(labels)
    wrong = (values < 0) | (values >= vocab)
    if ignore_index is not None:
        wrong &= values != ignore_index
    if wrong.any():
        raise ValueError(
            f"labels must lie in [0, vocab) = [0, {vocab}), got {values[wrong].flat[0]}"
            + ("" if ignore_index is None else f" (ignore_index is {ignore_index})")
        )


def check_weights(weights, shape: tuple[int, ...]) -> None:
    """Raise unless ``weights`` is None or one number (or bool) a token."""
    if weights is not None and weights.shape != shape:
        raise ValueError(f"weights must have one value a token, shape {shape}, got {weights.shape}")


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


def leave_out(weights, labels, ignore_index: int | None, vocab: int, dtype):
    """Weights [...] of ``dtype`` that are 0 at ignored labels, or None; and safe labels [...]."""
    kept = None if weights is None else weights.astype(dtype)
    if ignore_index is not None:
        ignored = labels == ignore_index
        kept = jnp.where(ignored, 0, 1 if kept is None else kept).astype(dtype)
        labels = jnp.where(ignored, 0, labels)
    return kept, safe_ids(labels, vocab)


def reduce_losses(losses: jax.Array, weights: jax.Array | None, reduction: str) -> jax.Array:
    """``losses [...]`` times ``weights [...]``, as they are, summed, or averaged by weight.

    A token of weight 0 is left out even where its loss is NaN. The mean over no weight at all is 0.
    """
    if weights is None:
        weighted, total = losses, jnp.asarray(losses.size, losses.dtype)
    else:
        weights = weights.astype(losses.dtype)
        weighted = jnp.where(weights == 0, 0, losses * weights)
        total = weights.sum()
    if reduction == "none":
        return weighted
    if reduction == "sum":
        return weighted.sum()
    return jnp.where(total == 0, 0, weighted.sum() / jnp.where(total == 0, 1, total))
