"""What the samplers' classes are asked: how many there are, and whether an id is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels import checks


def as_vocab(vocab: int, largest: int = checks.INT32_MAX) -> int:
    """``vocab`` as a Python int in [1, largest].

    Raises:
      TypeError, ValueError: it is no integer, or out of range.
    """
    vocab = checks.as_int("vocab", vocab)
    if not 1 <= vocab <= largest:
        raise ValueError(f"vocab must lie in [1, {largest}] (int32 ids), got {vocab}")
    return vocab


def where_class(ids: Any, vocab: int, log_p: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """``log_p`` of float32 ids, -inf outside [0, vocab)."""
    ids = checks.as_integers("ids", ids)
    inside = (ids >= 0) & (ids < vocab)
    return jnp.where(inside, log_p(jnp.where(inside, ids, 0).astype(jnp.float32)), -jnp.inf)
