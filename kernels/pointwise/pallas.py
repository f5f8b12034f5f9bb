"""The forward of a 1x1 convolution on Pallas: matmul, bias, residual and activation in one kernel.

The backward is the XLA path's: its slope is fused into what reads it, and two plain matmuls are
left, at which XLA's libraries are hard to beat.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from jaxnets.kernels.pallas.contract import Inputs, PallasOptions, Tile
from jaxnets.kernels.pallas.fused_matmul import fused_matmul
from jaxnets.kernels.pointwise.activations import ACTIVATIONS


def forward(
    call: PallasOptions,
    activation: str | None,
    inputs: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    residual: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [batch, positions, out], and what the activation's slope is told by.

    ``inputs [batch, positions, in]``, ``kernel [in, out]``, ``bias [out]``, ``residual`` as the
    outputs.
    """
    rows = inputs.reshape(-1, inputs.shape[2])
    keeps_sum = activation is not None and not ACTIVATIONS[activation].keeps_output
    extras = Inputs(
        columns=[] if bias is None else [bias],
        tiles=[] if residual is None else [residual.reshape(-1, kernel.shape[1])],
    )
    results = fused_matmul(
        call, rows, kernel.T, extras,
        epilogue=partial(_epilogue, activation, keeps_sum),
        outputs=(Tile(inputs.dtype),) * (1 + keeps_sum), name="pointwise_conv",
    )  # fmt: skip
    outputs, *total = (r.reshape(*inputs.shape[:2], kernel.shape[1]) for r in results)
    if activation is None:
        return outputs, None
    return outputs, total[0] if keeps_sum else outputs


def _epilogue(
    activation: str | None,
    keeps_sum: bool,
    product: jax.Array,
    _row_ids: jax.Array,
    _rows: Sequence[jax.Array],
    columns: Sequence[jax.Array],
    tiles: Sequence[jax.Array],
) -> tuple[jax.Array, ...]:
    total = product
    for extra in (*columns, *tiles):
        total = total + extra.astype(jnp.float32)
    if activation is None:
        return (total,)
    function = ACTIVATIONS[activation].in_kernel or ACTIVATIONS[activation].function
    outputs = function(total)
    return (outputs, total) if keeps_sum else (outputs,)
