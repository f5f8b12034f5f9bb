"""The persistent LSTM for GPU (Triton): a program for some rows of the batch, all of time in it.

The recurrent kernel is one block a gate, loaded once: it fits a multiprocessor's registers and
shared memory for small hidden sizes only (``LARGEST_HIDDEN``). Beyond that it must be split over
multiprocessors that wait for each other at every step, which is what cuDNN does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.pallas.triton import pallas_call, triton
from jaxnets.kernels.recurrent.pallas_gates import (
    backward_shapes,
    forward_shapes,
    gate_backward,
    gate_forward,
    take_optional,
)

_ROWS = 16  # the least that a tensor core takes; more programs are better than larger ones
LARGEST_HIDDEN = {4: 64, 2: 128}  # by bytes of a number: four gates' kernels in 64 to 128 KiB


def forward(
    interpret: bool,
    x_gates: jax.Array,
    kernel: jax.Array,
    c: jax.Array,
    h: jax.Array,
    lengths: jax.Array,
    keep: jax.Array | None,
    mask: jax.Array | None,
) -> Sequence[jax.Array]:
    """``outputs, gates, before_c, c, h``; arguments as in ``persistent.py``."""
    time, batch, width = x_gates.shape
    hidden = width // 4
    optional = [a for a in (keep, mask) if a is not None]

    def run(x_ref, kernel_ref, c_ref, h_ref, lengths_ref, *refs):
        keep_ref, mask_ref, rest = take_optional(refs, keep, mask)
        out_ref, gates_ref, before_ref, last_c_ref, last_h_ref = rest
        rows, inside, tile, whole = _places(batch, hidden)
        kernels, ends, seen_of_h = _constants(
            kernel_ref, lengths_ref, mask_ref, rows, inside, tile, whole, hidden
        )

        def step(t, carry):
            c, h = carry
            valid = t < ends
            start_c, start_h = c, h
            if keep_ref is not None:
                kept = triton.load(keep_ref.at[t, rows], mask=inside, other=0.0)[:, None]
                start_c, start_h = c * kept, h * kept
            seen = start_h if seen_of_h is None else start_h * seen_of_h
            seen = seen.astype(x_ref.dtype)
            x_gates = _load_gates(x_ref, t, rows, whole, hidden)
            sums = [x + matmul(seen, u, (1, 0)) for x, u in zip(x_gates, kernels, strict=True)]
            gates, new_c, new_h = gate_forward(sums, start_c)
            for n, gate in enumerate(gates):
                place = gates_ref.at[t, rows, _gate(n, hidden)]
                triton.store(place, gate.astype(gates_ref.dtype), mask=whole)
            out = jnp.where(valid, new_h, 0.0).astype(out_ref.dtype)
            triton.store(out_ref.at[(t, *tile)], out, mask=whole)
            triton.store(before_ref.at[(t, *tile)], start_c, mask=whole)
            return jnp.where(valid, new_c, c), jnp.where(valid, new_h, h)

        start = tuple(triton.load(ref.at[tile], mask=whole, other=0.0) for ref in (c_ref, h_ref))
        c, h = lax.fori_loop(0, time, step, start)
        triton.store(last_c_ref.at[tile], c, mask=whole)
        triton.store(last_h_ref.at[tile], h, mask=whole)

    return pallas_call(
        run, name="lstm_forward", grid=(pl.cdiv(batch, _ROWS),),
        out_shape=forward_shapes(x_gates),
        compiler_params=_parameters(), interpret=interpret,
    )(x_gates, kernel.astype(x_gates.dtype), c, h, lengths, *optional)  # fmt: skip


def backward(
    interpret: bool,
    gates: jax.Array,
    before_c: jax.Array,
    kernel: jax.Array,
    d_outputs: jax.Array,
    dc: jax.Array,
    dh: jax.Array,
    lengths: jax.Array,
    keep: jax.Array | None,
    mask: jax.Array | None,
) -> Sequence[jax.Array]:
    """``d_gates [time, batch, 4 * hidden], dc, dh`` before the first step."""
    time, batch, width = gates.shape
    hidden = width // 4
    optional = [a for a in (keep, mask) if a is not None]

    def run(gates_ref, before_ref, kernel_ref, d_out_ref, dc_ref, dh_ref, lengths_ref, *refs):
        keep_ref, mask_ref, rest = take_optional(refs, keep, mask)
        d_gates_ref, first_dc_ref, first_dh_ref = rest
        rows, inside, tile, whole = _places(batch, hidden)
        kernels, ends, seen_of_h = _constants(
            kernel_ref, lengths_ref, mask_ref, rows, inside, tile, whole, hidden
        )

        def step(m, carry):
            dc, dh = carry
            t = time - 1 - m
            valid = t < ends
            parts = _load_gates(gates_ref, t, rows, whole, hidden)
            before = triton.load(before_ref.at[(t, *tile)], mask=whole, other=0.0)
            d_out = triton.load(d_out_ref.at[(t, *tile)], mask=whole, other=0.0)
            d_sums, new_dc = gate_backward(parts, before, dc, dh + d_out.astype(jnp.float32))
            new_dh = jnp.zeros((_ROWS, hidden), jnp.float32)
            for n, d_sum in enumerate(d_sums):
                d_sum = jnp.where(valid, d_sum, 0.0).astype(d_gates_ref.dtype)
                place = d_gates_ref.at[t, rows, _gate(n, hidden)]
                triton.store(place, d_sum, mask=whole)
                new_dh += matmul(d_sum, kernels[n], (1, 1))
            if seen_of_h is not None:
                new_dh = new_dh * seen_of_h
            if keep_ref is not None:
                kept = triton.load(keep_ref.at[t, rows], mask=inside, other=0.0)[:, None]
                new_dc, new_dh = new_dc * kept, new_dh * kept
            return jnp.where(valid, new_dc, dc), jnp.where(valid, new_dh, dh)

        start = tuple(triton.load(ref.at[tile], mask=whole, other=0.0) for ref in (dc_ref, dh_ref))
        dc, dh = lax.fori_loop(0, time, step, start)
        triton.store(first_dc_ref.at[tile], dc, mask=whole)
        triton.store(first_dh_ref.at[tile], dh, mask=whole)

    return pallas_call(
        run, name="lstm_backward", grid=(pl.cdiv(batch, _ROWS),),
        out_shape=backward_shapes(gates),
        compiler_params=_parameters(), interpret=interpret,
    )(
        gates, before_c, kernel.astype(gates.dtype), d_outputs, dc, dh, lengths, *optional
    )  # fmt: skip


def _places(batch: int, hidden: int) -> tuple[Any, jax.Array, tuple, jax.Array]:
    """This program's rows, which of them exist, their place in [batch, hidden], and its mask."""
    first = pl.program_id(0) * _ROWS
    inside = first + jnp.arange(_ROWS) < batch
    rows = pl.ds(first, _ROWS)
    whole = jnp.broadcast_to(inside[:, None], (_ROWS, hidden))
    return rows, inside, (rows, _gate(0, hidden)), whole


def _gate(n: int, hidden: int) -> Any:
    # int32, as a step's number is: what interprets the kernel asks the user's default else.
    start: Any = np.int32(n * hidden)
    return pl.ds(start, hidden)


def _constants(
    kernel_ref: Any,
    lengths_ref: Any,
    mask_ref: Any,
    rows: Any,
    inside: jax.Array,
    tile: tuple,
    whole: jax.Array,
    hidden: int,
) -> tuple[list[jax.Array], jax.Array, jax.Array | None]:
    """What is loaded once: each gate's kernel, the rows' lengths [rows, 1], and the mask of h."""
    kernels = [kernel_ref[:, n * hidden : (n + 1) * hidden] for n in range(4)]
    ends = triton.load(lengths_ref.at[rows], mask=inside, other=0)[:, None]
    seen_of_h = None
    if mask_ref is not None:
        seen_of_h = triton.load(mask_ref.at[tile], mask=whole, other=0.0)
    return kernels, ends, seen_of_h


def _load_gates(
    ref: Any, t: jax.Array, rows: Any, whole: jax.Array, hidden: int
) -> list[jax.Array]:
    """The four gates of a step, float32."""
    places = (ref.at[t, rows, _gate(n, hidden)] for n in range(4))
    return [triton.load(place, mask=whole, other=0.0).astype(jnp.float32) for place in places]


def _parameters() -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=4, num_stages=1)
