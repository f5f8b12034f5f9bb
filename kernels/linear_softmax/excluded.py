"""Classes that a token leaves out of its own evaluation: what a user has seen already, say."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.checks import as_integers, check_range, in_range

PADDING = -1


def check_exclude(exclude: Any, batch: tuple[int, ...], vocab_size: int) -> jax.Array | None:
    """``exclude`` as int32 [*batch, n]; None where nothing is excluded.

    Raises unless it has that shape and holds, where known, class ids and ``PADDING``.
    """
    if exclude is None:
        return None
    exclude = as_integers("exclude", exclude, "integer class ids")
    if exclude.ndim != len(batch) + 1 or exclude.shape[:-1] != batch:
        raise ValueError(
            f"exclude must be [..., n] with the first axes of hidden, {batch}, "
            f"got shape {exclude.shape}"
        )
    check_range("exclude", exclude, PADDING, vocab_size, "[-1, vocab_size)")
    return exclude if exclude.shape[-1] else None


def out_of_range(exclude: jax.Array, vocab_size: int) -> jax.Array:
    """Which tokens [...] exclude what is neither a class nor padding: found out only now."""
    return ~in_range(exclude, vocab_size, PADDING).all(-1)


def among(ids: jax.Array, start: jax.Array, size: int) -> jax.Array:
    """Which of the classes [start, start + size) are among each token's ``ids [tokens, n]``.

    Returns:
      [tokens, size] bool, in time that grows with n and not with n times size.
    """
    local = ids - start
    local = jnp.where(in_range(local, size), local, size)  # a negative one would wrap around
    tokens = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], size), bool).at[tokens, local].set(True, mode="drop")
