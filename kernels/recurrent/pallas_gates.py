"""What both persistent kernels share: a step of the LSTM, one array a gate, and their shapes.

``cells.py`` has the same for XLA, on the gates side by side, which its CPU backend runs faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def gate_forward(
    sums: Sequence[jax.Array], c: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    """``(gates, c, h)`` of the next step from the sums of the gates, i, f, g, o."""
    i, f, g, o = sums
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    return (i, f, g, o), c, o * jnp.tanh(c)


def gate_backward(
    gates: Sequence[jax.Array], before_c: jax.Array, dc: jax.Array, dh: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """``(d_sums, dc)`` before the step, from the activated gates and the memory before it."""
    i, f, g, o = gates
    tanh_c = jnp.tanh(f * before_c + i * g)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    d_sums = (
        dc * g * i * (1 - i),
        dc * before_c * f * (1 - f),
        dc * i * (1 - g * g),
        dh * tanh_c * o * (1 - o),
    )
    return d_sums, dc * f


def take_optional(
    refs: Sequence, keep: jax.Array | None, mask: jax.Array | None
) -> tuple[Any, Any, list]:
    """The references of ``keep`` and ``mask``, None where there is none, and the others."""
    refs = list(refs)
    keep_ref = None if keep is None else refs.pop(0)
    mask_ref = None if mask is None else refs.pop(0)
    return keep_ref, mask_ref, refs


def forward_shapes(x_gates: jax.Array) -> list[jax.ShapeDtypeStruct]:
    """Of outputs, gates and memories before each step, and of the last ``c`` and ``h``."""
    time, batch, width = x_gates.shape
    hidden = width // 4
    carry = jax.ShapeDtypeStruct((batch, hidden), jnp.float32)
    return [
        jax.ShapeDtypeStruct((time, batch, hidden), x_gates.dtype),
        jax.ShapeDtypeStruct(x_gates.shape, x_gates.dtype),
        jax.ShapeDtypeStruct((time, batch, hidden), jnp.float32),
        carry,
        carry,
    ]


def backward_shapes(gates: jax.Array) -> list[jax.ShapeDtypeStruct]:
    """Of the gradients of the gates, and of ``c`` and ``h`` before the first step."""
    _, batch, width = gates.shape
    carry = jax.ShapeDtypeStruct((batch, width // 4), jnp.float32)
    return [jax.ShapeDtypeStruct(gates.shape, gates.dtype), carry, carry]
