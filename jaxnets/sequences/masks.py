"""Masked means: the same number however the same examples are padded, bucketed or packed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Integer, Num


def length_mask(lengths: Integer[Array, "*batch"], time: int) -> Bool[Array, "*batch {time}"]:
    """[..., time]: true for the steps within each length.

    Example:
      >>> import jax.numpy as jnp
      >>> length_mask(jnp.array([2, 0]), 3).tolist()
      [[True, True, False], [False, False, False]]
    """
    return jnp.arange(time) < lengths[..., None]


def masked_mean(values: Num[Array, "..."], mask: Num[Array, "..."] | Bool[Array, "..."]):
    """The mean of ``values`` where ``mask`` is not 0, by its weight; 0 where it is 0 throughout.

    A value that is masked has no effect and no gradient, NaN or not.

    Example:
      >>> import jax.numpy as jnp
      >>> float(masked_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])))
      2.0
    """
    if values.shape != mask.shape:
        raise ValueError(f"mask must have the shape of values, {values.shape}, got {mask.shape}")
    weights = mask.astype(jnp.promote_types(values.dtype, jnp.float32))
    total = weights.sum()
    summed = (jnp.where(weights == 0, 0, values) * weights).sum()
    return jnp.where(total == 0, 0, summed / jnp.where(total == 0, 1, total))


def masked_accuracy(
    logits: Float[Array, "*batch classes"],
    labels: Integer[Array, "*batch"],
    mask: Num[Array, "*batch"] | Bool[Array, "*batch"],
):
    """The share of the labels that have the largest logit, where ``mask`` is not 0."""
    return masked_mean((logits.argmax(-1) == labels).astype(jnp.float32), mask)
