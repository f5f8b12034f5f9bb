"""The recurrent layers: one layer, one direction. The public functions and their equations."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from jaxnets.kernels import dispatch
from jaxnets.kernels.lstm import arguments, cells, chunks, implementations, reference
from jaxnets.kernels.lstm.accelerated import accelerated_lstm
from jaxnets.kernels.lstm.parameters import GRUParameters, LSTMParameters
from jaxnets.kernels.lstm.scan import Marks, Options, Weights, recur
from jaxnets.kernels.lstm.stages import row_counts


def lstm(
    inputs: Float[Array, "batch time features"],
    carry: tuple[Float[Array, "batch hidden"], Float[Array, "batch output"]] | None,
    parameters: LSTMParameters,
    *,
    lengths: Integer[Array, " batch"] | None = None,
    segment_ids: Integer[Array, "batch time"] | None = None,
    reverse: bool = False,
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    recompute: bool | None = None,
    truncate: int | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[
    Float[Array, "batch time output"],
    tuple[Float[Array, "batch hidden"], Float[Array, "batch output"]],
]:
    r"""A long short-term memory over padded, packed or very long sequences.

    .. math::
        i, f, g, o &= x_t W + h_{t-1} U + b \\
        c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g) \\
        h_t &= \sigma(o) \odot \tanh(c_t)

    (Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000). By its parameters
    it also has a projection, :math:`h_t P` in place of :math:`h_t` (Sak et al. 2014, section 2.1);
    peepholes (Gers and Schmidhuber 2000): :math:`p_i c_{t-1}` is added to i, :math:`p_f c_{t-1}`
    to f and :math:`p_o c_t` to o; or layer normalisation of :math:`x_t W`, :math:`h_{t-1} U` and
    :math:`c_t` (Ba et al. 2016, appendix, equations 20 to 22).

    Args:
      inputs: [batch, time, features], float.
      carry: ``(c [batch, hidden], h [batch, output])`` before the first step, or None: zeros.
      parameters: see :class:`LSTMParameters`; gates in the order i, f, g, o.
      lengths: [batch], integers in [0, time]. Past its length a row's outputs are zero and its
        carry stays; whatever stands in the padding has no effect and gets no gradient. Rows are
        sorted inside, and chunks that are padding for most rows are not computed for those.
      segment_ids: [batch, time], for packed rows: where the id changes the carry is set to zero.
        0 is padding and stands only at a row's end. Not together with ``lengths``.
      reverse: from each row's own last step to its first; outputs stay where their inputs are.
      recurrent_dropout: the share of h that is dropped before its matmul, the same at each step of
        a row (Gal and Ghahramani 2016); kept values are scaled by 1 / (1 - share). Needs ``key``.
      recompute: keep one carry a chunk for the gradient and compute the gates again, in memory that
        grows with the square root of the time; False: keep all gates; None: chosen by shape.
      truncate: the gradient does not cross from one window of so many steps to another; the carry
        does (truncated backpropagation through time, Williams and Peng 1990).
      chunk: steps that are projected together; None: chosen by shape. It changes speed and memory.
      implementation: "scan", on XLA, has reverse-mode derivatives of first and second order;
        "reference", a plain loop, also has forward mode and higher orders. "pallas" (GPU with a
        small hidden size, and TPU) and "cudnn" (NVIDIA, float32) have first derivatives only and
        not all of the options. None is "scan", unless the tuner measured another to be faster;
        :func:`jaxnets.kernels.explain` says what can run.

    Returns:
      Outputs, [batch, time, output], in the dtype of inputs and kernels; and the carry at each
      row's own last step, in float32 (float64 for float64). bfloat16 and float16 are accumulated in
      float32.

    Raises:
      TypeError: inputs, carry or parameters not of floats, lengths or segment_ids not of integers.
      ValueError: shapes that do not fit ([batch, features, time] is named), an option out of its
        range, an implementation that cannot run here, or a length out of range where its value is
        known at trace time. Under ``jit`` lengths are clipped to [0, time].

    Example:
      >>> import jax, jax.numpy as jnp
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), jnp.zeros(8))
      >>> lengths = jnp.array([4, 1])
      >>> outputs, (c, h) = lstm(jnp.ones((2, 4, 3)), None, parameters, lengths=lengths)
      >>> outputs.shape, h.shape
      ((2, 4, 2), (2, 2))
      >>> bool((outputs[1, 1:] == 0).all()), bool((h[1] == outputs[1, 0]).all())
      (True, True)
    """
    hidden, output = arguments.check_lstm(parameters)
    arguments.check_inputs(inputs, parameters.input_kernel.shape[0])
    if carry is not None:
        arguments.check_carry("carry[0]", carry[0], (inputs.shape[0], hidden))
        arguments.check_carry("carry[1]", carry[1], (inputs.shape[0], output))
    call = _call(
        implementations.LSTM, inputs, parameters, lengths, segment_ids, key, reverse,
        recurrent_dropout, recompute, truncate, chunk, implementation,
    )  # fmt: skip
    return _lstm(call, inputs, carry, parameters, lengths, segment_ids, key)


def gru(
    inputs: Float[Array, "batch time features"],
    carry: Float[Array, "batch hidden"] | None,
    parameters: GRUParameters,
    *,
    lengths: Integer[Array, " batch"] | None = None,
    segment_ids: Integer[Array, "batch time"] | None = None,
    reverse: bool = False,
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    recompute: bool | None = None,
    truncate: int | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "batch time hidden"], Float[Array, "batch hidden"]]:
    r"""A gated recurrent unit over padded, packed or very long sequences.

    .. math::
        r &= \sigma(x_t W_r + b_r + h_{t-1} U_r + d_r), \quad
        z = \sigma(x_t W_z + b_z + h_{t-1} U_z + d_z) \\
        n &= \tanh(x_t W_n + b_n + r \odot (h_{t-1} U_n + d_n)) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    (Cho et al. 2014, with the reset after the matmul as in cuDNN, PyTorch and Keras). The carry is
    ``h [batch, hidden]``; arguments, results and errors are otherwise those of :func:`lstm`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> zeros = jnp.zeros(6)
      >>> parameters = GRUParameters(jnp.ones((3, 6)), jnp.ones((2, 6)), zeros, zeros)
      >>> outputs, h = gru(jnp.ones((1, 4, 3)), None, parameters)
      >>> bool((outputs[:, -1] == h).all())
      True
    """
    hidden = arguments.check_gru(parameters)
    arguments.check_inputs(inputs, parameters.input_kernel.shape[0])
    if carry is not None:
        arguments.check_carry("carry", carry, (inputs.shape[0], hidden))
    call = _call(
        implementations.GRU, inputs, parameters, lengths, segment_ids, key, reverse,
        recurrent_dropout, recompute, truncate, chunk, implementation,
    )  # fmt: skip
    return _gru(call, inputs, carry, parameters, lengths, segment_ids, key)


class _Call(NamedTuple):
    """What is static of a call."""

    reverse: bool
    recurrent_dropout: float
    recompute: bool | None
    truncate: int | None
    chunk: int | None
    implementation: str
    target: dispatch.Target | None  # of "pallas" and "cudnn"


def _call(
    operation, inputs, parameters, lengths, segment_ids, key, reverse, recurrent_dropout,
    recompute, truncate, chunk, implementation,
):  # fmt: skip
    """The checks that LSTM and GRU share, and the implementation."""
    arguments.check_options(recurrent_dropout, key, truncate, chunk)
    if lengths is not None and segment_ids is not None:
        raise ValueError("lengths must be left out with segment_ids, which mark padding by 0")
    if lengths is not None:
        arguments.check_lengths(lengths, *inputs.shape[:2])
    if segment_ids is not None:
        arguments.check_segment_ids(segment_ids, *inputs.shape[:2])
    extras = implementations.extras_of(
        parameters, truncate=truncate is not None, recompute=bool(recompute),
        chunk=chunk is not None, segment_ids=segment_ids is not None,
        recurrent_dropout=recurrent_dropout > 0,
    )  # fmt: skip
    batch, time, features = inputs.shape
    sizes = {
        "batch": batch, "time": time, "features": features,
        "hidden": parameters.recurrent_kernel.shape[0],
        "extras": extras,
    }  # fmt: skip
    dtype = jnp.result_type(inputs, *jax.tree.leaves(parameters))
    chosen = dispatch.choose(operation, dtype, sizes, implementation)
    target = chosen.target if chosen.implementation in ("pallas", "cudnn") else None
    return _Call(
        reverse, recurrent_dropout, recompute, truncate, chunk, chosen.implementation, target
    )


@partial(jax.jit, static_argnums=0)
@jax.named_scope("lstm")
def _lstm(call: _Call, inputs, carry, parameters: LSTMParameters, lengths, segment_ids, key):
    inputs, parameters, accumulator = _common_dtype(inputs, parameters)
    batch, output = inputs.shape[0], parameters.recurrent_kernel.shape[0]
    if carry is None:
        hidden = parameters.bias.shape[0] // 4
        carry = (jnp.zeros((batch, hidden)), jnp.zeros((batch, output)))
    c, h = (array.astype(accumulator) for array in carry)
    marks = _marks(call, inputs, output, lengths, segment_ids, key, accumulator)
    if call.implementation == "reference":

        def step(x, state):
            c, h = reference.lstm_step(parameters, x, *state, marks.recurrent_mask)
            return (c, h), h

        return _reference(call, step, inputs, (c, h), marks)
    if call.target is not None:
        outputs, c, h = accelerated_lstm(
            call.implementation, call.target, parameters, inputs, c, h, marks, reverse=call.reverse
        )
        return outputs, (c, h)
    weights = Weights(
        parameters.input_kernel, parameters.recurrent_kernel, parameters.bias, None,
        parameters.projection, parameters.peepholes,
    )  # fmt: skip
    cell = cells.LSTM if parameters.peepholes is None else cells.PEEPHOLE_LSTM
    if parameters.layer_norm is not None:
        cell = cells.LAYER_NORM_LSTM
        weights = weights._replace(bias=None, extra=(parameters.layer_norm, parameters.bias))
    outputs, c, h = _scan(call, cell, weights, inputs, c, h, marks)
    return outputs, (c, h)


@partial(jax.jit, static_argnums=0)
@jax.named_scope("gru")
def _gru(call: _Call, inputs, carry, parameters: GRUParameters, lengths, segment_ids, key):
    inputs, parameters, accumulator = _common_dtype(inputs, parameters)
    batch, hidden = inputs.shape[0], parameters.recurrent_kernel.shape[0]
    h = jnp.zeros((batch, hidden)) if carry is None else carry
    h = h.astype(accumulator)
    marks = _marks(call, inputs, hidden, lengths, segment_ids, key, accumulator)
    if call.implementation == "reference":

        def step(x, h):
            h = reference.gru_step(parameters, x, h, marks.recurrent_mask)
            return h, h

        return _reference(call, step, inputs, h, marks)
    weights = Weights(*parameters, None, None)
    outputs, _, h = _scan(call, cells.GRU, weights, inputs, h, h, marks)
    return outputs, h


def _common_dtype(inputs, parameters):
    dtype = jnp.result_type(inputs, *jax.tree.leaves(parameters))
    cast = jax.tree.map(lambda array: array.astype(dtype), (inputs, parameters))
    return *cast, jnp.promote_types(dtype, jnp.float32)


def _marks(call: _Call, inputs, output, lengths, segment_ids, key, accumulator) -> Marks:
    batch, time = inputs.shape[:2]
    resets, mask = None, None
    if lengths is not None:
        lengths = jnp.clip(lengths, 0, time).astype(jnp.int32)
    if segment_ids is not None:
        lengths = (segment_ids != 0).sum(1, dtype=jnp.int32)
        changes = segment_ids[:, 1:] != segment_ids[:, :-1]
        never = jnp.zeros((batch, 1), bool)
        if call.reverse:  # a row's first step backwards is its own last one, and no reset
            resets = jnp.concatenate([changes & (segment_ids[:, 1:] != 0), never], axis=1)
        else:
            resets = jnp.concatenate([never, changes], axis=1)
    if call.recurrent_dropout:
        kept = jax.random.bernoulli(key, jnp.float32(1 - call.recurrent_dropout), (batch, output))
        mask = kept.astype(accumulator) / (1 - call.recurrent_dropout)
    return Marks(lengths, resets, mask)


def _reference(call: _Call, step, inputs, state, marks: Marks):
    outputs, state = reference.unroll(
        step, inputs.astype(jax.tree.leaves(state)[0].dtype), state, lengths=marks.lengths,
        resets=marks.resets, reverse=call.reverse, truncate=call.truncate,
    )  # fmt: skip
    return outputs.astype(inputs.dtype), state


def _scan(call: _Call, cell, weights: Weights, inputs, c, h, marks: Marks):
    (batch, time, features), gates = inputs.shape, weights.input_kernel.shape[1]
    has_lengths = marks.lengths is not None
    recompute, chunk = call.recompute, call.truncate or call.chunk
    if recompute is None:
        width = features + h.shape[1]
        recompute = chunks.recomputes(batch, time, gates, width, lengths=has_lengths)
    elif recompute and not has_lengths:
        chunk = chunk or chunks.square_root(batch, time)
    chunk = min(chunk or chunks.steps(batch, time, gates, lengths=has_lengths), time)
    short_chunk = chunk
    if call.chunk is None and not has_lengths:
        short_chunk = chunks.without_gradient(time, chunk)
    options = Options(
        cell, call.reverse, chunk, short_chunk, row_counts(batch) if has_lengths else (batch,),
        "carries" if recompute else "gates", call.truncate,
    )  # fmt: skip
    return recur(options, weights, inputs, c, h, marks)
