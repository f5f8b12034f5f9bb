"""Errors for what only the values tell: labels out of range and NaN under ``jit``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify

from jaxnets.kernels import meshes
from jaxnets.kernels.checks import as_floats, as_int, as_integers, in_range
from jaxnets.kernels.linear_softmax.class_weights import weights_by_class
from jaxnets.kernels.losses import check_ignore_index, check_weights, vocab_size_of
from jaxnets.kernels.vocab_sharding import as_sharding

_ARGUMENTS = ("hidden", "weight", "labels")


def checked_loss(loss: Callable[..., Any]) -> Callable[..., tuple[checkify.Error, Any]]:
    """``loss`` with its labels and hidden states checked at run time.

    Args:
      loss: a loss of this package that takes ``(hidden, weight, labels, ...)``. They may be given
        by name.

    Returns:
      A function of the same arguments that may be jitted and returns ``(error, result)``;
      ``error.throw()`` raises ``jax.experimental.checkify.JaxRuntimeError`` if a label is out of
      range or a hidden state is not finite. A token that is left out, by ``ignore_index`` or by
      weight 0, may have any. Outside ``jit`` a bad label is the loss's own ``ValueError``.

    Raises:
      TypeError: when called, if there are no ``hidden``, ``weight`` and ``labels``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import linear_softmax_cross_entropy
      >>> loss = jax.jit(checked_loss(linear_softmax_cross_entropy))
      >>> error, _ = loss(jnp.ones((1, 4)), jnp.ones((10, 4)), jnp.array([10]))
      >>> error.get().splitlines()[0]
      'labels must lie in [0, 10), got 10 (`check` failed)'

      A sharding is not an array: close over it to jit.

      >>> from functools import partial
      >>> from jaxnets.kernels import VocabSharding
      >>> sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
      >>> split = partial(linear_softmax_cross_entropy, sharding=sharding)
      >>> loss = jax.jit(checked_loss(split))
      >>> error, _ = loss(jnp.ones((1, 4)), jnp.ones((10, 4)), jnp.array([3]))
      >>> error.throw()
    """

    def checking(*args, **options):
        # The loss is left as it is: JAX can't collect checks out of a sharded one.
        error = _check(_by_name(loss, args, options))
        return error, loss(*args, **options)

    return checking


def _by_name(loss: Callable, args: tuple, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, by the names of ``loss`` or, if it has none, by the usual order."""
    try:
        bound = inspect.signature(loss).bind_partial(*args, **options)
        bound.apply_defaults()
        given = dict(bound.arguments)
    except (TypeError, ValueError):  # bad arguments are for the loss to refuse; no signature
        given = {}
    if "hidden" not in given:  # a wrapper's (*args, **options)
        given = {**dict(zip(_ARGUMENTS, args, strict=False)), **options}
    if missing := {"hidden", "weight", "labels"} - given.keys():
        raise TypeError(
            "checked_loss takes a loss of (hidden, weight, labels, ...), and its call must give "
            f"them; missing here: {', '.join(sorted(missing))}"
        )
    return given


def _check(given: dict[str, Any]) -> checkify.Error:
    hidden = as_floats("hidden", given["hidden"])
    labels = as_integers("labels", given["labels"], "integer class ids")
    if labels.shape != hidden.shape[:-1] and labels.shape[:-1] != hidden.shape[:-1]:
        return checkify.checkify(lambda: None)()[0]  # the loss refuses them
    token_weights = check_weights(given.get("token_weights"), hidden.shape[:-1])
    ignore_index = check_ignore_index(given.get("ignore_index"))
    vocab_size = vocab_size_of(given["weight"], bool(given.get("features_first")))
    if given.get("num_classes") is not None:
        vocab_size = as_int("num_classes", given["num_classes"])
    if given.get("class_weights") is not None:
        class_weights = check_weights(
            given["class_weights"], (vocab_size,), "class_weights", "class"
        )
        sharding = as_sharding(given.get("sharding"))
        token_weights = weights_by_class(sharding, hidden, labels, class_weights, token_weights)
    label_weights = given.get("label_weights")
    if label_weights is not None:
        label_weights = check_weights(label_weights, labels.shape, "label_weights", "label")
    return _error(vocab_size, ignore_index, hidden, labels, token_weights, label_weights)


@partial(jax.jit, static_argnums=(0, 1))  # outside of it checkify knows no mesh
def _error(vocab_size: int, ignore_index: int | None, *arrays: Any) -> checkify.Error:
    check = checkify.checkify(
        partial(_check_values, vocab_size, ignore_index), checkify.user_checks
    )
    return check(*meshes.replicated(arrays))[0]


def _check_values(
    vocab_size: int,
    ignore_index: int | None,
    hidden: jax.Array,
    labels: jax.Array,
    token_weights: jax.Array | None,
    label_weights: jax.Array | None,
) -> None:
    several = labels.ndim == hidden.ndim
    left_out = jnp.zeros(labels.shape, bool)
    if ignore_index is not None:
        left_out = labels == ignore_index
    if token_weights is not None:
        left_out |= (token_weights == 0)[..., None] if several else token_weights == 0
    if label_weights is not None:
        left_out |= label_weights == 0
    wrong = ~in_range(labels, vocab_size) & ~left_out
    if labels.size:
        worst = jnp.where(wrong, labels, jnp.iinfo(jnp.int32).min).max()
        checkify.check(~wrong.any(), f"labels must lie in [0, {vocab_size}), got {{}}", worst)
    unused = left_out.all(-1) if several else left_out
    finite = jnp.isfinite(hidden).all(-1) | unused
    checkify.check(finite.all(), "hidden must be finite, got NaN or infinity")
