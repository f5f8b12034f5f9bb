"""The recurrence as XLA runs it best: in chunks of time, with a gradient of its own.

A chunk of ``chunk`` steps is projected by one matmul; in the loop over its steps remain the
recurrent matmul and the gates. On the way back the loop computes only the gradients of the gates;
those of kernels, biases and inputs follow as large matmuls, a chunk at a time. What the speed rests
on, each found by measuring on XLA's CPU backend:

- A step's gates are carried from the step before, not sliced from the buffer where they are used:
  fusions that read through a dynamic slice run several times slower than a copy and a plain read.
- The buffer of projected gates becomes that of the activated gates, and on the way back that of
  their gradients, each written in place over what the step has just read.
- A chunk's arrays stay in cache, and no array of all gates is made that is not kept: fresh memory
  costs more in page faults than in arithmetic.

With ``lengths`` the rows are sorted by falling length, and chunks run on ever fewer rows
(``stages.py``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.lstm import steps
from jaxnets.kernels.lstm.cells import Cell
from jaxnets.kernels.lstm.reference import unroll
from jaxnets.kernels.lstm.stages import sweep


class Options(NamedTuple):
    """What shapes the program; static under ``jit``."""

    cell: Cell
    reverse: bool
    chunk: int  # steps of a chunk, where a gradient is wanted
    forward_chunk: int  # and where none is
    rows: tuple[int, ...]  # of the stages, falling; the first is the batch
    recompute: bool  # keep only each chunk's first carry, and compute its gates again
    truncate: int | None  # no gradient crosses from one window of so many steps to another


class Weights(NamedTuple):
    """Kernels, biases and whatever else the cell reads; ``None`` where there is none."""

    input_kernel: jax.Array  # [features, gates]
    recurrent_kernel: jax.Array  # [output, gates]
    bias: jax.Array | None  # [gates]
    recurrent_bias: jax.Array | None  # [gates]
    projection: jax.Array | None  # [hidden, output]
    extra: Any


class Marks(NamedTuple):
    """What has no gradient; ``None`` where there is none. Rows are sorted by falling length."""

    lengths: jax.Array | None  # [batch] int32
    resets: jax.Array | None  # [batch, time] bool: the step starts from zeros
    recurrent_mask: jax.Array | None  # [batch, output]: times h before its matmul


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(options: Options, weights: Weights, inputs, c, h, marks: Marks):
    """Outputs [batch, time, output], and the last ``c [batch, hidden]``, ``h [batch, output]``."""
    options = options._replace(chunk=options.forward_chunk)
    return _run(options, weights, inputs, c, h, marks, keep=False)[0]


def _run(options: Options, weights, inputs, c, h, marks, *, keep: bool):
    batch, time, features = inputs.shape
    chunk, count = options.chunk, -(-time // options.chunk)
    accumulator, output = c.dtype, h.shape[1]
    inputs, marks = _whole_chunks(inputs, marks, chunk * count)
    outputs = jnp.zeros((batch, chunk * count, output), inputs.dtype)
    first = (jnp.zeros((count, *c.shape), accumulator), jnp.zeros((count, *h.shape), accumulator))
    kept = None
    if keep and not options.recompute:
        kept = jax.tree.map(
            lambda a: jnp.zeros((count, *a.shape), a.dtype),
            steps.kept_shapes(options.cell, weights, chunk, c, h),
        )

    def over_chunks(rows, index, carry, buffers):
        c, h = carry
        outputs, first, kept = buffers
        if keep:
            first = jax.tree.map(lambda a, v: _put_chunk(a, v, index), first, (c, h))
        view = _view(options, inputs, marks, rows, index, time)
        c, h, chunk_outputs, chunk_kept = steps.forward(
            options.cell, options.reverse, weights, view, c, h, keep=kept is not None
        )
        outputs = _put_time(outputs, chunk_outputs, index)
        if kept is not None:
            kept = jax.tree.map(lambda a, v: _put_chunk(a, v, index), kept, chunk_kept)
        return (c, h), (outputs, first, kept)

    (c, h), (outputs, first, kept) = sweep(
        options.rows, chunk, time, marks.lengths, over_chunks,
        (c, h), (outputs, first if keep else None, kept), descending=options.reverse,
    )  # fmt: skip
    return (outputs[:, :time], c, h), (outputs, first, kept)


def _forward(options: Options, weights, inputs, c, h, marks):
    results, saved = _run(options, weights, inputs, c, h, marks, keep=True)
    return results, (weights, inputs, c, h, marks, saved)


def _backward(options: Options, residuals, cotangents):
    weights, inputs, c, h, marks, saved = residuals
    return (*_gradient(options, (weights, inputs, c, h), marks, saved, cotangents), None)


recur.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(options: Options, arguments, marks, saved, cotangents):
    """The gradients of ``arguments = (weights, inputs, c, h)``, from what the way there kept."""
    weights, inputs, c, _ = arguments
    outputs, first, kept = saved
    d_outputs, dc, dh = cotangents
    time, chunk = inputs.shape[1], options.chunk
    padded, marks = _whole_chunks(inputs, marks, outputs.shape[1])
    d_outputs = _pad_time(d_outputs, outputs.shape[1])
    transposed = steps.transpose(weights)

    def over_chunks(rows, index, carry, sums):
        dc, dh = carry
        d_weights, d_inputs = sums
        view = _view(options, padded, marks, rows, index, time)
        start_c, start_h = (a[index, :rows] for a in first)
        if kept is None:
            *_, chunk_kept = steps.forward(
                options.cell, options.reverse, weights, view, start_c, start_h, keep=True
            )
        else:
            chunk_kept = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 0, False), kept)
            chunk_kept = jax.tree.map(lambda a: a[:, :rows], chunk_kept)
        before = steps.before(
            options.reverse, view, _time(outputs, rows, index, chunk).astype(dh.dtype), start_h
        )
        dc, dh, d_chunk, d_x = steps.backward(
            options.cell, options.reverse, weights, transposed, view, chunk_kept, before,
            _time(d_outputs, rows, index, chunk).astype(dh.dtype), dc, dh,
        )  # fmt: skip
        d_weights = jax.tree.map(jnp.add, d_weights, d_chunk)
        if options.truncate is not None:  # the windows are the chunks
            cut = _crosses(options, marks, rows, index, time)
            dc, dh = jnp.where(cut, 0, dc), jnp.where(cut, 0, dh)
        return (dc, dh), (d_weights, _put_time(d_inputs, d_x, index))

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, c.dtype), weights)
    (dc, dh), (d_weights, d_inputs) = sweep(
        options.rows, chunk, time, marks.lengths, over_chunks,
        (dc, dh), (zeros, jnp.zeros_like(padded)), descending=not options.reverse,
    )  # fmt: skip
    d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
    return d_weights, d_inputs[:, :time], dc, dh


def _gradient_forward(options: Options, arguments, marks, saved, cotangents):
    gradients = _gradient(options, arguments, marks, saved, cotangents)
    return gradients, (arguments, marks, cotangents)


def _gradient_backward(options: Options, residuals, cotangents):
    """Second derivatives: the gradient is a function of the arguments, whatever was kept for it."""
    arguments, marks, first = residuals

    def gradient(arguments, cotangents):
        plain = partial(unfused, options, marks)
        return jax.vjp(plain, *arguments)[1](cotangents)

    d_arguments, d_cotangents = jax.vjp(gradient, arguments, first)[1](cotangents)
    return d_arguments, None, None, d_cotangents


_gradient.defvjp(_gradient_forward, _gradient_backward)


def unfused(options: Options, marks: Marks, weights: Weights, inputs, c, h):
    """The same recurrence as one plain loop, for JAX to differentiate."""

    def step(x, state):
        c, h = state
        masked = h if marks.recurrent_mask is None else h * marks.recurrent_mask
        x_gates = steps.matmul(x, weights.input_kernel, c.dtype)
        h_gates = steps.matmul(masked, weights.recurrent_kernel, c.dtype)
        if weights.bias is not None:
            x_gates = x_gates + weights.bias
        if weights.recurrent_bias is not None:
            h_gates = h_gates + weights.recurrent_bias
        _, c, h = options.cell.forward(weights.extra, x_gates, h_gates, c)
        if weights.projection is not None:
            h = steps.matmul(h, weights.projection, c.dtype)
        return (c, h), h

    outputs, (c, h) = unroll(
        step, inputs, (c, h), lengths=marks.lengths, resets=marks.resets,
        reverse=options.reverse, truncate=options.truncate,
    )  # fmt: skip
    return outputs.astype(inputs.dtype), c, h


def _crosses(options: Options, marks: Marks, rows: int, index, time: int):
    """[rows, 1]: whether a row's carry comes into the chunk from another one it has run."""
    lengths = jnp.full(rows, time) if marks.lengths is None else marks.lengths[:rows]
    start = index * options.chunk
    entered = start + options.chunk < lengths if options.reverse else (start > 0) & (start < lengths)
    return entered[:, None]


def _whole_chunks(inputs, marks: Marks, time: int):
    resets = marks.resets
    if resets is not None:
        resets = _pad_time(resets, time)
    return _pad_time(inputs, time), marks._replace(resets=resets)


def _pad_time(array, time: int):
    missing = time - array.shape[1]
    if missing == 0:
        return array
    return jnp.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2))


def _view(options: Options, inputs, marks: Marks, rows: int, index, time: int) -> steps.View:
    """The ``index``-th chunk of the first ``rows`` rows, time first."""
    chunk = options.chunk
    x = _time(inputs, rows, index, chunk)
    valid, keep, mask = None, None, None
    end = time
    if marks.lengths is not None:
        end = marks.lengths[0]
        valid = (index * chunk + jnp.arange(chunk))[:, None] < marks.lengths[None, :rows]
        x = jnp.where(valid[:, :, None], x, 0)  # padding may hold anything
    if marks.resets is not None:
        keep = ~_time(marks.resets, rows, index, chunk)
    if marks.recurrent_mask is not None:
        mask = marks.recurrent_mask[:rows]
    whole = marks.lengths is None and time % chunk == 0
    count = chunk if whole else jnp.minimum(chunk, end - index * chunk)
    return steps.View(x, valid, keep, mask, count)


def _time(array, rows: int, index, chunk: int):
    """[batch, time, ...] to its chunk [chunk, rows, ...]."""
    part = lax.dynamic_slice_in_dim(array[:rows], index * chunk, chunk, axis=1)
    return jnp.moveaxis(part, 1, 0)


def _put_time(array, part, index):
    """Writes a chunk [chunk, rows, ...] into [batch, time, ...]."""
    return _put(array, jnp.moveaxis(part, 0, 1), index * part.shape[0], axis=1)


def _put_chunk(array, part, index):
    """Writes ``part``, of fewer rows perhaps, into ``array[index]``."""
    return _put(array, part[None], index, axis=0)


def _put(array, part, start, axis: int):
    starts = [start if d == axis else jnp.zeros_like(start) for d in range(array.ndim)]
    return lax.dynamic_update_slice(array, part.astype(array.dtype), starts)
