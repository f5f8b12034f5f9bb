"""The parameters of one layer and one direction: plain tuples of arrays, so pytrees."""

from __future__ import annotations

from typing import NamedTuple

import jax


class LayerNorm(NamedTuple):
    """Scales and the one bias of a layer-normalized LSTM (the gates' bias is the layer's own).

    Attributes:
      inputs: [4 * hidden], of what comes of the inputs.
      recurrent: [4 * hidden], of what comes of h.
      memory: [hidden], of c.
      memory_bias: [hidden].

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import lstm
      >>> norm = LayerNorm(jnp.ones(32), jnp.ones(32), jnp.ones(8), jnp.zeros(8))
      >>> parameters = LSTMParameters(
      ...     jnp.ones((3, 32)), jnp.ones((8, 32)), jnp.zeros(32), layer_norm=norm
      ... )
      >>> lstm(jnp.ones((2, 5, 3)), None, parameters)[0].shape
      (2, 5, 8)
    """

    inputs: jax.Array
    recurrent: jax.Array
    memory: jax.Array
    memory_bias: jax.Array


class LSTMParameters(NamedTuple):
    """An LSTM layer. The gates stand in the order i, f, g, o; ``output`` is hidden, or projected.

    There is one bias, added as it is: a forget bias of 1 is a bias with ones in its second quarter.
    Shapes are checked by :func:`jaxnets.kernels.lstm`.

    Attributes:
      input_kernel: [features, 4 * hidden].
      recurrent_kernel: [output, 4 * hidden].
      bias: [4 * hidden].
      projection: [hidden, output], or None.
      peepholes: [3, hidden], of i, f and o; or None.
      layer_norm: a :class:`LayerNorm`, or None.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import lstm
      >>> forget = jnp.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])  # i, f, g, o
      >>> parameters = LSTMParameters(jnp.ones((3, 8)), jnp.ones((2, 8)), forget)
      >>> lstm(jnp.ones((2, 5, 3)), None, parameters)[0].shape
      (2, 5, 2)
    """

    input_kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array
    projection: jax.Array | None = None
    peepholes: jax.Array | None = None
    layer_norm: LayerNorm | None = None


class GRUParameters(NamedTuple):
    """A GRU layer. The gates stand in the order r, z, n.

    Shapes are checked by :func:`jaxnets.kernels.gru`.

    Attributes:
      input_kernel: [features, 3 * hidden].
      recurrent_kernel: [hidden, 3 * hidden].
      bias: [3 * hidden].
      recurrent_bias: [3 * hidden], inside the reset for n.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxnets.kernels import gru
      >>> zeros = jnp.zeros(24)
      >>> parameters = GRUParameters(jnp.ones((3, 24)), jnp.ones((8, 24)), zeros, zeros)
      >>> gru(jnp.ones((2, 5, 3)), None, parameters)[0].shape
      (2, 5, 8)
    """

    input_kernel: jax.Array
    recurrent_kernel: jax.Array
    bias: jax.Array
    recurrent_bias: jax.Array
