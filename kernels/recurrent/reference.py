"""The equations, written plainly: what the kernels are tested against.

One step of each cell, and one loop over time. Everything JAX can do with a ``lax.scan`` works here:
forward and reverse mode, second derivatives, ``vmap``, ``jit``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxnets.kernels.recurrent.parameters import GRUParameters, LSTMParameters


def lstm_update(
    x_gates: jax.Array, h_gates: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """c' = sigmoid(f) c + sigmoid(i) tanh(g);  h' = sigmoid(o) tanh(c')."""
    i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def peephole_update(
    peepholes: jax.Array, x_gates: jax.Array, h_gates: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gates i and f also see c, and o sees c'; ``peepholes [3, hidden]`` are p_i, p_f, p_o."""
    i, f, g, o = jnp.split(x_gates + h_gates, 4, axis=-1)
    p_i, p_f, p_o = peepholes[:, None]
    c_new = jax.nn.sigmoid(f + p_f * c) * c + jax.nn.sigmoid(i + p_i * c) * jnp.tanh(g)
    return c_new, jax.nn.sigmoid(o + p_o * c_new) * jnp.tanh(c_new)


def layer_norm_update(
    layer_norm: Any, x_gates: jax.Array, h_gates: jax.Array, c: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gates are s_x LN(x W) + s_h LN(h U) + b, and h' = sigmoid(o) tanh(s_c LN(c') + b_c)."""
    scales, bias = layer_norm
    scales = jax.tree.map(lambda scale: scale[None], scales)
    gates = normalize(x_gates) * scales.inputs + normalize(h_gates) * scales.recurrent + bias[None]
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(normalize(c) * scales.memory + scales.memory_bias)


def normalize(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """(x - mean) / sqrt(variance + epsilon) over the last axis."""
    centered = x - x.mean(-1, keepdims=True)
    return centered * lax.rsqrt((centered * centered).mean(-1, keepdims=True) + epsilon)


def gru_update(x_gates: jax.Array, h_gates: jax.Array, h: jax.Array) -> jax.Array:
    """n = tanh(x_n + r h_n);  h' = (1 - z) n + z h."""
    x_r, x_z, x_n = jnp.split(x_gates, 3, axis=-1)
    h_r, h_z, h_n = jnp.split(h_gates, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    n = jnp.tanh(x_n + r * h_n)
    return (1 - z) * n + z * h


def lstm_step(
    parameters: LSTMParameters,
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    recurrent_mask: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One step of an LSTM: ``inputs [batch, features]`` to ``(c, h)``."""
    if recurrent_mask is not None:
        h = h * recurrent_mask
    x_gates, h_gates = inputs @ parameters.input_kernel, h @ parameters.recurrent_kernel
    bias = parameters.bias[None]
    if parameters.layer_norm is not None:
        extra = (parameters.layer_norm, parameters.bias)
        c, h = layer_norm_update(extra, x_gates, h_gates, c)
    elif parameters.peepholes is not None:
        c, h = peephole_update(parameters.peepholes, x_gates + bias, h_gates, c)
    else:
        c, h = lstm_update(x_gates + bias, h_gates, c)
    if parameters.projection is not None:
        h = h @ parameters.projection
    return c, h


def gru_step(
    parameters: GRUParameters,
    inputs: jax.Array,
    h: jax.Array,
    recurrent_mask: jax.Array | None = None,
    reset_after: bool = True,
) -> jax.Array:
    """One step of a GRU: ``inputs [batch, features]`` to ``h``."""
    masked = h if recurrent_mask is None else h * recurrent_mask
    x_gates = inputs @ parameters.input_kernel + parameters.bias[None]
    if reset_after:
        h_gates = masked @ parameters.recurrent_kernel + parameters.recurrent_bias[None]
        return gru_update(x_gates, h_gates, h)
    (u_r, u_z, u_n), (d_r, d_z, d_n) = (
        jnp.split(array, 3, axis=-1)
        for array in (parameters.recurrent_kernel, parameters.recurrent_bias[None])
    )
    x_r, x_z, x_n = jnp.split(x_gates, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + masked @ u_r + d_r), jax.nn.sigmoid(x_z + masked @ u_z + d_z)
    n = jnp.tanh(x_n + (r * masked) @ u_n + d_n)
    return (1 - z) * n + z * h


def unroll(
    step: Callable,
    inputs: jax.Array,
    state: Any,
    *,
    lengths: jax.Array | None = None,
    resets: jax.Array | None = None,
    reverse: bool = False,
    truncate_steps: int | None = None,
) -> tuple[jax.Array, Any]:
    """``step(inputs [batch, features], state) -> (state, output)`` over the steps of a batch.

    ``inputs [batch, time, features]``; past its own length a row's state stays, and its output is
    zero; where ``resets [batch, time]`` the step starts from a state of zeros; no gradient crosses
    from one window of ``truncate_steps`` steps to another.
    Returns ``outputs [batch, time, ...]`` and the last state of each row.
    """

    time = inputs.shape[1]

    def over_time(state, xs):
        t, inputs, reset = xs
        if truncate_steps is not None:
            ends = jnp.full(inputs.shape[0], time) if lengths is None else lengths
            if reverse:
                crosses = ((t + 1) % truncate_steps == 0) & (t + 1 < ends)
            else:
                crosses = (t % truncate_steps == 0) & (t > 0) & (t < ends)
            state = jax.tree.map(
                lambda s: jnp.where(crosses[:, None], lax.stop_gradient(s), s), state
            )
        start = jax.tree.map(
            lambda s: s if reset is None else jnp.where(reset[:, None], 0, s), state
        )
        if lengths is None:
            return step(inputs, start)
        valid = (t < lengths)[:, None]
        # A step that is not taken must not spread a NaN of the padding, in either direction.
        new, output = step(jnp.where(valid, inputs, 0), start)
        new = jax.tree.map(lambda n, s: jnp.where(valid, n, s), new, state)
        return new, jnp.where(valid, output, 0)

    xs = (
        jnp.arange(time, dtype=jnp.int32),
        jnp.moveaxis(inputs, 1, 0),
        None if resets is None else jnp.moveaxis(resets, 1, 0),
    )
    state, outputs = lax.scan(over_time, state, xs, reverse=reverse)
    return jnp.moveaxis(outputs, 0, 1), state
