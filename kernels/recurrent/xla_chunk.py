"""The steps of one chunk, forward and backward; arrays are time first, [chunk, rows, ...]."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels import dispatch
from jaxnets.kernels.numerics import matmul, result_dtype
from jaxnets.kernels.recurrent.cells import Cell

UNROLLED = 8  # a chunk of at most so many steps is written out


class View(NamedTuple):
    """One chunk: what its steps read; ``None`` where there is none."""

    inputs: jax.Array  # [chunk, rows, features]; zeros where not valid
    valid: jax.Array | None  # [chunk, rows]: the step is within the row's length
    keep: jax.Array | None  # [chunk, rows]: the carry is not reset before the step
    recurrent_mask: jax.Array | None  # [rows, output]
    steps: int | jax.Array  # to run, from the first; at least 1


class Kept(NamedTuple):
    """What the gradient needs of each step."""

    gates: tuple[jax.Array, ...]  # [chunk, rows, gates]: what the cell saved
    memory: jax.Array  # [chunk, rows, hidden]: c before the step
    hidden: jax.Array | None  # [chunk, rows, hidden]: h before its projection


def times(a: jax.Array, kernel: jax.Array) -> jax.Array:
    """``a [..., rows, k] @ kernel [k, n]`` in the kernel's dtype, accumulated in float32 (float64).

    Of many steps it is one large matmul. They are not flattened here: XLA does that itself once it
    has split the rows over devices, and after it could only gather them all on each.
    """
    return matmul(a.astype(kernel.dtype), kernel, (a.ndim - 1, 0))


def outer(a: jax.Array, b: jax.Array, like: jax.Array) -> jax.Array:
    """The sum over steps and rows of ``a b^T``: the gradient of a kernel, as one matmul.

    Flattened where nothing is split: XLA for CPU turns what is summed over two axes around first.
    """
    a, b = a.astype(like.dtype), b.astype(like.dtype)
    if dispatch.may_be_split():
        return matmul(a, b, ((0, 1), (0, 1)))
    a, b = (array.reshape(-1, array.shape[-1]) for array in (a, b))
    return matmul(a, b, (0, 0))


def nothing_kept(
    cell: Cell, keep: str, weights: Any, chunk: int, count: int, c: jax.Array
) -> Kept | jax.Array | None:
    """Room for what ``keep`` wants of each of ``count`` chunks: a ``Kept``, or its first c."""
    if keep == "nothing":
        return None
    if keep == "carries":
        return jnp.zeros((count, *c.shape), c.dtype)
    memory = jnp.zeros((count, chunk, *c.shape), c.dtype)
    gates = jnp.zeros((*memory.shape[:3], weights.input_kernel.shape[1]), c.dtype)
    return Kept(
        (gates,) if cell.joint else (gates, gates),
        memory,
        None if weights.projection is None else memory,
    )


def transpose(weights: Any) -> Any:
    """The kernels transposed once, ahead of the loops; XLA must not fold it into each step."""
    kernels = (weights.input_kernel, weights.recurrent_kernel, weights.projection)
    return jax.tree.map(lambda w: lax.optimization_barrier(w.T), kernels)


def _put(array: jax.Array, value: jax.Array, t: int | jax.Array) -> jax.Array:
    return lax.dynamic_update_index_in_dim(array, value, t, 0)


def _at(array: jax.Array, t: int | jax.Array) -> jax.Array:
    if isinstance(t, int):
        return array[t]
    return lax.dynamic_index_in_dim(array, t, 0, keepdims=False)


def _within(t: int | jax.Array, chunk: int) -> int | jax.Array:
    if isinstance(t, int):
        return min(max(t, 0), chunk - 1)
    return jnp.clip(t, 0, chunk - 1)


def _restart(view: View, t: int | jax.Array, *carries: jax.Array) -> tuple[jax.Array, ...]:
    if view.keep is None:
        return carries
    keep = _at(view.keep, t)[:, None]
    return tuple(jnp.where(keep, a, 0) for a in carries)


def forward(
    cell: Cell,
    reverse: bool,
    keep: str,
    weights: Any,
    view: View,
    c: jax.Array,
    h: jax.Array,
    known: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array, Any]:
    """``c, h, outputs [chunk, rows, output]`` and what ``keep`` wants of the chunk.

    ``known``, [chunk, rows, output]: h as each step's matmul sees it, where that is known: what h
    adds to the gates is then one large matmul, and the loop has none.
    """
    chunk = view.inputs.shape[0]
    dtype = c.dtype
    projected: Any = times(view.inputs, weights.input_kernel)
    known_gates = None
    if known is not None:
        known_gates = gates_of_h(cell, weights, projected, known)
    outputs = jnp.zeros((chunk, *h.shape), dtype)
    kept, first_c = None, c
    if keep == "gates":
        memory = jnp.zeros((chunk, *c.shape), dtype)
        gates = (projected,) if cell.joint else (projected, jnp.zeros_like(projected))
        kept = Kept(gates, memory, None if weights.projection is None else memory)
        projected = None

    def inputs_of(projected, kept):
        return projected if kept is None else kept.gates[0]

    def order(n):
        return view.steps - 1 - n if reverse else n

    def step(n, state):
        c, h, x_gates, projected, outputs, kept = state
        t = order(n)
        start_c, start_h = _restart(view, t, c, h)
        if known_gates is None:
            masked = start_h if view.recurrent_mask is None else start_h * view.recurrent_mask
            h_gates = gates_of_h(cell, weights, x_gates, masked)
        else:
            h_gates = _at(known_gates, t)
        sums = add_biases(weights, x_gates, h_gates)
        saved: tuple[jax.Array, ...] = ()
        if kept is None:
            new_c, hidden = cell.update(weights.extra, *sums, start_c)
        else:
            saved, new_c, hidden = cell.forward(weights.extra, *sums, start_c)
        new_h = hidden
        if weights.projection is not None:  # not wanted where the next h is known
            new_h = h if known is not None else times(hidden, weights.projection)
        if view.valid is None:
            outputs = _put(outputs, new_h, t)
        else:
            valid = _at(view.valid, t)[:, None]
            outputs = _put(outputs, jnp.where(valid, new_h, 0), t)
            shared = new_c is new_h  # a GRU's, in one array from step to step
            new_c = jnp.where(valid, new_c, c)  # where h is known, h itself is not carried
            new_h = new_c if shared else jnp.where(valid, new_h, h)
        if kept is not None:
            kept = Kept(
                tuple(
                    _put(buffer, gates, t) for buffer, gates in zip(kept.gates, saved, strict=True)
                ),
                _put(kept.memory, start_c, t),
                None if kept.hidden is None else _put(kept.hidden, hidden, t),
            )
        following = _within(order(n + 1), chunk)
        x_gates = _at(inputs_of(projected, kept), following)
        return new_c, new_h, x_gates, projected, outputs, kept

    first = _at(inputs_of(projected, kept), order(0))
    state = (c, h, first, projected, outputs, kept)
    if chunk <= UNROLLED and isinstance(view.steps, int):
        for n in range(view.steps):
            state = step(n, state)
    else:
        state = lax.fori_loop(0, view.steps, step, state)
    c, h, _, _, outputs, kept = state
    return c, h, outputs, first_c if keep == "carries" else kept


def gates_of_h(cell: Cell, weights: Any, x_gates: jax.Array, h: jax.Array) -> jax.Array:
    """h U of one step or of many, [..., rows, gates]; (r h) U_n in its last block by a reset."""
    kernel = weights.recurrent_kernel
    if not cell.resets:
        return times(h, kernel)
    hidden = h.shape[-1]
    first = times(h, kernel[:, : 2 * hidden])
    last = jnp.zeros_like(first[..., :hidden])
    x_sums, h_sums = add_biases(weights, x_gates, jnp.concatenate([first, last], axis=-1))
    r = jax.nn.sigmoid(x_sums[..., :hidden] + h_sums[..., :hidden])
    last = times(r * h, kernel[:, 2 * hidden :])
    return jnp.concatenate([first, last], axis=-1)


def _through_reset(
    r: jax.Array, d_gates: jax.Array, h: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``d_gates`` with that of r, the gradient of h, and r h; ``kernel [gates, hidden]`` is U^T."""
    hidden = h.shape[-1]
    _, dz, dn = jnp.split(d_gates, 3, axis=-1)
    d_seen = times(dn, kernel[2 * hidden :])
    d_gates = jnp.concatenate([d_seen * h * r * (1 - r), dz, dn], axis=-1)
    d_h = times(d_gates[:, : 2 * hidden], kernel[: 2 * hidden]) + d_seen * r
    return d_gates, d_h, r * h


def add_biases(weights: Any, x_gates: jax.Array, h_gates: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gates with the biases that the weights have."""

    def add(gates, bias):
        if bias is None:
            return gates
        dtype = result_dtype(gates, bias)
        return gates.astype(dtype) + jnp.expand_dims(bias, range(gates.ndim - 1)).astype(dtype)

    return add(x_gates, weights.bias), add(h_gates, weights.recurrent_bias)


def again(
    cell: Cell, reverse: bool, weights: Any, view: View, before: jax.Array, c: jax.Array
) -> Kept:
    """A chunk's ``Kept`` from its first ``c`` and h before each step, [chunk, rows, output]."""
    h = jnp.zeros_like(before[0])
    *_, kept = forward(cell, reverse, "gates", weights, view, c, h, before)
    return kept


def backward(
    cell: Cell,
    reverse: bool,
    weights: Any,
    transposed: tuple,
    view: View,
    kept: Kept,
    before_h: jax.Array,
    d_outputs: jax.Array,
    dc: jax.Array,
    dh: jax.Array,
) -> tuple[jax.Array, jax.Array, Any, jax.Array]:
    """``dc, dh, d_weights, d_inputs [chunk, rows, features]``."""
    chunk = view.inputs.shape[0]
    dtype = dc.dtype
    input_kernel, recurrent_kernel, projection = transposed
    if view.valid is not None:
        d_outputs = jnp.where(view.valid[:, :, None], d_outputs, 0)
    d_projected = None if projection is None else jnp.zeros_like(d_outputs)
    d_extra = jax.tree.map(lambda w: jnp.zeros(w.shape, dtype), weights.extra)
    seen = jnp.zeros_like(before_h) if cell.resets else None  # r h, that U_n saw

    def order(n):
        return n if reverse else view.steps - 1 - n

    def step(n, state):
        dc, dh, saved, gates, d_projected, d_extra, seen = state
        t = order(n)
        taken_c, taken_h = dc, dh
        if view.valid is not None:
            valid = _at(view.valid, t)[:, None]
            taken_c, taken_h = jnp.where(valid, dc, 0), jnp.where(valid, dh, 0)
        d_hidden = taken_h + _at(d_outputs, t)
        if projection is not None:
            d_projected = _put(d_projected, d_hidden, t)
            d_hidden = times(d_hidden, projection)
        d_gates, before_c, step_extra = cell.backward(
            weights.extra, saved, _at(kept.memory, t), taken_c, d_hidden
        )
        if cell.resets:
            r, h = saved[0][:, : dh.shape[1]], _at(before_h, t)
            d_sums, d_before, step_seen = _through_reset(r, d_gates[0], h, recurrent_kernel)
            d_gates, seen = (d_sums,), _put(seen, step_seen, t)
        else:
            d_before = times(d_gates[-1], recurrent_kernel)
        if view.recurrent_mask is not None:
            d_before = d_before * view.recurrent_mask
        before_c, d_before = _restart(view, t, before_c, d_before)
        if view.valid is not None:
            before_c, d_before = jnp.where(valid, before_c, dc), jnp.where(valid, d_before, dh)
        gates = tuple(_put(buffer, d, t) for buffer, d in zip(gates, d_gates, strict=True))
        if d_extra is not None:
            d_extra = jax.tree.map(jnp.add, d_extra, step_extra)
        following = _within(order(n + 1), chunk)
        saved = tuple(_at(buffer, following) for buffer in gates)
        return before_c, d_before, saved, gates, d_projected, d_extra, seen

    saved = tuple(_at(buffer, order(0)) for buffer in kept.gates)
    state = (dc, dh, saved, kept.gates, d_projected, d_extra, seen)
    dc, dh, _, gates, d_projected, d_extra, seen = lax.fori_loop(0, view.steps, step, state)
    d_recurrent = outer(before_h, gates[-1], weights.recurrent_kernel)
    if cell.resets:
        d_last = outer(seen, gates[-1][..., 2 * dh.shape[1] :], weights.recurrent_kernel)
        d_recurrent = d_recurrent.at[:, 2 * dh.shape[1] :].set(d_last)
    d_weights = type(weights)(
        input_kernel=outer(view.inputs, gates[0], weights.input_kernel),
        recurrent_kernel=d_recurrent,
        bias=None if weights.bias is None else gates[0].sum((0, 1)),
        recurrent_bias=None if weights.recurrent_bias is None else gates[-1].sum((0, 1)),
        projection=None
        if kept.hidden is None
        else outer(kept.hidden, d_projected, weights.projection),
        extra=d_extra,
    )
    return dc, dh, d_weights, times(gates[0], input_kernel)
