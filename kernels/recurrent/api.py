"""The recurrent layers: one layer, one direction. The public functions and their equations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, ArrayLike, Float, Integer, Key, Shaped

from jaxnets.kernels import dispatch
from jaxnets.kernels.meshes import have_own_rows
from jaxnets.kernels.numerics import result_dtype
from jaxnets.kernels.recurrent import implementations
from jaxnets.kernels.recurrent.checks import (
    as_given,
    check_gru,
    check_inputs,
    check_lstm,
    check_options,
    gru_carry,
    lstm_carry,
    names_arguments,
)
from jaxnets.kernels.recurrent.padding import Given
from jaxnets.kernels.recurrent.parameters import GRUParameters, LSTMParameters
from jaxnets.kernels.recurrent.programs import Options, run_gru, run_lstm
from jaxnets.kernels.recurrent.xla_chunk_size import whole_bytes


class Recurrence(NamedTuple):
    """What a recurrent layer, or a stack of them, returns.

    Attributes:
      outputs: [batch, time, output], as the inputs are laid out.
      carry: at each row's own last step: ``(c [batch, hidden], h [batch, output])`` of an LSTM, h
        of a GRU; of a stack, for each layer a list of one a direction.

    Example:
      >>> import jax.numpy as jnp
      >>> parameters = LSTMParameters(jnp.ones((3, 32)), jnp.ones((8, 32)), jnp.zeros(32))
      >>> result = lstm(jnp.ones((2, 5, 3)), None, parameters)
      >>> result.outputs.shape, result.carry[1].shape
      ((2, 5, 8), (2, 8))
    """

    outputs: jax.Array
    carry: Any


@names_arguments
def lstm(
    inputs: Float[ArrayLike, "*steps features"],
    carry: Sequence[Float[ArrayLike, "..."]] | None,
    parameters: LSTMParameters,
    *,
    lengths: Integer[ArrayLike, "..."] | Sequence | None = None,
    segment_ids: Integer[ArrayLike, "..."] | Sequence | None = None,
    mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    masked_outputs: Literal["zero", "repeat"] = "zero",
    reverse: bool = False,
    time_first: bool = False,
    batched: bool = True,
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    remat: bool | None = None,
    truncate_steps: int | None = None,
    chunk_size: int | None = None,
    implementation: Literal["scan", "reference", "pallas", "cudnn"] | None = None,
) -> Recurrence:
    r"""A long short-term memory over padded, packed or very long sequences.

    .. math::
        i, f, g, o &= x_t W + h_{t-1} U + b \\
        c_t &= \sigma(f) \odot c_{t-1} + \sigma(i) \odot \tanh(g) \\
        h_t &= \sigma(o) \odot \tanh(c_t)

    (Hochreiter and Schmidhuber 1997; with the forget gate of Gers et al. 2000). By its parameters
    it also has a projection, :math:`h_t P` in place of :math:`h_t` (Sak et al. 2014, section 2.1);
    peepholes (Gers and Schmidhuber 2000): :math:`p_i c_{t-1}` is added to i, :math:`p_f c_{t-1}`
    to f and :math:`p_o c_t` to o; or layer normalization of :math:`x_t W`, :math:`h_{t-1} U` and
    :math:`c_t` (Ba et al. 2016, appendix, equations 20 to 22).

    Args:
      inputs: [batch, time, features], float; other axes by ``time_first`` and ``batched``.
      carry: ``(c [batch, hidden], h [batch, output])`` before the first step, or None: zeros.
      parameters: see :class:`LSTMParameters`; gates in the order i, f, g, o.
      lengths: [batch], integers in [0, time]. Past its length a row's outputs are zero and its
        carry stays; whatever stands in the padding has no effect and gets no gradient. Where it
        pays, chunks that are padding for most rows are not computed for those.
      segment_ids: [batch, time], integers, for packed rows: the carry is set to zero where the id
        is not that of the row's step before. 0 is padding, anywhere in a row, and is passed over:
        the step before is the last one with an id, in the order of running.
      mask: [batch, time], booleans, or 0 and 1: a step of False is padding, at a row's front, in
        the middle or at its end. Of lengths, segment_ids and mask one at most may be given.
      masked_outputs: of the steps that are padding: "zero", or "repeat": h as the row carries it
        there, the output before (that of the initial carry before the first).
      reverse: from each row's own last step to its first; outputs stay where their inputs are.
      time_first: inputs and outputs are [time, batch, ...], and so are segment_ids and mask.
      batched: False: one sequence. Inputs and outputs are [time, ...], the arrays of the carry have
        no batch axis, lengths is one integer, segment_ids and mask are [time].
      recurrent_dropout: the share of h that is dropped before its matmul, the same at each step of
        a row (Gal and Ghahramani 2016); kept values are scaled by 1 / (1 - share). Needs ``key``.
      remat: keep one carry a chunk for the gradient and compute the gates again, in memory that
        grows with the square root of the time; False: keep all gates, as "pallas" does; None:
        chosen by shape.
      truncate_steps: the gradient does not cross from one window of so many steps to another; the
        carry does (truncated backpropagation through time, Williams and Peng 1990). Padding counts
        in a window with lengths only.
      chunk_size: steps that are projected together; None: chosen by shape. It changes speed and
        memory.
      implementation: "scan", on XLA, has reverse-mode derivatives of first and second order;
        "reference", a plain loop, also has forward mode and higher orders. "pallas" (GPU with a
        small hidden size, and TPU) and "cudnn" (NVIDIA, float32) have the scan's derivatives, and
        not all of the options. None is "scan", on one TPU "pallas" where it can run, unless the
        tuner measured another to be faster; :func:`jaxnets.kernels.explain` says what runs, and
        why.

    Returns:
      :class:`Recurrence`: outputs, [batch, time, output], in the dtype of inputs and kernels; and
      the carry at each row's own last step, in float32 (float64 for float64). bfloat16 and float16
      are accumulated in float32. Of no row or no step: no outputs, and the carry as it was.

    Raises:
      TypeError: inputs, carry or parameters not of floats, lengths or segment_ids not of integers,
        one array as the carry, or an argument that there is none of (the likely one is named).
      ValueError: shapes that do not fit ([batch, features, time] is named), an option out of its
        range, an implementation that cannot run here, or a length out of [0, time] or a mask of
        other values than 0 and 1 where the values are known. Under ``jit`` such a row's outputs,
        carry and gradients are NaN.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> parameters = LSTMParameters(jnp.ones((3, 32)), jnp.ones((8, 32)), jnp.zeros(32))
      >>> lengths = jnp.array([11, 7, 3, 0])
      >>> outputs, (c, h) = lstm(jnp.ones((4, 11, 3)), None, parameters, lengths=lengths)
      >>> outputs.shape, h.shape
      ((4, 11, 8), (4, 8))
      >>> outputs, h = np.asarray(outputs), np.asarray(h)
      >>> bool((outputs[1, 7:] == 0).all()), bool((h[1] == outputs[1, 6]).all())
      (True, True)
    """
    hidden, output = check_lstm(parameters)
    features = parameters.input_kernel.shape[0]
    batch, time = check_inputs(inputs, features, time_first=time_first, batched=batched)
    carry = lstm_carry(carry, batch, hidden, output)
    given = as_given(lengths, segment_ids, mask, batch, time, time_first=time_first)
    options = _options(
        implementations.LSTM, inputs, parameters, given, batch, time, key, masked_outputs, reverse,
        time_first, batched, recurrent_dropout, remat, truncate_steps, chunk_size, implementation,
    )  # fmt: skip
    return Recurrence(*run_lstm(options, inputs, carry, parameters, given, key))


@names_arguments
def gru(
    inputs: Float[ArrayLike, "*steps features"],
    carry: Float[ArrayLike, "*batch hidden"] | None,
    parameters: GRUParameters,
    *,
    lengths: Integer[ArrayLike, "..."] | Sequence | None = None,
    segment_ids: Integer[ArrayLike, "..."] | Sequence | None = None,
    mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    masked_outputs: Literal["zero", "repeat"] = "zero",
    reverse: bool = False,
    time_first: bool = False,
    batched: bool = True,
    reset_after: bool = True,
    recurrent_dropout: float = 0.0,
    key: Key[Array, ""] | None = None,
    remat: bool | None = None,
    truncate_steps: int | None = None,
    chunk_size: int | None = None,
    implementation: Literal["scan", "reference"] | None = None,
) -> Recurrence:
    r"""A gated recurrent unit over padded, packed or very long sequences.

    .. math::
        r &= \sigma(x_t W_r + b_r + h_{t-1} U_r + d_r), \quad
        z = \sigma(x_t W_z + b_z + h_{t-1} U_z + d_z) \\
        n &= \tanh(x_t W_n + b_n + r \odot (h_{t-1} U_n + d_n)) \\
        h_t &= (1 - z) \odot n + z \odot h_{t-1}

    (Cho et al. 2014, with the reset after the matmul as in cuDNN, PyTorch and Keras). The carry is
    ``h [batch, hidden]``; arguments, results and errors are otherwise those of :func:`lstm`.

    Args:
      reset_after: False: the reset before the matmul, as Cho et al. have it and Keras' argument of
        that name, or ONNX' ``linear_before_reset=0``, says it:
        :math:`n = \tanh(x_t W_n + b_n + (r \odot h_{t-1}) U_n + d_n)`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> zeros = jnp.zeros(24)
      >>> parameters = GRUParameters(jnp.ones((3, 24)), jnp.ones((8, 24)), zeros, zeros)
      >>> outputs, h = gru(jnp.ones((2, 5, 3)), None, parameters)
      >>> bool((outputs[:, -1] == h).all())
      True
    """
    hidden = check_gru(parameters)
    features = parameters.input_kernel.shape[0]
    batch, time = check_inputs(inputs, features, time_first=time_first, batched=batched)
    carry = gru_carry(carry, batch, hidden)
    given = as_given(lengths, segment_ids, mask, batch, time, time_first=time_first)
    options = _options(
        implementations.GRU, inputs, parameters, given, batch, time, key, masked_outputs, reverse,
        time_first, batched, recurrent_dropout, remat, truncate_steps, chunk_size, implementation,
    )  # fmt: skip
    options = options._replace(reset_after=bool(reset_after))
    return Recurrence(*run_gru(options, inputs, carry, parameters, given, key))


def _options(
    operation: dispatch.Operation,
    inputs: Any,
    parameters: LSTMParameters | GRUParameters,
    given: Given,
    batch: tuple[int, ...],
    time: int,
    key: jax.Array | None,
    masked_outputs: str,
    reverse: bool,
    time_first: bool,
    batched: bool,
    recurrent_dropout: float,
    remat: bool | None,
    truncate_steps: int | None,
    chunk_size: int | None,
    implementation: str | None,
) -> Options:
    """The options' checks that LSTM and GRU share, and the implementation."""
    truncate_steps, chunk_size = check_options(
        recurrent_dropout, key, truncate_steps, chunk_size, masked_outputs
    )
    extras = implementations.extras_of(
        parameters, truncate_steps=truncate_steps is not None, remat=bool(remat),
        chunk_size=chunk_size is not None, segment_ids=given.segment_ids is not None,
        recurrent_dropout=recurrent_dropout > 0,
    )  # fmt: skip
    sizes = {
        "batch": batch[0] if batch else 1,
        "time": time,
        "features": parameters.input_kernel.shape[0],
        "hidden": parameters.recurrent_kernel.shape[0],
        "extras": extras,
    }
    dtype = result_dtype(inputs, *jax.tree.leaves(parameters))
    own_rows = bool(batched) and have_own_rows(inputs, int(time_first))
    chosen = dispatch.choose(operation, dtype, sizes, implementation, own_rows=own_rows)
    target = chosen.target if chosen.implementation in ("pallas", "cudnn") else None
    return Options(
        bool(time_first), bool(batched), masked_outputs == "repeat", bool(reverse),
        float(recurrent_dropout), remat, truncate_steps, chunk_size, chosen.implementation, target,
        whole_bytes(chosen.target.platform),
    )  # fmt: skip
