r"""A matmul that never writes its product, only what an epilogue makes of it, tile by tile.

.. math:: z = l r^T, \qquad \text{outputs} = \text{epilogue}(z, \ldots)

``left [rows, depth]``, ``right [columns, depth]``. An output is either a tile of the size of ``z``,
or a reduction of it over the rows of a tile. Softmax losses keep from ``z`` (logits, classes x
tokens) a maximum and a sum of exponentials a tile; a 1x1 convolution adds bias and residual and
applies its activation. All of them are this one kernel, in three versions:

- **TPU (Mosaic)**: a sequential grid (rows, columns, depth); the product is accumulated in VMEM.
- **GPU (Triton)**: one program a tile, which loops over the depth with the product in registers.
  Programs are numbered in groups of row tiles, so that those that run together share operands in L2
  (Tillet et al. 2019, "Triton", and its matmul tutorial).
- **GPU (Mosaic GPU, Hopper and Blackwell)**: as many programs; a warpgroup copies operands to
  shared memory ahead of two that multiply.

Sizes need not be multiples of the tiles. The left operand's rows may be gathered from a table by
``left_ids``: by Triton inside the kernel, else by XLA before it (a row of a tiled table is not a
tile, and moving single rows there was not worth a kernel that nobody here can time).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxnets.kernels.numerics import matmul, result_dtype
from jaxnets.kernels.pallas import fused_matmul_tpu, fused_matmul_triton
from jaxnets.kernels.pallas.contract import (
    DEFAULT_TILES,
    Epilogue,
    Inputs,
    PallasOptions,
    Reduced,
    Tile,
)


def fused_matmul(
    call: PallasOptions,
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    *,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    name: str,
    left_ids: jax.Array | None = None,
) -> Sequence[jax.Array]:
    """The outputs of ``epilogue`` on ``left @ right.T``, accumulated in float32."""
    dtype = result_dtype(left, right)
    left, right = left.astype(dtype), right.astype(dtype)
    if call.backend != "triton" and left_ids is not None:
        left, left_ids = left.at[left_ids].get(mode="fill", fill_value=jnp.nan), None
    tiles = call.tiles or DEFAULT_TILES[call.backend]
    arguments = call.target, tiles, epilogue, outputs, name, left, right, inputs
    with jax.enable_x64(False):  # indices are int32 in a kernel, whatever the user's default
        if call.backend == "tpu":
            return fused_matmul_tpu.fused_matmul(*arguments)
        if call.backend == "triton":
            return fused_matmul_triton.fused_matmul(*arguments, left_ids)
        # Not before it is asked for: jax 0.10 lacks what it imports.
        from jaxnets.kernels.pallas import fused_matmul_mosaic_gpu

        return fused_matmul_mosaic_gpu.fused_matmul(*arguments, call.blackwell)


def reference(
    left: jax.Array,
    right: jax.Array,
    inputs: Inputs,
    *,
    epilogue: Epilogue,
    outputs: tuple[Tile | Reduced, ...],
    left_ids: jax.Array | None = None,
) -> Sequence[jax.Array]:
    """The same as one tile in plain JAX."""
    left = left if left_ids is None else left[left_ids]
    product = matmul(left, right, (1, 1))
    results = epilogue(
        product, jnp.arange(left.shape[0])[:, None], [a[:, None] for a in inputs.rows],
        [a[None] for a in inputs.columns], list(inputs.tiles),
    )  # fmt: skip
    return [r.astype(o.dtype) for r, o in zip(results, outputs, strict=True)]
