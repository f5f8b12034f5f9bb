"""What the samplers' classes are asked: how many there are, and whether an id is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels import checks


def as_vocab_size(vocab_size: int, largest: int = checks.INT32_MAX) -> int:
    """``vocab_size`` as a Python int in [1, largest].

    Raises:
      TypeError, ValueError: it is no integer, or out of range.
    """
    vocab_size = checks.as_int("vocab_size", vocab_size)
    if not 1 <= vocab_size <= largest:
        raise ValueError(f"vocab_size must lie in [1, {largest}] (int32 ids), got {vocab_size}")
    return vocab_size


def where_class(ids: Any, vocab_size: int, log_p: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """``log_p`` of float32 ids, -inf outside [0, vocab_size)."""
    ids = checks.as_integers("ids", ids)
    inside = checks.in_range(ids, vocab_size)
    return jnp.where(inside, log_p(jnp.where(inside, ids, 0).astype(jnp.float32)), -jnp.inf)
