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

With ``lengths`` the steps past a row's own are masked. Where it pays the rows are also sorted by
falling length, and chunks run on ever fewer of them (``xla_rows.py``).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.recurrent import xla_chunk
from jaxnets.kernels.recurrent.cells import Cell
from jaxnets.kernels.recurrent.reference import unroll
from jaxnets.kernels.recurrent.xla_rows import falling, put, put_rows, read, sweep, take_rows, write


class ScanOptions(NamedTuple):
    """What shapes the program; static under ``jit``."""

    cell: Cell
    reverse: bool
    chunk: int  # steps of a chunk on the way back
    short_chunk: int  # and on the way there, where no gates are kept
    rows: tuple[int, ...]  # of the stages, falling; the first is the batch
    keep: str  # for the gradient: the "gates" of each step, or the "carries" of each chunk
    truncate_steps: int | None  # no gradient crosses from one window of so many steps to another


class Weights(NamedTuple):
    """Kernels, biases and whatever else the cell reads; ``None`` where there is none."""

    input_kernel: jax.Array  # [features, gates]
    recurrent_kernel: jax.Array  # [output, gates]
    bias: jax.Array | None  # [gates]
    recurrent_bias: jax.Array | None  # [gates]
    projection: jax.Array | None  # [hidden, output]
    extra: Any


class Marks(NamedTuple):
    """What has no gradient; ``None`` where there is none."""

    lengths: jax.Array | None  # [batch] int32
    resets: jax.Array | None  # [batch, time] bool: the step starts from zeros
    recurrent_mask: jax.Array | None  # [batch, output]: times h before its matmul


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(
    options: ScanOptions,
    weights: Weights,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    marks: Marks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs [batch, time, output], and the last ``c [batch, hidden]``, ``h [batch, output]``."""
    options = options._replace(keep="nothing")
    return _run(options, options.short_chunk, weights, inputs, c, h, marks)[0]


def _run(
    options: ScanOptions,
    chunk: int,
    weights: Weights,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    marks: Marks,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """Results, and what is kept for the gradient."""
    time = inputs.shape[1]
    order = _order(options, marks)
    outputs = jnp.zeros((*inputs.shape[:2], h.shape[1]), inputs.dtype)
    kept = xla_chunk.nothing_kept(options.cell, options.keep, weights, chunk, -(-time // chunk), c)

    def over_chunks(rows, index, carry, buffers):
        outputs, kept = buffers
        view = _view(options, chunk, inputs, marks, order, rows, index, time)
        c, h, chunk_outputs, chunk_kept = xla_chunk.forward(
            options.cell, options.reverse, options.keep, weights, view, *carry
        )
        outputs = write(outputs, chunk_outputs, order, index)
        kept = jax.tree.map(lambda a, v: put(a, v, index), kept, chunk_kept)
        return (c, h), (outputs, kept)

    carry, (outputs, kept) = sweep(
        options.rows, chunk, time, marks.lengths, over_chunks, take_rows((c, h), order),
        (outputs, kept), descending=options.reverse,
    )  # fmt: skip
    c, h = put_rows(carry, order)
    return (outputs, c, h), kept


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run_and_keep(
    options: ScanOptions,
    weights: Weights,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    marks: Marks,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], Any]:
    """``recur`` and what it keeps, with a rule of its own for when ``recur`` is derived twice."""
    return _run(options, options.chunk, weights, inputs, c, h, marks)


def _run_and_keep_forward(options: ScanOptions, *arguments: Any) -> tuple[Any, tuple]:
    results, kept = _run(options, options.chunk, *arguments)
    return (results, kept), (*arguments, (results[0], kept))


def _run_and_keep_backward(options: ScanOptions, residuals: tuple, cotangents: Any) -> tuple:
    return _backward(options, residuals, cotangents[0])  # of what is kept no gradient is taken


_run_and_keep.defvjp(_run_and_keep_forward, _run_and_keep_backward)


def _forward(
    options: ScanOptions, *arguments: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    results, kept = _run_and_keep(options, *arguments)
    return results, (*arguments, (results[0], kept))


def _backward(options: ScanOptions, residuals: tuple, cotangents: Any) -> tuple:
    weights, inputs, c, h, marks, saved = residuals
    return (*_gradient(options, (weights, inputs, c, h), marks, saved, cotangents), None)


recur.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(
    options: ScanOptions, arguments: Any, marks: Marks, saved: Any, cotangents: Any
) -> tuple[Weights, jax.Array, jax.Array, jax.Array]:
    """The gradients of ``arguments = (weights, inputs, c, h)``, from what the way there kept."""
    weights, inputs, c, h = arguments
    outputs, kept = saved
    d_outputs, dc, dh = cotangents
    time, chunk = inputs.shape[1], options.chunk
    order = _order(options, marks)
    transposed = xla_chunk.transpose(weights)
    start_h = take_rows(h, order)

    def over_chunks(rows, index, carry, sums):
        d_weights, d_inputs = sums
        view = _view(options, chunk, inputs, marks, order, rows, index, time)
        before = _before(options, view, outputs, marks, order, start_h[:rows], index, time)
        chunk_kept = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, index, 0, False), kept)
        if options.keep == "gates":
            chunk_kept = jax.tree.map(lambda a: a[:, :rows], chunk_kept)
        else:
            chunk_kept = xla_chunk.again(
                options.cell, options.reverse, weights, view, before, chunk_kept[:rows]
            )
        d_chunk_outputs = read(d_outputs, order, rows, index * chunk, chunk).astype(c.dtype)
        dc, dh, d_chunk, d_x = xla_chunk.backward(
            options.cell, options.reverse, weights, transposed, view, chunk_kept, before,
            d_chunk_outputs, *carry,
        )  # fmt: skip
        d_weights = jax.tree.map(jnp.add, d_weights, d_chunk)
        d_inputs = write(d_inputs, d_x, order, index)
        if options.truncate_steps is not None:  # the windows are the chunks
            cut = _crosses(options, marks, order, rows, index, time)
            dc, dh = jnp.where(cut, 0, dc), jnp.where(cut, 0, dh)
        return (dc, dh), (d_weights, d_inputs)

    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, c.dtype), weights)
    carry, (d_weights, d_inputs) = sweep(
        options.rows, chunk, time, marks.lengths, over_chunks, take_rows((dc, dh), order),
        (zeros, jnp.zeros_like(inputs)), descending=not options.reverse,
    )  # fmt: skip
    dc, dh = put_rows(carry, order)
    d_weights = jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights)
    return d_weights, d_inputs, dc, dh


def _gradient_forward(
    options: ScanOptions, arguments: Any, marks: Marks, saved: Any, cotangents: Any
) -> tuple[Any, tuple]:
    gradients = _gradient(options, arguments, marks, saved, cotangents)
    return gradients, (arguments, marks, cotangents)


def _gradient_backward(options: ScanOptions, residuals: tuple, cotangents: Any) -> tuple:
    """Second derivatives: the gradient is a function of the arguments, whatever was kept for it."""
    arguments, marks, first = residuals

    def gradient(arguments, cotangents):
        plain = partial(unfused, options, marks)
        return jax.vjp(plain, *arguments)[1](cotangents)

    d_arguments, d_cotangents = jax.vjp(gradient, arguments, first)[1](cotangents)
    return d_arguments, None, None, d_cotangents


_gradient.defvjp(_gradient_forward, _gradient_backward)


def unfused(
    options: ScanOptions,
    marks: Marks,
    weights: Weights,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same recurrence as one plain loop, for JAX to differentiate."""

    def step(x, state):
        c, h = state
        masked = h if marks.recurrent_mask is None else h * marks.recurrent_mask
        x_gates = xla_chunk.times(x, weights.input_kernel)
        h_gates = xla_chunk.gates_of_h(options.cell, weights, x_gates, masked)
        gates = xla_chunk.add_biases(weights, x_gates, h_gates)
        _, c, h = options.cell.forward(weights.extra, *gates, c)
        if weights.projection is not None:
            h = xla_chunk.times(h, weights.projection)
        return (c, h), h

    outputs, (c, h) = unroll(
        step, inputs, (c, h), lengths=marks.lengths, resets=marks.resets,
        reverse=options.reverse, truncate_steps=options.truncate_steps,
    )  # fmt: skip
    return outputs.astype(inputs.dtype), c, h


def _order(options: ScanOptions, marks: Marks) -> jax.Array | None:
    """The rows by falling length, where there are stages to use it."""
    return falling(marks.lengths) if len(options.rows) > 1 else None


def _view(
    options: ScanOptions,
    chunk: int,
    inputs: jax.Array,
    marks: Marks,
    order: jax.Array | None,
    rows: int,
    index: jax.Array,
    time: int,
) -> xla_chunk.View:
    """The ``index``-th chunk of the first ``rows`` rows, time first."""
    x = read(inputs, order, rows, index * chunk, chunk)
    valid, keep, mask = None, None, None
    end: Any = time
    if marks.lengths is not None:
        lengths = take_rows(marks.lengths, order)
        end = jnp.maximum(lengths.max(), 1) if order is None else lengths[0]
        steps = jnp.asarray(index, jnp.int32) * chunk + jnp.arange(chunk, dtype=jnp.int32)
        valid = steps[:, None] < lengths[None, :rows]
        x = jnp.where(valid[:, :, None], x, 0)  # padding may hold anything
    if marks.resets is not None:
        keep = ~read(marks.resets, order, rows, index * chunk, chunk)
    if marks.recurrent_mask is not None:
        mask = take_rows(marks.recurrent_mask, order)[:rows]
    # A chunk that is written out is run to its end, whatever the lengths.
    written_out = order is None and chunk <= xla_chunk.UNROLLED
    whole = time % chunk == 0 and (marks.lengths is None or written_out)
    count = chunk if whole else jnp.minimum(chunk, end - index * chunk)
    return xla_chunk.View(x, valid, keep, mask, count)


def _lengths(marks: Marks, order: jax.Array | None, rows: int, time: int) -> jax.Array:
    if marks.lengths is None:
        return jnp.full(rows, time)
    return take_rows(marks.lengths, order)[:rows]


def _before(
    options: ScanOptions,
    view: xla_chunk.View,
    outputs: jax.Array,
    marks: Marks,
    order: jax.Array | None,
    h: jax.Array,
    index: jax.Array,
    time: int,
) -> jax.Array:
    """h before each step of a chunk, [chunk, rows, output], as its matmul saw it."""
    rows, chunk, start = h.shape[0], options.chunk, index * options.chunk
    here = read(outputs, order, rows, start, chunk).astype(h.dtype)
    beside = start + chunk if options.reverse else start - 1
    beside = jnp.clip(beside, 0, outputs.shape[1] - 1)
    beside = read(outputs, order, rows, beside, 1).astype(h.dtype)
    if options.reverse:
        t = jnp.asarray(start, jnp.int32) + jnp.arange(1, chunk + 1, dtype=jnp.int32)
        inside = t[:, None] < _lengths(marks, order, rows, time)[None]
        before = jnp.concatenate([here[1:], beside])
        before = jnp.where(inside[:, :, None], before, h)
    else:
        before = jnp.concatenate([jnp.where(start == 0, h, beside), here[:-1]])
    if view.keep is not None:
        before = jnp.where(view.keep[:, :, None], before, 0)
    return before if view.recurrent_mask is None else before * view.recurrent_mask[None]


def _crosses(
    options: ScanOptions,
    marks: Marks,
    order: jax.Array | None,
    rows: int,
    index: jax.Array,
    time: int,
) -> jax.Array:
    """[rows, 1]: whether a row's carry comes into the chunk from another one it has run."""
    lengths, start = _lengths(marks, order, rows, time), index * options.chunk
    entered = (
        start + options.chunk < lengths if options.reverse else (start > 0) & (start < lengths)
    )
    return entered[:, None]
