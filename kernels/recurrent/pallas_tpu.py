"""The persistent LSTM for TPU (Mosaic): a sequential grid over chunks of time.

The recurrent kernel has one block for the whole grid, so it is read into VMEM once and stays; the
carry is in VMEM scratch. Blocks of projected gates come in, and outputs go out, while others are
computed. On the way back the same grid runs with its time axis reversed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

from jaxnets.kernels.numerics import matmul
from jaxnets.kernels.recurrent.pallas_gates import (
    backward_shapes,
    forward_shapes,
    gate_backward,
    gate_forward,
    take_optional,
)

_ROWS = 128  # of the batch at a time
_BLOCKS = 10  # of the size of a chunk's gates, that are in VMEM at one time
_SHARE = 32  # of the VMEM, for each


def vmem_limit() -> int:
    """What the kernels ask for: three quarters of this TPU's VMEM, or a v5p's where there is none.

    A v4 has 16 MiB, a v5p and a v7x 64, a v5e and a v6e 128.
    """
    here = jax.default_backend() == "tpu"
    return (tpu.get_tpu_info().vmem_capacity_bytes if here else 64 * 2**20) * 3 // 4


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
    width = x_gates.shape[2]
    hidden = width // 4
    plan = _Plan(x_gates, backward=False)

    def run(*refs):
        x_ref, kernel_ref, c_ref, h_ref, lengths_ref, *rest = refs
        keep_ref, mask_ref, rest = take_optional(rest, keep, mask)
        out_ref, gates_ref, before_ref, last_c_ref, last_h_ref, c_now, h_now = rest
        first = plan.first_step()

        @pl.when(pl.program_id(1) == 0)
        def _():
            c_now[...], h_now[...] = c_ref[...], h_ref[...]

        def step(n, carry):
            c, h = carry
            valid = first + n < lengths_ref[...]
            start_c, start_h = c, h
            if keep_ref is not None:
                start_c, start_h = c * keep_ref[n], h * keep_ref[n]
            seen = start_h if mask_ref is None else start_h * mask_ref[...]
            h_gates = matmul(seen.astype(kernel_ref.dtype), kernel_ref[...], (1, 0))
            sums = x_ref[n].astype(jnp.float32) + h_gates
            gates, new_c, new_h = gate_forward(jnp.split(sums, 4, axis=1), start_c)
            out_ref[n] = jnp.where(valid, new_h, 0).astype(out_ref.dtype)
            gates_ref[n] = jnp.concatenate(gates, axis=1).astype(gates_ref.dtype)
            before_ref[n] = start_c
            return jnp.where(valid, new_c, c), jnp.where(valid, new_h, h)

        c, h = lax.fori_loop(0, plan.chunk, step, (c_now[...], h_now[...]))
        c_now[...], h_now[...] = c, h
        last_c_ref[...], last_h_ref[...] = c, h

    arrays, specs = plan.inputs(
        [(x_gates, "steps"), (kernel, "whole"), (c, "rows"), (h, "rows"),
         (lengths[:, None], "rows"), (None if keep is None else keep[:, :, None], "steps"),
         (mask, "rows")]
    )  # fmt: skip
    return pl.pallas_call(
        run, name="lstm_forward", grid=plan.grid, in_specs=specs,
        out_specs=[plan.steps(hidden), plan.steps(width), plan.steps(hidden)]
        + [plan.rows(hidden)] * 2,
        out_shape=forward_shapes(x_gates),
        scratch_shapes=[tpu.VMEM((plan.block_rows, hidden), jnp.float32)] * 2,
        compiler_params=_parameters(), interpret=interpret,
    )(*arrays)  # fmt: skip


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
    width = gates.shape[2]
    hidden = width // 4
    plan = _Plan(gates, backward=True)

    def run(*refs):
        gates_ref, before_ref, kernel_ref, d_out_ref, dc_ref, dh_ref, lengths_ref, *rest = refs
        keep_ref, mask_ref, rest = take_optional(rest, keep, mask)
        d_gates_ref, first_dc_ref, first_dh_ref, dc_now, dh_now = rest
        first = plan.first_step()

        @pl.when(pl.program_id(1) == 0)
        def _():
            dc_now[...], dh_now[...] = dc_ref[...], dh_ref[...]

        def step(m, carry):
            dc, dh = carry
            n = plan.chunk - 1 - m
            valid = first + n < lengths_ref[...]
            parts = [part.astype(jnp.float32) for part in jnp.split(gates_ref[n], 4, axis=1)]
            d_hidden = dh + d_out_ref[n].astype(jnp.float32)
            d_sums, new_dc = gate_backward(parts, before_ref[n], dc, d_hidden)
            d_step = jnp.where(valid, jnp.concatenate(d_sums, axis=1), 0).astype(d_gates_ref.dtype)
            d_gates_ref[n] = d_step
            new_dh = matmul(d_step.astype(kernel_ref.dtype), kernel_ref[...], (1, 1))
            if mask_ref is not None:
                new_dh = new_dh * mask_ref[...]
            if keep_ref is not None:
                new_dc, new_dh = new_dc * keep_ref[n], new_dh * keep_ref[n]
            return jnp.where(valid, new_dc, dc), jnp.where(valid, new_dh, dh)

        dc, dh = lax.fori_loop(0, plan.chunk, step, (dc_now[...], dh_now[...]))
        dc_now[...], dh_now[...] = dc, dh
        first_dc_ref[...], first_dh_ref[...] = dc, dh

    arrays, specs = plan.inputs(
        [(gates, "steps"), (before_c, "steps"), (kernel, "whole"), (d_outputs, "steps"),
         (dc, "rows"), (dh, "rows"), (lengths[:, None], "rows"),
         (None if keep is None else keep[:, :, None], "steps"), (mask, "rows")]
    )  # fmt: skip
    return pl.pallas_call(
        run, name="lstm_backward", grid=plan.grid, in_specs=specs,
        out_specs=[plan.steps(width), plan.rows(hidden), plan.rows(hidden)],
        out_shape=backward_shapes(gates),
        scratch_shapes=[tpu.VMEM((plan.block_rows, hidden), jnp.float32)] * 2,
        compiler_params=_parameters(), interpret=interpret,
    )(*arrays)  # fmt: skip


def vmem_bytes(hidden: int, itemsize: int) -> int:
    """About what the kernels need for a padded hidden size, the recurrent kernel twice."""
    step = _ROWS * 4 * hidden * 4
    return 2 * 4 * hidden * hidden * itemsize + _BLOCKS * max(vmem_limit() // _SHARE, step)


class _Plan:
    """The grid (rows of the batch, chunks of time) and the blocks of each kind of array."""

    def __init__(self, x_gates: jax.Array, *, backward: bool) -> None:
        time, batch, width = x_gates.shape
        self.block_rows = min(batch, _ROWS)
        self.chunk = max(1, min(time, vmem_limit() // _SHARE // (4 * self.block_rows * width)))
        self.chunks = pl.cdiv(time, self.chunk)
        self.grid = (pl.cdiv(batch, self.block_rows), self.chunks)
        self.backward = backward

    def _index(self, n: Any) -> Any:
        return self.chunks - 1 - n if self.backward else n

    def first_step(self) -> Any:
        """The number of the first step of this program's chunk."""
        return self._index(pl.program_id(1)) * self.chunk

    def steps(self, width: int) -> pl.BlockSpec:
        """Of [time, batch, width]."""
        return pl.BlockSpec(
            (self.chunk, self.block_rows, width), lambda b, n: (self._index(n), b, 0)
        )

    def rows(self, width: int) -> pl.BlockSpec:
        """Of [batch, width]."""
        return pl.BlockSpec((self.block_rows, width), lambda b, n: (b, 0))

    def inputs(self, kinds: list[tuple]) -> tuple[list, list]:
        """The arrays that are there, and their blocks."""
        arrays, specs = [], []
        for array, kind in kinds:
            if array is None:
                continue
            arrays.append(array)
            if kind == "whole":
                specs.append(pl.BlockSpec(array.shape, lambda b, n: (0, 0)))
            else:
                specs.append(getattr(self, kind)(array.shape[-1]))
        return arrays, specs


def _parameters() -> tpu.CompilerParams:
    return tpu.CompilerParams(
        dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem_limit()
    )
