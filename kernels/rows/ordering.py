"""Equal ids side by side: the one way this folder finds distinct ids under static shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def sort_ids(ids: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``ids [n]`` in order: ``(order, ordered, is_first)``, [n] each.

    ``ordered = ids[order]`` keeps the order of equal ids; ``is_first`` marks the first of each.
    """
    order = jnp.argsort(ids, stable=True)
    ordered = ids[order]
    is_first = jnp.concatenate([jnp.ones(ids[:1].shape, bool), ordered[1:] != ordered[:-1]])
    return order, ordered, is_first
