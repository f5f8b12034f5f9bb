"""Checks of what the recurrent layers are given, at trace time and in one place."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.checks import as_floats, as_int, as_integers, check_range, is_known
from jaxnets.kernels.recurrent.padding import Given
from jaxnets.kernels.recurrent.parameters import GRUParameters, LSTMParameters

P = ParamSpec("P")
R = TypeVar("R")

# What other libraries call an argument of ours.
_OTHER_NAMES = {
    "seq_lengths": "lengths", "sequence_length": "lengths", "sequence_lengths": "lengths",
    "seq_lens": "lengths", "initial_state": "carry", "initial_carry": "carry", "hx": "carry",
    "go_backwards": "reverse", "batch_first": "time_first", "time_major": "time_first",
    "zero_output_for_mask": "masked_outputs",
}  # fmt: skip


def names_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, with an error of its own for an unknown argument: it names the likely one."""
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                near = [_OTHER_NAMES[name]] if name in _OTHER_NAMES else near
                hint = f"; did you mean {near[0]}?" if near else ""
                raise TypeError(f"{function.__name__} has no argument {name!r}{hint}")
        return function(*args, **kwargs)

    return named


def check_inputs(
    inputs: Any, features: int, *, time_first: bool = False, batched: bool = True
) -> tuple[tuple[int, ...], int]:
    """Their batch, (batch,) or () for one sequence, and their time.

    Raises:
      TypeError: they are no array of floats.
      ValueError: they have not the axes that the options say, or not ``features``.
    """
    dtype = getattr(inputs, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"inputs must be floating point, got {dtype or type(inputs).__name__}")
    axes = "[batch, time, features]"
    if not batched:
        axes = "[time, features] with batched=False"
    elif time_first:
        axes = "[time, batch, features] with time_first=True"
    if inputs.ndim != (3 if batched else 2):
        hint = ""
        if batched and inputs.ndim == 2:
            hint = "; for one sequence, [time, features], give batched=False"
        elif not batched and inputs.ndim == 3:
            hint = "; for a batch of sequences leave batched as it is, True"
        raise ValueError(f"inputs must be {axes}, got shape {inputs.shape}{hint}")
    if inputs.shape[-1] != features:
        hint = ""
        if axes == "[batch, time, features]" and inputs.shape[1] == features:
            hint = (
                "; they look like [batch, features, time]: give [batch, time, features], "
                "jnp.swapaxes(inputs, 1, 2)"
            )
        elif not batched and inputs.shape[0] == features:
            hint = "; they look like [features, time]: give inputs.T"
        raise ValueError(
            f"inputs must be {axes} with features = {features} as the layer "
            f"declares, got shape {inputs.shape}{hint}"
        )
    if not features:
        raise ValueError(f"inputs must not be empty in features, got shape {inputs.shape}")
    if not batched:
        return (), inputs.shape[0]
    batch, time = inputs.shape[1::-1] if time_first else inputs.shape[:2]
    return (batch,), time


def _check_shape(name: str, array: Any, axes: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {axes} = {shape}, got shape {array.shape}")
    if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        raise TypeError(f"{name} must be floating point, got {jnp.result_type(array)}")


def _check_kernel(name: str, kernel: Any, blocks: int) -> None:
    if kernel.ndim != 2 or kernel.shape[1] % blocks or not kernel.shape[1]:
        raise ValueError(
            f"{name} must be [features, {blocks} * hidden], got shape {kernel.shape}"
            + ("; it looks transposed" if kernel.ndim == 2 and not kernel.shape[0] % blocks else "")
        )


def check_lstm(parameters: LSTMParameters) -> tuple[int, int]:
    """Raise unless the shapes fit; returns ``hidden, output``."""
    _check_kernel("input_kernel", parameters.input_kernel, 4)
    gates = parameters.input_kernel.shape[1]
    hidden = output = gates // 4
    if parameters.projection is not None:
        output = parameters.projection.shape[-1]
        shape = (hidden, output)
        _check_shape("projection", parameters.projection, "[hidden, output]", shape)
    _check_shape(
        "recurrent_kernel", parameters.recurrent_kernel, "[output, 4 * hidden]", (output, gates)
    )
    _check_shape("bias", parameters.bias, "[4 * hidden]", (gates,))
    if parameters.peepholes is not None:
        _check_shape("peepholes", parameters.peepholes, "[3, hidden]", (3, hidden))
    if parameters.layer_norm is not None:
        if parameters.peepholes is not None:
            raise ValueError("peepholes and layer_norm must not both be given: no paper defines it")
        shapes = ((gates,), (gates,), (hidden,), (hidden,))
        for name, wanted in zip(parameters.layer_norm._fields, shapes, strict=True):
            array = getattr(parameters.layer_norm, name)
            _check_shape(f"layer_norm.{name}", array, "[gates or hidden]", wanted)
    return hidden, output


def check_gru(parameters: GRUParameters) -> int:
    """Raise unless the shapes fit; returns ``hidden``."""
    _check_kernel("input_kernel", parameters.input_kernel, 3)
    gates = parameters.input_kernel.shape[1]
    shape = (gates // 3, gates)
    _check_shape("recurrent_kernel", parameters.recurrent_kernel, "[hidden, 3 * hidden]", shape)
    _check_shape("bias", parameters.bias, "[3 * hidden]", (gates,))
    _check_shape("recurrent_bias", parameters.recurrent_bias, "[3 * hidden]", (gates,))
    return gates // 3


def lstm_carry(
    carry: Any, batch: tuple[int, ...], hidden: int, output: int
) -> tuple[jax.Array, jax.Array] | None:
    """``(c, h)`` as two arrays, or None; ``batch`` is (batch,), or () for one sequence."""
    if carry is None:
        return None
    if not isinstance(carry, tuple | list) or len(carry) != 2:
        raise TypeError(
            f"carry must be a pair (c, h) for lstm, or None, got {_kind(carry)}"
            + ("; one array alone is what gru takes" if hasattr(carry, "shape") else "")
        )
    c, h = (as_floats(f"carry[{n}]", array) for n, array in enumerate(carry))
    axes = "batch, " if batch else ""
    _check_shape("carry[0]", c, f"[{axes}hidden]", (*batch, hidden))
    _check_shape("carry[1]", h, f"[{axes}output]", (*batch, output))
    return c, h


def gru_carry(carry: Any, batch: tuple[int, ...], hidden: int) -> jax.Array | None:
    """``h`` as an array, or None; ``batch`` as in :func:`lstm_carry`."""
    if carry is None:
        return None
    if isinstance(carry, tuple | list):
        raise TypeError(
            f"carry must be one array h for gru, or None, got {_kind(carry)}"
            + ("; a pair (c, h) is what lstm takes" if len(carry) == 2 else "")
        )
    h = as_floats("carry", carry)
    _check_shape("carry", h, "[batch, hidden]" if batch else "[hidden]", (*batch, hidden))
    return h


def _kind(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"an array of shape {value.shape}"
    size = f" of {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{size}"


def as_given(
    lengths: Any,
    segment_ids: Any,
    mask: Any,
    batch: tuple[int, ...],
    time: int,
    *,
    time_first: bool,
) -> Given:
    """The padding as arrays, of which there is one at most; ``batch`` as in :func:`lstm_carry`.

    Raises:
      TypeError: of another dtype than the argument's.
      ValueError: two of them, a wrong shape, or values that are known and out of range.
    """
    given = {"lengths": lengths, "segment_ids": segment_ids, "mask": mask}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        why = {
            "segment_ids": "segment_ids, which mark padding by 0",
            "mask": "mask, which marks padding by False",
        }
        raise ValueError(f"{names[0]} must be left out with {why[names[1]]}")
    steps, axes = (*batch, time), ("[batch, time]" if batch else "[time]")
    if batch and time_first:
        steps, axes = steps[::-1], "[time, batch]"
    if lengths is not None:
        lengths = as_integers("lengths", lengths)
        _check_axes("lengths", lengths, "[batch]" if batch else "[]", batch, (time,))
        check_range("lengths", lengths, 0, time + 1, "[0, time]")
    if segment_ids is not None:
        segment_ids = as_integers("segment_ids", segment_ids)
        _check_axes("segment_ids", segment_ids, axes, steps, steps[::-1])
    if mask is not None:
        mask = _as_mask(mask)
        _check_axes("mask", mask, axes, steps, steps[::-1])
    return Given(lengths, segment_ids, mask)


def _as_mask(mask: Any) -> jax.Array:
    array = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if not (jnp.issubdtype(array.dtype, jnp.number) or array.dtype == bool):
        raise TypeError(f"mask must be booleans, got dtype {array.dtype}")
    if array.dtype != bool and is_known(array):
        values = np.asarray(array)
        wrong = values[(values != 0) & (values != 1)]
        if wrong.size:
            raise ValueError(f"mask must hold booleans, or 0 and 1, got {wrong.flat[0]}")
    return jnp.asarray(array)


def _check_axes(
    name: str, array: Any, axes: str, shape: tuple[int, ...], transposed: tuple[int, ...]
) -> None:
    """Raise unless ``array`` has ``shape``; ``transposed`` is that of the other order of axes."""
    if array.shape == shape:
        return
    hint = ""
    if len(shape) and array.shape == transposed:
        hint = "; time first, with inputs [time, batch, features], is time_first=True"
    raise ValueError(f"{name} must be {axes} = {shape}, got shape {array.shape}{hint}")


def check_options(
    recurrent_dropout: float, key: Any, truncate_steps: Any, chunk_size: Any, masked_outputs: str
) -> tuple[int | None, int | None]:
    """``truncate_steps, chunk_size``; raises unless the options are in range and fit together."""
    if not 0 <= recurrent_dropout < 1:
        raise ValueError(f"recurrent_dropout must lie in [0, 1), got {recurrent_dropout}")
    if recurrent_dropout and key is None:
        raise ValueError("key must be given with recurrent_dropout, got None")
    if masked_outputs not in ("zero", "repeat"):
        raise ValueError(f"masked_outputs must be 'zero' or 'repeat', got {masked_outputs!r}")
    truncate_steps, chunk_size = (
        None if steps is None else as_int(name, steps)
        for name, steps in (("truncate_steps", truncate_steps), ("chunk_size", chunk_size))
    )
    for name, steps in (("truncate_steps", truncate_steps), ("chunk_size", chunk_size)):
        if steps is not None and steps < 1:
            raise ValueError(f"{name} must be at least 1 step, got {steps}")
    if truncate_steps is not None and chunk_size is not None:
        raise ValueError(
            "chunk_size must be left out with truncate_steps, whose windows are the chunks"
        )
    return truncate_steps, chunk_size
