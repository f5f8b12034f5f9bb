"""Trees of arrays as checkpoints keep them, and put back where a fresh run has them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_saved(tree: Any) -> Any:
    """Random keys as the integers that they are made of; None for what has no elements.

    Orbax takes neither.
    """

    def leaf(array):
        if not array.size:
            return None
        return jax.random.key_data(array) if _is_key(array) else array

    return jax.tree.map(leaf, tree)


def placed_like(restored: Any, like: Any) -> Any:
    """What was restored as it is in ``like``: keys are keys, and on the same devices.

    Also committed to them or not: jit refuses arrays that are committed to different devices, and
    moves those that are not, as a fresh run's counters, to where the others are.
    """

    def leaf(wanted, array):
        if array is None:
            return wanted
        if not wanted.committed:
            array = jnp.array(np.asarray(array))
        if _is_key(wanted):
            array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(wanted))
        return jax.device_put(array, wanted.sharding) if wanted.committed else array

    return jax.tree.map(leaf, like, restored)


def describe(tree: Any) -> list[dict[str, Any]]:
    """For each array its name, shape and dtype, as JSON."""
    return [
        {
            "name": jax.tree_util.keystr(path, simple=True, separator="/"),
            "shape": list(array.shape),
            "dtype": str(array.dtype),
        }
        for path, array in jax.tree_util.tree_leaves_with_path(tree)
    ]


def first_difference(stored: list[dict], wanted: list[dict]) -> tuple[str, str, str] | None:
    """The name of the first array that differs in shape or dtype, and what is stored and wanted."""
    olds, news = ({about["name"]: _kind(about) for about in each} for each in (stored, wanted))
    for name in [*news, *olds]:
        old, new = olds.get(name, "nothing"), news.get(name, "nothing")
        if old != new:
            return name, old, new
    return None


def _kind(about: dict) -> str:
    return f"{about['dtype']} of shape {tuple(about['shape'])}"


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
