"""The LSTM's recurrence on Pallas, its recurrent kernel kept on chip from step to step.

The inputs are projected beforehand by one large matmul; the kernels do what is left of a step: the
recurrent matmul and the gates. Forward they keep the activated gates and the memory before each
step; on the way back they compute only the gradients of the gates, and the recurrent kernel's
gradient follows as one large matmul (adding it up inside the loop is what FlashRNN's Triton kernel
does, and it does not get beyond 64 hidden units).

Time comes first, [time, batch, ...], and runs forward: the caller flips. The hidden size is padded
(``padded_hidden``, ``pad_units``) to what the hardware wants; padded units stay 0, since their
gates are those of zeros: c = f 0 + i tanh(0) = 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.recurrent import pallas_gpu, pallas_tpu


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def persistent_lstm(
    target: Target,
    x_gates: jax.Array,
    kernel: jax.Array,
    c: jax.Array,
    h: jax.Array,
    lengths: jax.Array,
    keep: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs [time, batch, hidden], and the last ``c``, ``h``.

    Args:
      target: the platform.
      x_gates: [time, batch, 4 * hidden], the projected inputs with their bias; gates i, f, g, o.
      kernel: [hidden, 4 * hidden].
      c: [batch, hidden], float32.
      h: [batch, hidden], float32.
      lengths: [batch] int32; beyond it outputs are 0 and the carry stays.
      keep: [time, batch] float32, 0 where a step starts from zeros, or None.
      mask: [batch, hidden] float32, times h before its matmul, or None.
    """
    return _forward(target, x_gates, kernel, c, h, lengths, keep, mask)[0]


def _platform(target: Target) -> ModuleType:
    return pallas_tpu if target.platform == "tpu" else pallas_gpu


def _forward(
    target: Target,
    x_gates: jax.Array,
    kernel: jax.Array,
    c: jax.Array,
    h: jax.Array,
    lengths: jax.Array,
    keep: jax.Array | None,
    mask: jax.Array | None,
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple]:
    with jax.enable_x64(False):  # indices are int32 in a kernel, whatever the user's default
        outputs, gates, before_c, last_c, last_h = _platform(target).forward(
            target.interpret, x_gates, kernel, c, h, lengths, keep, mask
        )
    residuals = (kernel, h, lengths, keep, mask, outputs, gates, before_c)
    return (outputs, last_c, last_h), residuals


def _backward(
    target: Target, residuals: tuple, cotangents: Sequence[jax.Array]
) -> tuple[jax.Array | None, ...]:
    kernel, h, lengths, keep, mask, outputs, gates, before_c = residuals
    d_outputs, dc, dh = cotangents
    with jax.enable_x64(False):
        d_gates, dc, dh = _platform(target).backward(
            target.interpret, gates, before_c, kernel, d_outputs, dc, dh, lengths, keep, mask
        )
    before_h = jnp.concatenate([h[None].astype(outputs.dtype), outputs[:-1]])
    factors = None if keep is None else keep[:, :, None], None if mask is None else mask[None]
    for factor in factors:
        if factor is not None:
            before_h = before_h * factor.astype(before_h.dtype)
    d_kernel = lax.dot_general(
        before_h, d_gates, (((0, 1), (0, 1)), ((), ())), preferred_element_type=jnp.float32
    )
    return d_gates, d_kernel.astype(kernel.dtype), dc, dh, None, None, None


persistent_lstm.defvjp(_forward, _backward)


def padded_hidden(platform: str, hidden: int) -> int:
    """The hidden size that the kernels compute with."""
    if platform == "tpu":
        return -(-hidden // 128) * 128  # gates are whole registers
    return max(16, 1 << (hidden - 1).bit_length())  # Triton's blocks are powers of two


def pad_units(array: jax.Array, axis: int, hidden: int, padded: int) -> jax.Array:
    """``array`` with zeros for the padded units of an axis of ``hidden`` or ``4 * hidden``."""
    axis %= array.ndim
    groups = array.shape[axis] // hidden
    split = array.reshape(*array.shape[:axis], groups, hidden, *array.shape[axis + 1 :])
    widths = [(0, 0)] * split.ndim
    widths[axis + 1] = (0, padded - hidden)
    shape = (*array.shape[:axis], groups * padded, *array.shape[axis + 1 :])
    return jnp.pad(split, widths).reshape(shape)
