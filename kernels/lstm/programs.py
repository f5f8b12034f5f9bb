"""The programs that :func:`lstm` and :func:`gru` are compiled to, by what is static of a call."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.kernels import dispatch
from jaxnets.kernels.lstm import cells, chunks, reference
from jaxnets.kernels.lstm.accelerated import accelerated_lstm
from jaxnets.kernels.lstm.padding import Given, padding_of, poisoned, put_back, to_front
from jaxnets.kernels.lstm.parameters import GRUParameters, LSTMParameters
from jaxnets.kernels.lstm.scan import Marks, Options, Weights, recur
from jaxnets.kernels.lstm.stages import row_counts


class Call(NamedTuple):
    """What is static of a call."""

    time_first: bool
    batched: bool
    repeat: bool  # h in the padding, not zeros
    reverse: bool
    recurrent_dropout: float
    recompute: bool | None
    truncate: int | None
    chunk: int | None
    implementation: str
    target: dispatch.Target | None  # of "pallas" and "cudnn"


@partial(jax.jit, static_argnums=0)
@jax.named_scope("lstm")
def run_lstm(call: Call, inputs, carry, parameters: LSTMParameters, given: Given, key):
    """Outputs and ``(c, h)``."""
    sizes = parameters.bias.shape[0] // 4, parameters.recurrent_kernel.shape[0]
    return _around(call, _lstm_steps, inputs, carry, sizes, parameters, given, key)


@partial(jax.jit, static_argnums=(0, 1))
@jax.named_scope("gru")
def run_gru(
    call: Call, reset_after: bool, inputs, carry, parameters: GRUParameters, given: Given, key
):
    """Outputs and ``h``."""
    size = parameters.recurrent_kernel.shape[0]
    steps = partial(_gru_steps, reset_after)
    return _around(call, steps, inputs, carry, size, parameters, given, key)


def _around(call: Call, steps, inputs, carry, sizes, parameters, given: Given, key):
    """What both do before and after ``steps(call, parameters, inputs, state, marks)``.

    ``sizes``: of each array of the carry, the last that of an output.
    """
    inputs, given = _turned(call, inputs), jax.tree.map(partial(_turned, call), given)
    if not call.batched:
        carry = jax.tree.map(lambda array: array[None], carry)
    dtype = common_dtype(inputs, parameters)
    copied = call.time_first or not call.batched or inputs.dtype != dtype
    accumulator = jnp.float64 if dtype == jnp.float64 else jnp.float32
    inputs, parameters = jax.tree.map(lambda array: array.astype(dtype), (inputs, parameters))
    batch, time = inputs.shape[:2]
    if carry is None:
        carry = jax.tree.map(lambda size: jnp.zeros((batch, size)), sizes)
    padding = padding_of(given, time, reverse=call.reverse)
    carry = jax.tree.map(lambda array: array.astype(accumulator), carry)
    carry = poisoned(carry, padding)
    first_h = jax.tree.leaves(carry)[-1]
    output = first_h.shape[1]
    if batch and time:
        dropped = _dropout_mask(call, key, (batch, output), accumulator)
        marks = Marks(padding.lengths, padding.resets, dropped)
        inputs = to_front(inputs, padding, copied=copied)
        outputs, carry = steps(call, parameters, inputs, carry, marks)
        outputs = put_back(outputs, first_h, padding, repeat=call.repeat, reverse=call.reverse)
    else:
        outputs = jnp.zeros((batch, time, output), dtype)
    if not call.batched:
        carry = jax.tree.map(lambda array: array[0], carry)
    return _turned_back(call, outputs), carry


def _turned(call: Call, array):
    """As [batch, time, ...], or lengths as [batch]."""
    if not call.batched:
        return array[None]
    return jnp.swapaxes(array, 0, 1) if call.time_first and array.ndim > 1 else array


def _turned_back(call: Call, outputs):
    if not call.batched:
        return outputs[0]
    return jnp.swapaxes(outputs, 0, 1) if call.time_first else outputs


def common_dtype(inputs, parameters) -> jnp.dtype:
    """Of inputs and kernels together, by JAX's rules, also where a mode forbids to mix types."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(inputs, *jax.tree.leaves(parameters))


def _dropout_mask(call: Call, key, shape, dtype):
    if not call.recurrent_dropout:
        return None
    kept = jax.random.bernoulli(key, jnp.float32(1 - call.recurrent_dropout), shape)
    return kept.astype(dtype) / (1 - call.recurrent_dropout)


def _lstm_steps(call: Call, parameters: LSTMParameters, inputs, carry, marks: Marks):
    if call.implementation == "reference":

        def step(x, state):
            c, h = reference.lstm_step(parameters, x, *state, marks.recurrent_mask)
            return (c, h), h

        return _reference(call, step, inputs, carry, marks)
    c, h = carry
    if call.target is not None:
        outputs, c, h = accelerated_lstm(
            call.implementation, call.target, parameters, inputs, c, h, marks,
            reverse=call.reverse,
        )  # fmt: skip
        return outputs, (c, h)
    weights = Weights(
        parameters.input_kernel, parameters.recurrent_kernel, parameters.bias, None,
        parameters.projection, parameters.peepholes,
    )  # fmt: skip
    cell = cells.LSTM if parameters.peepholes is None else cells.PEEPHOLE_LSTM
    if parameters.layer_norm is not None:
        cell = cells.LAYER_NORM_LSTM
        weights = weights._replace(bias=None, extra=(parameters.layer_norm, parameters.bias))
    outputs, c, h = _scan(call, cell, weights, inputs, c, h, marks)
    return outputs, (c, h)


def _gru_steps(reset_after: bool, call: Call, parameters: GRUParameters, inputs, h, marks: Marks):
    if call.implementation == "reference":

        def step(x, h):
            h = reference.gru_step(parameters, x, h, marks.recurrent_mask, reset_after)
            return h, h

        return _reference(call, step, inputs, h, marks)
    cell = cells.GRU if reset_after else cells.RESET_BEFORE_GRU
    weights = Weights(*parameters, None, None)
    outputs, _, h = _scan(call, cell, weights, inputs, h, h, marks)
    return outputs, h


def _reference(call: Call, step, inputs, state, marks: Marks):
    outputs, state = reference.unroll(
        step, inputs.astype(jax.tree.leaves(state)[0].dtype), state, lengths=marks.lengths,
        resets=marks.resets, reverse=call.reverse, truncate=call.truncate,
    )  # fmt: skip
    return outputs.astype(inputs.dtype), state


def _scan(call: Call, cell, weights: Weights, inputs, c, h, marks: Marks):
    (batch, time, features), gates = inputs.shape, weights.input_kernel.shape[1]
    staged = marks.lengths is not None and chunks.stages_pay(batch, time, gates)
    recompute, chunk = call.recompute, call.truncate or call.chunk
    if recompute is None:
        recompute = chunks.recomputes(batch, time, gates, features + h.shape[1])
    elif recompute and not staged:
        chunk = chunk or chunks.square_root(batch, time)
    chunk = min(chunk or chunks.steps(batch, time, gates, staged=staged), time)
    short_chunk = chunk
    if call.chunk is None and not staged:
        short_chunk = chunks.without_gradient(time, chunk)
    options = Options(
        cell, call.reverse, chunk, short_chunk, row_counts(batch) if staged else (batch,),
        "carries" if recompute else "gates", call.truncate,
    )  # fmt: skip
    return recur(options, weights, inputs, c, h, marks)
