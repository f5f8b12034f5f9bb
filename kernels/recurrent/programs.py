"""The programs that :func:`lstm` and :func:`gru` are compiled to, by what is static of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.kernels import dispatch
from jaxnets.kernels.derivatives import first_by
from jaxnets.kernels.meshes import WHOLE, draw_rows, over_rows
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.kernels.recurrent import cells, reference, xla_chunk_size
from jaxnets.kernels.recurrent.accelerated import accelerated_lstm
from jaxnets.kernels.recurrent.padding import Given, padding_of, poisoned, put_back, to_front
from jaxnets.kernels.recurrent.parameters import GRUParameters, LSTMParameters
from jaxnets.kernels.recurrent.xla_rows import row_counts
from jaxnets.kernels.recurrent.xla_scan import Marks, ScanOptions, Weights, recur


class Options(NamedTuple):
    """What is static of a call."""

    time_first: bool
    batched: bool
    repeat: bool  # h in the padding, not zeros
    reverse: bool
    recurrent_dropout: float
    remat: bool | None
    truncate_steps: int | None
    chunk_size: int | None
    implementation: str
    target: dispatch.Target | None  # of "pallas" and "cudnn"
    whole_bytes: int  # of gates that are one chunk of steps
    reset_after: bool = True  # of a GRU


def _steps_axis(of: dict[str, Any]) -> int:
    """The batch's axis in what has steps: inputs, outputs, segment ids and mask."""
    options = of["options"]
    return int(options.time_first) if options.batched else WHOLE


def _state_axis(of: dict[str, Any]) -> int:
    """The batch's axis in what has none: carries and lengths."""
    return 0 if of["options"].batched else WHOLE


def _given_axes(of: dict[str, Any]) -> Any:
    axes: Any = _state_axis(of), _steps_axis(of), _steps_axis(of)
    return Given(*axes)


_own_rows = over_rows(
    inputs=_steps_axis, carry=_state_axis, parameters=WHOLE, given=_given_axes, key=WHOLE,
    results=lambda of: (_steps_axis(of), _state_axis(of)),
)  # fmt: skip


@partial(jax.jit, static_argnums=0)
@jax.named_scope("lstm")
@_own_rows
def run_lstm(
    options: Options,
    inputs: jax.Array,
    carry: Any,
    parameters: LSTMParameters,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    """Outputs and ``(c, h)``."""
    return _turned_around(options, _lstm, inputs, carry, parameters, given, key)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("gru")
@_own_rows
def run_gru(
    options: Options,
    inputs: jax.Array,
    carry: Any,
    parameters: GRUParameters,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    """Outputs and ``h``."""
    return _turned_around(options, _gru, inputs, carry, parameters, given, key)


def _turned_around(
    options: Options,
    rows_first: Callable,
    inputs: jax.Array,
    carry: Any,
    parameters: Any,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    """``rows_first`` of the same arguments, whose arrays begin with the batch's axis."""

    def turned(array):
        if not options.batched:
            return array[None]
        return jnp.swapaxes(array, 0, 1) if options.time_first and array.ndim > 1 else array

    inputs, given = jax.tree.map(turned, (inputs, given))
    if not options.batched:
        carry = jax.tree.map(turned, carry)
    outputs, carry = rows_first(options, inputs, carry, parameters, given, key)
    if not options.batched:
        return jax.tree.map(lambda array: array[0], (outputs, carry))
    return turned(outputs), carry


def _lstm(
    options: Options,
    inputs: jax.Array,
    carry: Any,
    parameters: LSTMParameters,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    sizes = parameters.bias.shape[0] // 4, parameters.recurrent_kernel.shape[0]
    return _around(options, _lstm_steps, inputs, carry, sizes, parameters, given, key)


def _gru(
    options: Options,
    inputs: jax.Array,
    carry: Any,
    parameters: GRUParameters,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    size = parameters.recurrent_kernel.shape[0]
    return _around(options, _gru_steps, inputs, carry, size, parameters, given, key)


def _around(
    options: Options,
    steps: Callable,
    inputs: jax.Array,
    carry: Any,
    sizes: Any,
    parameters: Any,
    given: Given,
    key: Any,
) -> tuple[jax.Array, Any]:
    """What both do before and after ``steps(options, parameters, inputs, carry, marks)``.

    ``sizes``: of each array of the carry, the last that of an output.
    """
    dtype = result_dtype(inputs, *jax.tree.leaves(parameters))
    accumulator = accumulator_dtype(dtype)
    copied = options.time_first or not options.batched or inputs.dtype != dtype
    inputs, parameters = jax.tree.map(lambda array: array.astype(dtype), (inputs, parameters))
    batch, time = inputs.shape[:2]
    if carry is None:
        carry = jax.tree.map(lambda size: jnp.zeros((batch, size)), sizes)
    carry = jax.tree.map(lambda array: array.astype(accumulator), carry)
    padding = padding_of(given, time, reverse=options.reverse)
    carry = poisoned(carry, padding)
    first_h = jax.tree.leaves(carry)[-1]
    if not (batch and time):
        return jnp.zeros((batch, time, first_h.shape[1]), dtype), carry
    marks = Marks(padding.lengths, padding.resets, _dropout_mask(options, key, first_h))
    inputs = to_front(inputs, padding, copied=copied)
    outputs, carry = steps(options, parameters, inputs, carry, marks)
    outputs = put_back(outputs, first_h, padding, repeat=options.repeat, reverse=options.reverse)
    return outputs, carry


def _dropout_mask(options: Options, key: Any, h: jax.Array) -> jax.Array | None:
    if not options.recurrent_dropout:
        return None
    share = jnp.float32(1 - options.recurrent_dropout)
    kept = draw_rows(partial(jax.random.bernoulli, key, share), h.shape)
    return kept.astype(h.dtype) / (1 - options.recurrent_dropout)


def _lstm_steps(
    options: Options, parameters: LSTMParameters, inputs: jax.Array, carry: Any, marks: Marks
) -> tuple[jax.Array, Any]:
    if options.implementation == "reference":

        def step(x, state):
            c, h = state
            c, h = reference.lstm_step(parameters, x, c, h, marks.recurrent_mask)
            return (c, h), h

        return _reference(options, step, inputs, carry, marks)
    target = options.target
    if target is not None:
        on_xla = options._replace(implementation="scan", target=None)

        def kernel(marks, parameters, inputs, carry):
            return accelerated_lstm(
                options.implementation, target, parameters, inputs, carry, marks,
                reverse=options.reverse,
            )  # fmt: skip

        def plain(marks, parameters, inputs, carry):
            return _lstm_steps(on_xla, parameters, inputs, carry, marks)

        return first_by(kernel, plain, marks, parameters, inputs, carry)
    c, h = carry
    weights = Weights(
        parameters.input_kernel, parameters.recurrent_kernel, parameters.bias, None,
        parameters.projection, parameters.peepholes,
    )  # fmt: skip
    cell = cells.LSTM if parameters.peepholes is None else cells.PEEPHOLE_LSTM
    if parameters.layer_norm is not None:
        cell = cells.LAYER_NORM_LSTM
        weights = weights._replace(bias=None, extra=(parameters.layer_norm, parameters.bias))
    outputs, c, h = _scan(options, cell, weights, inputs, c, h, marks)
    return outputs, (c, h)


def _gru_steps(
    options: Options, parameters: GRUParameters, inputs: jax.Array, h: jax.Array, marks: Marks
) -> tuple[jax.Array, Any]:
    if options.implementation == "reference":

        def step(x, h):
            h = reference.gru_step(parameters, x, h, marks.recurrent_mask, options.reset_after)
            return h, h

        return _reference(options, step, inputs, h, marks)
    cell = cells.GRU if options.reset_after else cells.RESET_BEFORE_GRU
    weights = Weights(*parameters, None, None)
    outputs, _, h = _scan(options, cell, weights, inputs, h, h, marks)
    return outputs, h


def _reference(
    options: Options, step: Callable, inputs: jax.Array, state: Any, marks: Marks
) -> tuple[jax.Array, Any]:
    outputs, state = reference.unroll(
        step, inputs.astype(jax.tree.leaves(state)[0].dtype), state, lengths=marks.lengths,
        resets=marks.resets, reverse=options.reverse, truncate_steps=options.truncate_steps,
    )  # fmt: skip
    return outputs.astype(inputs.dtype), state


def _scan(
    options: Options,
    cell: cells.Cell,
    weights: Weights,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    marks: Marks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (batch, time, features), gates = inputs.shape, weights.input_kernel.shape[1]
    staged = marks.lengths is not None and xla_chunk_size.stages_pay(batch, time, gates)
    remat, chunk = options.remat, options.truncate_steps or options.chunk_size
    if remat is None:
        remat = xla_chunk_size.recomputes(batch, time, gates, features + h.shape[1])
    elif remat and not staged:
        chunk = chunk or xla_chunk_size.square_root(batch, time)
    # Chunks that are all padding are left out, and one is all that is computed again at a time.
    in_parts = marks.lengths is not None or remat
    whole = xla_chunk_size.WHOLE_BYTES if in_parts else options.whole_bytes
    chunk = chunk or xla_chunk_size.steps(batch, time, gates, staged=staged, whole=whole)
    chunk = min(chunk, time)
    short_chunk = chunk
    if options.chunk_size is None and not staged:
        short_chunk = xla_chunk_size.without_gradient(batch, time, features, gates, chunk)
    scan = ScanOptions(
        cell, options.reverse, chunk, short_chunk, row_counts(batch) if staged else (batch,),
        "carries" if remat else "gates", options.truncate_steps,
    )  # fmt: skip
    return recur(scan, weights, inputs, c, h, marks)
