"""The parameters of one layer and one direction: plain tuples of arrays, so pytrees."""

from __future__ import annotations

from typing import NamedTuple

import jax


class LayerNorm(NamedTuple):
    """Scales and the one bias of a layer-normalised LSTM (the gates' bias is the layer's own)."""

    inputs: jax.Array  # [4 * hidden]
    recurrent: jax.Array  # [4 * hidden]
    memory: jax.Array  # [hidden]
    memory_bias: jax.Array  # [hidden]


class LSTMParameters(NamedTuple):
    """An LSTM layer. The gates stand in the order i, f, g, o; ``output`` is hidden, or projected.

    There is one bias, added as it is: a forget bias of 1 is a bias with ones in its second quarter.
    """

    input_kernel: jax.Array  # [features, 4 * hidden]
    recurrent_kernel: jax.Array  # [output, 4 * hidden]
    bias: jax.Array  # [4 * hidden]
    projection: jax.Array | None = None  # [hidden, output]
    peepholes: jax.Array | None = None  # [3, hidden]: of i, f and o
    layer_norm: LayerNorm | None = None


class GRUParameters(NamedTuple):
    """A GRU layer. The gates stand in the order r, z, n."""

    input_kernel: jax.Array  # [features, 3 * hidden]
    recurrent_kernel: jax.Array  # [hidden, 3 * hidden]
    bias: jax.Array  # [3 * hidden]
    recurrent_bias: jax.Array  # [3 * hidden]: inside the reset for n
