"""Losses on ``Explicit`` meshes: each device's own tokens, and one mean over all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels import meshes
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.samplers.samples import Samples


def losses_over_rows(**axes: Any) -> Callable:
    """:func:`jaxnets.kernels.meshes.over_rows` for a loss with ``reduction`` and ``weights``.

    A mean by weight over all devices is the sum by weights that add up to 1.
    """

    def decorate(function):
        signature, run = inspect.signature(function), meshes.over_rows(**axes)(function)

        @wraps(function)
        def on_any_mesh(*args):
            given = signature.bind(*args).arguments
            if given["reduction"] == "mean" and meshes.explicit_mesh([given[n] for n in axes]):
                given |= {"reduction": "sum", "weights": _shares(**given)}
            return run(*given.values())

        return on_any_mesh

    return decorate


def _shares(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None,
    ignore_index: int | None = None,
    **_: Any,
) -> jax.Array:
    """Of each token in the mean, [...]."""
    batch, dtype = hidden.shape[:-1], accumulator_dtype(hidden, weight)
    weights = jnp.ones(batch, dtype) if weights is None else weights.astype(dtype)
    if ignore_index is not None:
        present = labels != ignore_index
        present = present.any(-1) if labels.ndim > len(batch) else present
        weights = jnp.where(present, weights, jnp.zeros((), dtype))
    total = weights.sum()
    return weights / jnp.where(total == 0, jnp.ones((), dtype), total)


def samples_rows(given: dict[str, Any]) -> Any:
    """Which axes of ``samples`` are the batch's: of ids, where each token has its own."""
    own = 0 if given["samples"].ids.ndim > 1 else meshes.WHOLE
    tries = 0 if given["samples"].tries.ndim else meshes.WHOLE
    places: Any = own, own, 0, tries
    return Samples(*places)
