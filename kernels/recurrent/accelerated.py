"""From batch-first arrays and marks to what the GPU and TPU kernels take, and back."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.recurrent import cudnn
from jaxnets.kernels.recurrent.pallas import pad_units, padded_hidden, persistent_lstm
from jaxnets.kernels.recurrent.parameters import LSTMParameters
from jaxnets.kernels.recurrent.xla_chunk import times
from jaxnets.kernels.recurrent.xla_scan import Marks


def accelerated_lstm(
    implementation: str,
    target: Target,
    parameters: LSTMParameters,
    inputs: jax.Array,
    carry: tuple[jax.Array, jax.Array],
    marks: Marks,
    *,
    reverse: bool,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Outputs [batch, time, hidden] and the last ``c``, ``h``, by "pallas" or "cudnn"."""
    c, h = carry
    batch, time = inputs.shape[:2]
    lengths, resets = marks.lengths, marks.resets
    if lengths is not None:  # padding may hold anything
        valid = jnp.arange(time, dtype=jnp.int32)[None] < lengths[:, None]
        inputs = jnp.where(valid[:, :, None], inputs, 0)
    if reverse:
        inputs = flip(inputs, lengths)
        resets = None if resets is None else flip(resets, lengths)
    full = jnp.full(batch, time, jnp.int32) if lengths is None else lengths
    if implementation == "cudnn":
        kernels = parameters.input_kernel, parameters.recurrent_kernel, parameters.bias
        outputs, c, h = cudnn.cudnn_lstm(inputs, c, h, *kernels, full)
    else:
        outputs, c, h = _persistent(target, parameters, inputs, c, h, full, resets, marks)
    return flip(outputs, lengths) if reverse else outputs, (c, h)


def _persistent(
    target: Target,
    parameters: LSTMParameters,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    lengths: jax.Array,
    resets: jax.Array | None,
    marks: Marks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    hidden = h.shape[1]
    padded = padded_hidden(target.platform, hidden)

    def pad(array, *axes):
        for axis in axes:
            array = pad_units(array, axis, hidden, padded)
        return array

    steps_first = jnp.swapaxes(inputs, 0, 1)
    x_gates = times(steps_first, pad(parameters.input_kernel, 1))
    x_gates = (x_gates + pad(parameters.bias, 0).astype(jnp.float32)[None, None]).astype(
        inputs.dtype
    )
    outputs, c, h = persistent_lstm(
        target, x_gates, pad(parameters.recurrent_kernel, 0, 1), pad(c, 1), pad(h, 1), lengths,
        None if resets is None else 1 - resets.T.astype(jnp.float32),
        None if marks.recurrent_mask is None else pad(marks.recurrent_mask, 1),
    )  # fmt: skip
    return jnp.swapaxes(outputs, 0, 1)[:, :, :hidden], c[:, :hidden], h[:, :hidden]


def flip(array: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """``array [batch, time, ...]`` backwards within each row's length; its own inverse."""
    if lengths is None:
        return array[:, ::-1]
    steps = jnp.arange(array.shape[1], dtype=jnp.int32)[None]
    index = jnp.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)
    index = index.reshape(*index.shape, *(1 for _ in array.shape[2:]))
    return jnp.take_along_axis(array, index, axis=1)
