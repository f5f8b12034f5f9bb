"""Checks of what the recurrent layers are given, at trace time and in one place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels.lstm.parameters import GRUParameters, LSTMParameters


def check_inputs(inputs, features: int) -> None:
    """Raise unless ``inputs`` are [batch, time, features] of floats, not empty."""
    if not jnp.issubdtype(jnp.result_type(inputs), jnp.floating):
        raise TypeError(f"inputs must be floating point, got {jnp.result_type(inputs)}")
    if inputs.ndim != 3:
        raise ValueError(f"inputs must be [batch, time, features], got shape {inputs.shape}")
    if inputs.shape[2] != features:
        hint = ""
        if inputs.shape[1] == features:
            hint = (
                "; they look like [batch, features, time]: give [batch, time, features], "
                "jnp.swapaxes(inputs, 1, 2)"
            )
        raise ValueError(
            f"inputs must be [batch, time, features] with features = {features} as the layer "
            f"declares, got shape {inputs.shape}{hint}"
        )
    if 0 in inputs.shape:
        raise ValueError(f"inputs must not be empty, got shape {inputs.shape}")


def _check_shape(name: str, array, axes: str, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} must be {axes} = {shape}, got shape {array.shape}")
    if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        raise TypeError(f"{name} must be floating point, got {jnp.result_type(array)}")


def _check_kernel(name: str, kernel, blocks: int) -> None:
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


def check_carry(name: str, carry, shape: tuple[int, int]) -> None:
    """Raise unless ``carry`` is [batch, hidden] of floats."""
    _check_shape(name, carry, "[batch, hidden]", shape)


def check_lengths(lengths, batch: int, time: int) -> None:
    """Raise unless ``lengths`` are one integer a row, in [0, time] where their values are known."""
    _check_integers("lengths", lengths, "[batch]", (batch,))
    if isinstance(lengths, jax.core.Tracer):
        return
    values = np.asarray(lengths)
    wrong = (values < 0) | (values > time)
    if wrong.any():
        raise ValueError(f"lengths must lie in [0, time] = [0, {time}], got {values[wrong][0]}")


def check_segment_ids(segment_ids, batch: int, time: int) -> None:
    """Raise unless ``segment_ids`` are integers [batch, time], 0 (padding) only at a row's end."""
    _check_integers("segment_ids", segment_ids, "[batch, time]", (batch, time))
    if isinstance(segment_ids, jax.core.Tracer):
        return
    padding = np.asarray(segment_ids) == 0
    if (padding[:, :-1] & ~padding[:, 1:]).any():
        raise ValueError(
            "segment_ids must be 0 (padding) only at the end of a row, got a 0 before another id"
        )


def _check_integers(name: str, array, axes: str, shape: tuple[int, ...]) -> None:
    if not jnp.issubdtype(jnp.result_type(array), jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {jnp.result_type(array)}")
    if array.shape != shape:
        raise ValueError(f"{name} must be {axes} = {shape}, got shape {array.shape}")


def check_options(recurrent_dropout, key, truncate, chunk) -> None:
    """Raise unless the options of a recurrent layer are in range and fit together."""
    if not 0 <= recurrent_dropout < 1:
        raise ValueError(f"recurrent_dropout must lie in [0, 1), got {recurrent_dropout}")
    if recurrent_dropout and key is None:
        raise ValueError("key must be given with recurrent_dropout, got None")
    for name, steps in (("truncate", truncate), ("chunk", chunk)):
        if steps is not None and steps < 1:
            raise ValueError(f"{name} must be at least 1 step, got {steps}")
    if truncate is not None and chunk is not None:
        raise ValueError("chunk must be left out with truncate, whose windows are the chunks")
