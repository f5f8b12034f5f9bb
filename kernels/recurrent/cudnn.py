"""The LSTM by NVIDIA's cuDNN, through ``jax.experimental.rnn``: float32, CUDA only.

cuDNN may round the operands of its matmuls to TF32, unless ``jax_default_matmul_precision`` is
"highest". It has no batching rule (``vmap``) and no second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import rnn


def cudnn_lstm(
    inputs: jax.Array,
    c: jax.Array,
    h: jax.Array,
    input_kernel: jax.Array,
    recurrent_kernel: jax.Array,
    bias: jax.Array,
    lengths: jax.Array,
    run: Callable = rnn.lstm,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Outputs [batch, time, hidden], and the last ``c`` and ``h``, [batch, hidden].

    ``inputs [batch, time, features]``, ``input_kernel [features, 4 * hidden]``,
    ``recurrent_kernel [hidden, 4 * hidden]``, ``bias [4 * hidden]``, ``lengths [batch]`` int32.
    ``run`` has the arguments of ``jax.experimental.rnn.lstm``.
    """
    features, hidden = inputs.shape[2], h.shape[1]
    # cuDNN wants at least one step a row; what a row without any computes is put back.
    some = jnp.maximum(lengths, 1)
    outputs, last_h, last_c = run(
        inputs, h[None], c[None], flat_weights(input_kernel, recurrent_kernel, bias), some,
        features, hidden, 1, 0.0, False,
    )  # fmt: skip
    valid = jnp.arange(inputs.shape[1], dtype=jnp.int32)[None, :, None] < lengths[:, None, None]
    empty = (lengths == 0)[:, None]
    return (
        jnp.where(valid, outputs, 0),
        jnp.where(empty, c, last_c[0]),
        jnp.where(empty, h, last_h[0]),
    )


def flat_weights(
    input_kernel: jax.Array, recurrent_kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """cuDNN's one array of a layer: both kernels transposed, and two biases (one of them 0)."""
    parts = (input_kernel.T, recurrent_kernel.T, bias, jnp.zeros_like(bias))
    return jnp.concatenate([part.reshape(-1) for part in parts])
