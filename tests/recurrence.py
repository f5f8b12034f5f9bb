"""LSTM and GRU by hand: what every implementation is compared with, values and gradients.

The equations and the rules of padding, a step at a time, in NumPy and float64.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import GRUParameters
from tests.tape import (
    STEP,
    array_of,
    gradients,
    normalize,
    sigmoid,
    stack,
    tanh,
    tracked,
)


def lstm_step(p, x, c, h, mask, reset_after):
    x_gates, h_gates = x @ p.input_kernel, (h * mask) @ p.recurrent_kernel
    if p.layer_norm is not None:
        scale = p.layer_norm
        x_gates = normalize(x_gates) * scale.inputs
        h_gates = normalize(h_gates) * scale.recurrent
    i, f, g, o = (x_gates + h_gates + p.bias).split(4)
    p_i, p_f, p_o = (0.0,) * 3 if p.peepholes is None else (p.peepholes[k] for k in range(3))
    c = sigmoid(f + c * p_f) * c + sigmoid(i + c * p_i) * tanh(g)
    seen = c if p.layer_norm is None else normalize(c) * scale.memory + scale.memory_bias
    h = sigmoid(o + c * p_o) * tanh(seen)
    return c, h if p.projection is None else h @ p.projection


def gru_step(p, x, h, mask, reset_after):
    masked, hidden = h * mask, h.array.shape[1]
    x_r, x_z, x_n = (x @ p.input_kernel + p.bias).split(3)
    if reset_after:
        h_r, h_z, h_n = (masked @ p.recurrent_kernel + p.recurrent_bias).split(3)
        r = sigmoid(x_r + h_r)
        n = tanh(x_n + r * h_n)
    else:
        kernel, bias = p.recurrent_kernel[:, : 2 * hidden], p.recurrent_bias[: 2 * hidden]
        h_r, h_z = (masked @ kernel + bias).split(2)
        r = sigmoid(x_r + h_r)
        n = tanh(x_n + (r * masked) @ p.recurrent_kernel[:, 2 * hidden :]
                 + p.recurrent_bias[2 * hidden :])  # fmt: skip
    z = sigmoid(x_z + h_z)
    return (n + z * (h - n),)


def dropout_mask(share, key, shape):
    """What h is multiplied by before its matmul."""
    return np.asarray(jax.random.bernoulli(key, np.float32(1 - share), shape)) / (1 - share)


def steps(
    inputs, carry, parameters, *, lengths=None, segment_ids=None, mask=None, reverse=False,
    masked_outputs="zero", truncate_steps=None, recurrent_dropout=0.0, key=None, reset_after=True,
):  # fmt: skip
    """Outputs and carry, of tracked arrays."""
    is_gru = isinstance(parameters, GRUParameters)
    state = (carry,) if is_gru else carry
    batch, time = inputs.array.shape[:2]
    if lengths is not None:
        mask = np.arange(time) < np.asarray(lengths)[:, None]
    if segment_ids is not None:
        segment_ids = np.asarray(segment_ids)
        mask = segment_ids != 0
    mask = np.ones((batch, time)) if mask is None else np.asarray(mask, float)
    places, counts = mask.cumsum(1) - 1, mask.sum(1)  # of the steps that count
    dropped = 1.0
    if recurrent_dropout:
        dropped = dropout_mask(recurrent_dropout, key, state[-1].array.shape)
    last_ids, outputs = np.full(batch, -1), {}
    for t in reversed(range(time)) if reverse else range(time):
        valid, place = mask[:, t, None], places[:, t]
        start = state
        if truncate_steps is not None:
            edge, inner = (place + 1, place + 1 < counts) if reverse else (place, place > 0)
            kept = ~((edge % truncate_steps == 0) & inner)[:, None]
            start = [s * kept + s.array * ~kept for s in start]
        if segment_ids is not None:
            ids = segment_ids[:, t]
            start = [s * ((ids == last_ids) | (last_ids == -1))[:, None] for s in start]
            last_ids = np.where(mask[:, t], ids, last_ids)
        new = (gru_step if is_gru else lstm_step)(
            parameters, inputs[:, t], *start, dropped, reset_after
        )
        outputs[t] = new[-1] * valid
        if masked_outputs == "repeat":
            outputs[t] += state[-1] * (1 - valid)
        state = tuple(n * valid + s * (1 - valid) for n, s in zip(new, state, strict=True))
    return stack([outputs[t] for t in range(time)], 1), state[0] if is_gru else state


def drawn_factors(results):
    """The cotangents of the results, each a number of few digits, which every dtype has."""
    return [
        np.round(8 * np.random.default_rng(i).normal(size=leaf.shape)) / 8
        for i, leaf in enumerate(jax.tree.leaves(results))
    ]


def by_hand(arrays, slope=np.ones_like, **options):
    """Results and gradients of ``lstm`` or ``gru`` of ``arrays``: inputs, carry, parameters."""
    arguments = tracked(arrays)
    results = steps(*arguments, **options)
    values = jax.tree.map(array_of, results)
    cotangents = [
        slope(a) * f for a, f in zip(jax.tree.leaves(values), drawn_factors(values), strict=True)
    ]
    return values, gradients(results, cotangents, arguments)


def along_by_hand(arrays, direction, **options):
    """The derivative of results and gradients along ``direction``, which is as ``arrays`` is."""
    moved = jax.tree.map(lambda a, v: np.float64(a) + STEP * 1j * v, arrays, direction)
    return jax.tree.map(lambda d: d.imag / STEP, by_hand(moved, **options))


def value_and_gradients(layer, arrays):
    """The same of ``layer(inputs, carry, parameters)``, by JAX."""
    results, pull = jax.vjp(layer, *arrays)
    leaves, tree = jax.tree.flatten(results)
    cotangents = [
        factors.astype(leaf.dtype)
        for leaf, factors in zip(leaves, drawn_factors(leaves), strict=True)
    ]
    return results, pull(jax.tree.unflatten(tree, cotangents))


def jitted(layer, **options):
    """Both, by one program of the arrays."""
    return jax.jit(functools.partial(value_and_gradients, functools.partial(layer, **options)))


def _direction(arrays):
    leaves, tree = jax.tree.flatten(arrays)
    return jax.tree.unflatten(tree, drawn_factors(leaves))


def curvature(layer, arrays):
    """The Hessian, of the sum of the results' sines by factors, times a direction."""

    def loss(*arrays):
        leaves = jax.tree.leaves(layer(*arrays))
        pairs = zip(leaves, drawn_factors(leaves), strict=True)
        return sum((jnp.sin(a) * f.astype(a.dtype)).sum() for a, f in pairs)

    def along(*arrays):
        slopes = jax.tree.leaves(jax.grad(loss, (0, 1, 2))(*arrays))
        pairs = zip(slopes, drawn_factors(slopes), strict=True)
        return sum((d * v.astype(d.dtype)).sum() for d, v in pairs)

    return jax.grad(along, (0, 1, 2))(*arrays)


def curvature_by_hand(arrays, **options):
    return along_by_hand(arrays, _direction(arrays), slope=np.cos, **options)[1]
