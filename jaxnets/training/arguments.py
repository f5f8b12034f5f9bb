"""What ``fit`` is given, checked at its door."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def check_functions(model, loss, gradients, optimizer, evaluate, key) -> None:
    """Raises for what is not a module, an optimizer, a key, or a function of the right arguments.

    Raises:
      TypeError: so it is.
      ValueError: not exactly one of ``loss`` and ``gradients``.
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a flax.nnx module, got {_name(model)}")
    if (loss is None) == (gradients is None):
        raise ValueError("give either loss or gradients, got " + ("neither", "both")[bool(loss)])
    if loss is not None:
        _check_call("loss", loss, "model", "batch", "key")
    if gradients is not None:
        _check_call("gradients", gradients, "model", "batch", "key")
    if evaluate is not None:
        _check_call("evaluate", evaluate, "model")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax transformation, as optax.adam(1e-3), got "
            f"{_name(optimizer)}"
        )
    _check_key(key)


def check_options(compute_dtype, clip_norm, mode, monitor, patience, evaluate) -> None:
    """Raises ``ValueError`` for an option that is out of range or lacks another."""
    if compute_dtype is not None and jnp.dtype(compute_dtype) != jnp.bfloat16:
        raise ValueError(f"compute_dtype must be None or bfloat16, got {compute_dtype}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm must be above 0, got {clip_norm}")
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    if monitor is not None and evaluate is None:
        raise ValueError(f"evaluate must be given to monitor {monitor!r}")
    if patience is not None and (monitor is None or patience < 1):
        raise ValueError(f"patience must be at least 1 and needs monitor, got {patience}")


def batches_by_number(batch_at: Any, steps: int) -> Callable[[int], Any]:
    """``batch_at`` as a function: it may also be what is indexed by the number, as a list.

    Raises:
      TypeError: it is neither.
      ValueError: it is shorter than ``steps``.
    """
    if callable(batch_at):
        _check_call("batch_at", batch_at, "step")
        return batch_at
    if isinstance(batch_at, Mapping | str | bytes) or not hasattr(batch_at, "__getitem__"):
        raise TypeError(
            "batch_at must be a function of the step, or have a batch for each as a list or a "
            f"BatchSource has, got {_name(batch_at)}; an iterator could not be resumed"
        )
    if hasattr(batch_at, "__len__") and len(batch_at) < steps:
        raise ValueError(
            f"batch_at must have a batch for each of {steps} steps, got {len(batch_at)}: give it "
            "more epochs, or ask for fewer steps"
        )
    return batch_at.__getitem__


def loss_and_metrics(returned: Any, whose: str, own: tuple[str, ...]) -> tuple[jax.Array, dict]:
    """What ``loss`` returned: the loss in float32, and its metrics, none if it gave only the loss.

    Raises:
      TypeError: it is not a loss, or a pair of loss and metrics.
      ValueError: it is not a scalar, or a metric has one of the names in ``own``.
    """
    what = f"{whose} must return the loss, or (loss, metrics)"
    result, metrics = returned, {}
    if isinstance(returned, tuple | list):
        if len(returned) != 2:
            raise TypeError(f"{what}, got {len(returned)} values")
        result, metrics = returned
    shape, dtype = _shape_and_dtype(result, f"{what}; the loss is")
    if shape:
        raise ValueError(f"{what}; the loss must be a scalar, got shape {shape}: take its mean")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"{what}; the loss must be floating point, got {dtype}")
    return jnp.asarray(result).astype(jnp.float32), check_metrics(metrics, whose, own)


def check_metrics(metrics: Any, whose: str, own: tuple[str, ...]) -> dict[str, Any]:
    """``metrics`` as a dict.

    Args:
      metrics: what ``whose`` returned; a mapping of names to real scalars.
      whose: for the messages.
      own: names that are taken.

    Raises:
      TypeError: it is no such mapping.
      ValueError: a metric is not a scalar, or its name is taken.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(f"{whose} must return metrics as a mapping of names, got {_name(metrics)}")
    for name, value in metrics.items():
        if not isinstance(name, str):
            raise TypeError(f"{whose} must return metrics by names, got the name {name!r}")
        if name in own:
            raise ValueError(f"{whose} must not call a metric {name!r}: the run has one of its own")
        shape, dtype = _shape_and_dtype(value, f"{whose} must return scalars; {name!r} is")
        if shape:
            raise ValueError(f"{whose} must return scalars; {name!r} has shape {shape}")
        if jnp.issubdtype(dtype, jnp.complexfloating):
            raise TypeError(f"{whose} must return real metrics; {name!r} is {dtype}")
    return dict(metrics)


def _shape_and_dtype(value: Any, what: str) -> tuple[tuple[int, ...], Any]:
    try:
        if value is not None:  # NumPy's default dtype
            return np.shape(value), jnp.result_type(value)
    except (TypeError, ValueError):
        pass
    raise TypeError(f"{what} {_name(value)}")


def _check_call(name: str, function: Any, *arguments: str) -> None:
    wanted = f"{name} must be a function of ({', '.join(arguments)})"
    if not callable(function):
        raise TypeError(f"{wanted}, got {_name(function)}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some of C's have none
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"{wanted}, got one of {signature}: {error}") from None


def _check_key(key: Any) -> None:
    wanted = "key must be a random key, as jax.random.key(0)"
    if not isinstance(key, jax.Array | np.ndarray):
        raise TypeError(f"{wanted}, got {_name(key)}")
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        axes = key.ndim
    elif key.dtype == jnp.uint32:
        axes = key.ndim - 1  # of the older kind
    else:
        raise TypeError(f"{wanted}, got an array of {key.dtype}")
    if axes:
        raise ValueError(f"{wanted}, got an array of shape {key.shape}")


def _name(value: Any) -> str:
    if isinstance(value, int | float | str | bytes) or value is None:
        return f"{type(value).__name__} {value!r}" if value is not None else "None"
    return value.__name__ if inspect.isroutine(value) else type(value).__name__
