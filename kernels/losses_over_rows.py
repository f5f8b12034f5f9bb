"""Losses on ``Explicit`` meshes: each device's own tokens, and one mean over all of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp

from jaxnets.kernels import meshes
from jaxnets.kernels.losses import LossAndLogSumExp, kept_weights
from jaxnets.kernels.numerics import accumulator_dtype
from jaxnets.kernels.samplers.samples import Samples


def losses_over_rows(**axes: Any) -> Callable:
    """:func:`jaxnets.kernels.meshes.over_rows` for a loss with ``reduction`` and ``token_weights``.

    A mean by weight over all devices is the sum by weights that add up to 1.
    """

    def decorate(function):
        signature = inspect.signature(function)
        run = meshes.over_rows(results=_results, **axes)(function)

        @wraps(function)
        def on_any_mesh(*args):
            given = signature.bind(*args).arguments
            explicit = not meshes.is_split(given) and meshes.explicit_mesh([given[n] for n in axes])
            if given["reduction"] == "mean" and explicit:
                given |= {"reduction": "sum", "token_weights": _shares(**given)}
            return run(*given.values())

        return on_any_mesh

    return decorate


def _results(given: dict[str, Any]) -> Any:
    """The axis of the batch in the loss, and in the log-sum-exp where it is returned."""
    loss = 0 if given["reduction"] == "none" else meshes.SUM
    both: Any = loss, 0
    return LossAndLogSumExp(*both) if given.get("return_log_sum_exp") else loss


def _shares(
    hidden: jax.Array,
    weight: jax.Array,
    labels: jax.Array,
    token_weights: jax.Array | None,
    ignore_index: int | None = None,
    label_weights: jax.Array | None = None,
    **_: Any,
) -> jax.Array:
    """Of each token in the mean, [...]."""
    batch, dtype = hidden.shape[:-1], accumulator_dtype(hidden, weight)
    kept = kept_weights(labels, token_weights, ignore_index, batch, dtype, label_weights)
    kept = jnp.ones(batch, dtype) if kept is None else kept
    total = kept.sum()
    return kept / jnp.where(total == 0, jnp.ones((), dtype), total)


def samples_rows(given: dict[str, Any]) -> Any:
    """Which axes of ``samples`` are the batch's: of ids, where each token has its own."""
    own = 0 if given["samples"].ids.ndim > 1 else meshes.WHOLE
    tries = 0 if given["samples"].tries.ndim else meshes.WHOLE
    places: Any = own, own, 0, tries
    return Samples(*places)
