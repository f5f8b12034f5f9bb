"""Whether a run's state is still numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


class Finite:
    """Knows what ``state`` held at the start, and finds what has become NaN or infinite since.

    An array may hold what it held at the start (a bias of -inf keeps a class out), and the
    optimizer any infinity (the best value so far begins with one).
    """

    def __init__(self, state: Any):
        self._start = jax.device_get(_kinds(state))

    def check(self, state: Any, step: int) -> None:
        """Raises ``FloatingPointError``, which names the array, if one is no longer."""
        now = jax.device_get(_kinds(state))
        was = jax.tree.leaves(self._start)
        for (path, kinds), before in zip(
            jax.tree_util.tree_leaves_with_path(now), was, strict=True
        ):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            new = kinds & ~before
            if name.startswith("optimizer"):
                new &= np.array([True, False])
            if new.any():
                what = "NaN" if new[0] else "infinite"
                raise FloatingPointError(f"{name} has become {what} before step {step}")


@jax.jit
def _kinds(tree: Any) -> Any:
    """For each array whether it holds NaN and whether infinity, [2]."""

    def leaf(array):
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return jnp.zeros(2, bool)
        return jnp.stack([jnp.isnan(array).any(), jnp.isinf(array).any()])

    return jax.tree.map(leaf, tree)
