"""Draws from the log-uniform distribution, right for the tail of ten million classes.

The textbook draw, floor(exp(u * log(V + 1))) - 1 in float32, has no more than 2**23 values of u:
at id 1,000,000 they are 1.6 ids apart, and at 10,000,000 most ids are never drawn. So the exponent
is kept in fixed point, y = u * log2(V + 1) with 32 random bits, and 2**y is taken in two factors:

    2**y = 2**(integer + coarse) * 2**fine,    2**fine - 1 = fine * log(2) below 1e-4,

where the first factor is rounded once for a whole cell of ids and the second adds to it in whole
ids and a remainder, so that no id is lost to rounding. Ids are at most 2**31.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.samplers.classes import as_vocab_size, where_class

_FRACTION_BITS = 26  # of y; its integer part is at most 31, so y fills 31 bits
_COARSE_BITS = 13


# Registered as static itself: JAX 0.10 takes two dataclasses without arrays for one if their static
# fields are equal, and may then run the other's program (PyTreeDef compares fields, not classes).
@jax.tree_util.register_static
@dataclass(frozen=True)
class LogUniform:
    """Zipf's law for ids sorted by falling frequency: p(k) = log((k + 2) / (k + 1)) / log(V + 1).

    The "log-uniform" or Zipfian candidate sampler of TensorFlow.

    Args:
      vocab_size: how many classes.

    Raises:
      TypeError, ValueError: ``vocab_size`` is no integer, or not in [1, 2**31 - 1].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> jnp.exp(jax.jit(LogUniform(3).log_probability)(jnp.arange(4))).round(3).tolist()
      [0.5..., 0.29..., 0.20..., 0.0]
    """

    vocab_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocab_size", as_vocab_size(self.vocab_size))

    @property
    def support(self) -> int:
        return self.vocab_size

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return draw_log_uniform(key, shape, self.vocab_size)

    def log_probability(self, ids: Any) -> jax.Array:
        total = math.log1p(self.vocab_size)
        return where_class(ids, self.vocab_size, lambda k: jnp.log(jnp.log1p(1 / (k + 1)) / total))


def draw_log_uniform(key: jax.Array, shape: tuple[int, ...], vocab_size: int) -> jax.Array:
    """int32 ids of ``shape`` in [0, vocab_size), p(k) = log((k + 2) / (k + 1)) / log(vocab + 1)."""
    bits = jax.random.bits(key, shape, jnp.uint32)
    span = np.uint32(np.floor(np.log2(vocab_size + 1.0) * 2.0**_FRACTION_BITS))
    y, remainder = _multiply_high(bits, span)
    remainder = remainder.astype(jnp.float32)
    fine_bits = _FRACTION_BITS - _COARSE_BITS
    coarse = (y >> fine_bits).astype(jnp.float32) * 2.0**-_COARSE_BITS
    fine = (y & (2**fine_bits - 1)).astype(jnp.float32) + remainder * 2.0**-32
    base = jnp.exp2(coarse)
    whole = jnp.floor(base)
    added = (base - whole) + base * (fine * np.float32(np.log(2) * 2.0**-_FRACTION_BITS))
    ids = whole.astype(jnp.uint32) + added.astype(jnp.uint32) - 1
    return jnp.minimum(ids, vocab_size - 1).astype(jnp.int32)


def _multiply_high(a: jax.Array, b: np.uint32) -> tuple[jax.Array, jax.Array]:
    """The upper and lower 32 bits of the 64-bit product of uint32 numbers."""
    a_high, a_low = a >> 16, a & 0xFFFF
    b_high, b_low = np.uint32(b >> 16), np.uint32(b & 0xFFFF)
    middle = a_high * b_low + (a_low * b_low >> 16)
    low_middle = (middle & 0xFFFF) + a_low * b_high
    high = a_high * b_high + (middle >> 16) + (low_middle >> 16)
    return high, a * b
