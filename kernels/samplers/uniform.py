"""The sampler of every class alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels.samplers.classes import as_vocab_size, where_class


# Registered as static itself: JAX 0.10 takes two dataclasses without arrays for one if their static
# fields are equal, and may then run the other's program (PyTreeDef compares fields, not classes).
@jax.tree_util.register_static
@dataclass(frozen=True)
class Uniform:
    """Every class alike: p = 1 / vocab.

    Args:
      vocab_size: how many classes.

    Raises:
      TypeError, ValueError: ``vocab_size`` is no integer, or not in [1, 2**31 - 1].

    Example:
      >>> import jax.numpy as jnp
      >>> jnp.exp(Uniform(4).log_probability(jnp.array([0, 3, 4]))).tolist()
      [0.25, 0.25, 0.0]
    """

    vocab_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab_size", as_vocab_size(self.vocab_size))

    @property
    def support(self) -> int:
        return self.vocab_size

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.randint(key, shape, 0, self.vocab_size, jnp.int32)

    def log_probability(self, ids: Any) -> jax.Array:
        return where_class(
            ids, self.vocab_size, lambda k: jnp.full_like(k, -math.log(self.vocab_size))
        )
