"""The log-sum-exp over a tile's rows, inside an epilogue, and over tiles, outside of it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnets.kernels.numerics import log_of_sum
from jaxnets.kernels.pallas.contract import over_rows


def tile_log_sum_exp(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum over the rows, and the sum of exponentials above it; -inf is no class."""
    largest = jnp.maximum(logits.max(0), jnp.finfo(jnp.float32).min)
    return largest, jnp.exp(logits - over_rows(largest, logits)).sum(0)


def combine_tiles(largest: jax.Array, total: jax.Array) -> jax.Array:
    """The log-sum-exp [tokens] from those of tiles, [tiles, tokens]."""
    overall = largest.max(0)
    return log_of_sum(overall, (total * jnp.exp(largest - overall[None])).sum(0))
