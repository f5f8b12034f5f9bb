"""Errors for what only the values tell: labels out of range and NaN under ``jit``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import checkify

from jaxnets.kernels.checks import as_floats, as_integers


def checked(loss: Callable[..., Any]) -> Callable[..., tuple[checkify.Error, Any]]:
    """``loss`` with its labels and hidden states checked at run time.

    Args:
      loss: a loss of this package that takes ``hidden``, ``weight`` and ``labels``, by place or by
        name; one that is split over devices, with its ``sharding``, too.

    Returns:
      A function of the same arguments that may be jitted and returns ``(error, result)``;
      ``error.throw()`` raises ``jax.experimental.checkify.JaxRuntimeError`` if a label is out of
      range or a hidden state is not finite. Tokens of weight 0 or with ``ignore_index`` may hold
      anything.

    Raises:
      TypeError: ``loss`` does not take those arguments.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import linear_softmax_cross_entropy
      >>> loss = jax.jit(checked(linear_softmax_cross_entropy))
      >>> error, _ = loss(jnp.ones((1, 4)), jnp.ones((10, 4)), None, jnp.array([10]))
      >>> error.get().splitlines()[0]
      'labels must lie in [0, 10), got 10 (`check` failed)'
    """
    signature = _signature(loss)

    def checking(*args, **options):
        given = signature.bind(*args, **options).arguments
        given = given | given.pop("options", {})
        hidden, labels = as_floats("hidden", given["hidden"]), given["labels"]
        labels = as_integers("labels", labels, "integer class ids")
        vocab = given["weight"].shape[0]
        counts = jnp.ones(hidden.shape[:-1], bool)
        if given.get("weights") is not None:
            counts = counts & (jnp.asarray(given["weights"]) != 0)
        several = labels.ndim - counts.ndim
        counts_label = jnp.expand_dims(counts, range(counts.ndim, counts.ndim + several))
        if given.get("ignore_index") is not None:
            counts_label = counts_label & (labels != given["ignore_index"])
            counts = counts & counts_label.any(tuple(range(counts.ndim, labels.ndim)))
        wrong = ((labels < 0) | (labels >= vocab)) & counts_label
        if labels.size:
            worst = labels.reshape(-1)[jnp.argmax(wrong.reshape(-1))]
            checkify.check(~wrong.any(), f"labels must lie in [0, {vocab}), got {{}}", worst)
        finite = jnp.isfinite(hidden).all(-1) | ~counts
        checkify.check(finite.all(), "hidden must be finite, got NaN or infinity")
        return loss(*args, **options)

    return checkify.checkify(checking, errors=checkify.user_checks)


def _signature(loss: Callable[..., Any]) -> inspect.Signature:
    """The loss' own, or that of all of them where it passes on what it gets."""

    def passes_on(hidden, weight, bias=None, labels=None, *rest, **options):
        pass

    signature = inspect.signature(loss)
    names = set(signature.parameters)
    if {"hidden", "weight", "labels"} <= names:
        return signature
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return inspect.signature(passes_on)
    raise TypeError(f"loss must take hidden, weight and labels, got one that takes {sorted(names)}")
