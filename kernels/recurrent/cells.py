"""What a cell computes at one step besides its matmuls, forward and backward.

A step of every cell here has one form. With ``x_gates = x W + b`` and ``h_gates = h U + d``,
[batch, gates * hidden] each, and the memory ``c``, [batch, hidden]::

    c, h = update(extra, x_gates, h_gates, c)
    saved, c, h = forward(extra, x_gates, h_gates, c)
    d_saved, dc, d_extra = backward(extra, saved, c_before, dc, dh)

``saved`` is a tuple of arrays of the gates' shape: one where only the sum of ``x_gates`` and
``h_gates`` counts, else one for each. ``d_saved`` has its shape and holds the gradients of the
gates, so that a buffer of the saved gates can be overwritten by them, step by step. Where a
cell ``resets``, what comes back to r through its matmul is added in ``xla_chunk.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets.kernels.recurrent import reference


class Cell(NamedTuple):
    """One kind of cell; static under ``jit``."""

    joint: bool  # only x_gates + h_gates counts
    update: Callable  # where nothing is saved
    forward: Callable
    backward: Callable
    resets: bool = False  # the last block of h_gates is (r h) U_n


def _lstm_update(
    _extra: Any, x_gates: jax.Array, h_gates: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return reference.lstm_update(x_gates, h_gates, c)


def _lstm_forward(
    _extra: Any, x_gates: jax.Array, h_gates: jax.Array, c: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
    gates = [jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)]
    # The activated gates are made once, for the three places that read them.
    gates = jax.lax.optimization_barrier(jnp.concatenate(gates, axis=-1))
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * c + i * g
    return (gates,), c, o * jnp.tanh(c)


def _lstm_backward(
    _extra: Any, saved: tuple[jax.Array, ...], c_before: jax.Array, dc: jax.Array, dh: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, None]:
    i, f, g, o = jnp.split(saved[0], 4, axis=-1)
    tanh_c = jnp.tanh(f * c_before + i * g)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    d_gates = jnp.concatenate(
        [
            dc * g * i * (1 - i),
            dc * c_before * f * (1 - f),
            dc * i * (1 - g * g),
            dh * tanh_c * o * (1 - o),
        ],
        axis=-1,
    )
    return (d_gates,), dc * f, None


def _gru_update(
    _extra: Any, x_gates: jax.Array, h_gates: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array]:
    h = reference.gru_update(x_gates, h_gates, h)
    return h, h


def _gru_backward(
    _extra: Any, saved: tuple[jax.Array, ...], h_before: jax.Array, dc: jax.Array, dh: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, None]:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = (jnp.split(gates, 3, axis=-1) for gates in saved)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    dh = dh + dc
    dn = dh * (1 - z) * (1 - n * n)
    dr = dn * h_n * r * (1 - r)
    dz = dh * (h_before - n) * z * (1 - z)
    d_x = jnp.concatenate([dr, dz, dn], axis=-1)
    d_h = jnp.concatenate([dr, dz, dn * r], axis=-1)
    return (d_x, d_h), dh * z, None


def _reset_before_gru_update(
    _extra: Any, x_gates: jax.Array, h_gates: jax.Array, h: jax.Array
) -> tuple[jax.Array, jax.Array]:
    _, z, n = jnp.split(x_gates + h_gates, 3, axis=-1)
    z = jax.nn.sigmoid(z)
    h = (1 - z) * jnp.tanh(n) + z * h
    return h, h


def _reset_before_gru_forward(
    _extra: Any, x_gates: jax.Array, h_gates: jax.Array, h: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, jax.Array]:
    r, z, n = jnp.split(x_gates + h_gates, 3, axis=-1)
    gates = [jax.nn.sigmoid(r), jax.nn.sigmoid(z), jnp.tanh(n)]
    gates = jax.lax.optimization_barrier(jnp.concatenate(gates, axis=-1))
    _, z, n = jnp.split(gates, 3, axis=-1)
    h = (1 - z) * n + z * h
    return (gates,), h, h


def _reset_before_gru_backward(
    _extra: Any, saved: tuple[jax.Array, ...], h_before: jax.Array, dc: jax.Array, dh: jax.Array
) -> tuple[tuple[jax.Array, ...], jax.Array, None]:
    _, z, n = jnp.split(saved[0], 3, axis=-1)
    dh = dh + dc
    dn = dh * (1 - z) * (1 - n * n)
    dz = dh * (h_before - n) * z * (1 - z)
    return (jnp.concatenate([jnp.zeros_like(dz), dz, dn], axis=-1),), dh * z, None


def _saving_gates(joint: bool, update: Callable) -> Callable:
    """The forward step of a cell that keeps the gates as they are before their activation."""

    def forward(extra, x_gates, h_gates, c):
        c, h = update(extra, x_gates, h_gates, c)
        return (x_gates + h_gates,) if joint else (x_gates, h_gates), c, h

    return forward


def _differentiated(joint: bool, update: Callable) -> Cell:
    """A cell that JAX differentiates, a step at a time."""

    def backward(extra, saved, c_before, dc, dh):
        def again(extra, saved, c):
            x_gates, h_gates = (saved[0], jnp.zeros_like(saved[0])) if joint else saved
            return update(extra, x_gates, h_gates, c)

        _, transposed = jax.vjp(again, extra, saved, c_before)
        d_extra, d_saved, dc = transposed((dc, dh))
        return d_saved, dc, d_extra

    return Cell(joint, update, _saving_gates(joint, update), backward)


LSTM = Cell(True, _lstm_update, _lstm_forward, _lstm_backward)
GRU = Cell(False, _gru_update, _saving_gates(False, _gru_update), _gru_backward)
RESET_BEFORE_GRU = Cell(
    True, _reset_before_gru_update, _reset_before_gru_forward, _reset_before_gru_backward,
    resets=True,
)  # fmt: skip
PEEPHOLE_LSTM = _differentiated(True, reference.peephole_update)
LAYER_NORM_LSTM = _differentiated(False, reference.layer_norm_update)
