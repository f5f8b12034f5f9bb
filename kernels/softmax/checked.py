"""Errors for what only the values tell: labels out of range and NaN under ``jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax.experimental import checkify


def checked(loss: Callable[..., Any]) -> Callable[..., tuple[checkify.Error, Any]]:
    """``loss`` with its labels and hidden states checked at run time.

    Args:
      loss: a loss of this package that takes ``(hidden, weight, bias, labels, ...)``.

    Returns:
      A function of the same arguments that may be jitted and returns ``(error, result)``;
      ``error.throw()`` raises ``jax.experimental.checkify.JaxRuntimeError`` if a label is out of
      range (and is not ``ignore_index``) or a hidden state is not finite.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import linear_softmax_cross_entropy
      >>> loss = jax.jit(checked(linear_softmax_cross_entropy))
      >>> error, _ = loss(jnp.ones((1, 4)), jnp.ones((10, 4)), None, jnp.array([10]))
      >>> error.get().splitlines()[0]
      'labels must lie in [0, 10), got 10 (`check` failed)'
    """

    def checking(hidden, weight, bias, labels, *args, **options):
        vocab = weight.shape[0]
        wrong = (labels < 0) | (labels >= vocab)
        if options.get("ignore_index") is not None:
            wrong &= labels != options["ignore_index"]
        worst = labels.reshape(-1)[jnp.argmax(wrong.reshape(-1))]
        checkify.check(~wrong.any(), f"labels must lie in [0, {vocab}), got {{}}", worst)
        checkify.check(jnp.isfinite(hidden).all(), "hidden must be finite, got NaN or infinity")
        return loss(hidden, weight, bias, labels, *args, **options)

    return checkify.checkify(checking, errors=checkify.user_checks)
