"""LSTM and GRU modules: layers, directions and dropout over the kernels' functions."""

from __future__ import annotations

from typing import Any, ClassVar, SupportsIndex

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from jaxnets.convert import stacks
from jaxnets.kernels import GRUParameters, LayerNorm, LSTMParameters
from jaxnets.kernels.checks import as_int
from jaxnets.kernels.recurrent.layers import MergeMode
from jaxnets.layers.directions import Recurrent, check_merge_mode
from jaxnets.layers.initial import draw, float_dtype


class LSTM(Recurrent):
    """LSTM layers over padded, packed or very long sequences.

    Args:
      in_features: size of an input at one step.
      hidden_features: size of the memory.
      num_layers: layers on top of each other.
      bidirectional: two directions a layer.
      merge_mode: what becomes of their outputs: "concat" (beside each other), "sum", "mul" or
        "ave".
      projection: size of the projected output and carry; None: no projection.
      peepholes: the gates see the memory.
      layer_norm: normalize the gates and the memory.
      dropout: of the outputs between layers.
      input_dropout: of the inputs of the first.
      recurrent_dropout: of h, the same at each step.
      forget_bias: of the forget gate, at the start.
      dtype: computed in, inputs and parameters cast to it; None: the wider of the two, as flax.
      param_dtype: of the parameters.
      rngs: for the parameters, and for dropout its stream ``dropout``.

    Kernels start as Glorot-uniform, recurrent kernels orthogonal.

    Raises:
      TypeError: sizes that are not integers, a dtype that is not floating point.
      ValueError: sizes below 1, a share of dropout outside [0, 1), an unknown ``merge_mode``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = LSTM(3, 8, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
      >>> inputs, lengths = jnp.ones((4, 11, 3)), jnp.array([11, 7, 3, 0])
      >>> outputs, carries = layer(inputs, lengths=lengths)
      >>> outputs.shape, carries[1][0][0].shape
      ((4, 11, 16), (4, 8))
      >>> layer(jnp.ones((4, 3, 11)))
      Traceback (most recent call last):
        ...
      ValueError: inputs must be [batch, time, features] with features = 3 as the layer declares, \
got shape (4, 3, 11); they look like [batch, features, time]: give [batch, time, features], \
jnp.swapaxes(inputs, 1, 2)

      In linen, any method by its name (with dropout, ``rngs={"dropout": key}`` or
      ``deterministic=True``):

      >>> linen = nnx.bridge.to_linen(LSTM, 3, hidden_features=8)
      >>> variables = linen.init(jax.random.key(0), inputs, lengths=lengths)
      >>> linen.apply(variables, inputs, lengths=lengths)[0].shape
      (4, 11, 8)
      >>> linen.apply(variables, nnx_method="parameters")[0][0].bias.shape
      (32,)
    """

    kind = stacks.LSTM

    def __init__(
        self,
        in_features: SupportsIndex,
        hidden_features: SupportsIndex,
        *,
        num_layers: SupportsIndex = 1,
        bidirectional: bool = False,
        merge_mode: MergeMode = "concat",
        projection: SupportsIndex | None = None,
        peepholes: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        forget_bias: float = 1.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = as_int("hidden_features", hidden_features, 1)
        param_dtype = float_dtype("param_dtype", param_dtype)
        output = hidden if projection is None else as_int("projection", projection, 1)

        def direction(features):
            gates = 4 * hidden
            norm = LayerNorm(
                jnp.ones(gates, param_dtype),
                jnp.ones(gates, param_dtype),
                jnp.ones(hidden, param_dtype),
                jnp.zeros(hidden, param_dtype),
            )
            return LSTMParameters(
                draw(nnx.initializers.glorot_uniform(), rngs, (features, gates), param_dtype),
                _orthogonal(rngs, output, hidden, 4, param_dtype),
                jnp.zeros(gates, param_dtype).at[hidden : 2 * hidden].set(forget_bias),
                None if projection is None
                else draw(nnx.initializers.glorot_uniform(), rngs, (hidden, output), param_dtype),
                jnp.zeros((3, hidden), param_dtype) if peepholes else None,
                norm if layer_norm else None,
            )  # fmt: skip

        layers = _stack(direction, in_features, output, num_layers, bidirectional, merge_mode)
        super().__init__(layers, merge_mode, dropout, input_dropout, recurrent_dropout, dtype, rngs)


class GRU(Recurrent):
    """GRU layers; arguments as those of :class:`LSTM`.

    Args:
      reset_after: the reset stands behind the recurrent matmul, as in PyTorch and in Keras by
        default; False: before it. See :func:`jaxnets.kernels.gru`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> outputs, carries = GRU(3, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 5, 3)))
      >>> bool((outputs[:, -1] == carries[0][0]).all())
      True
      >>> linen = nnx.bridge.to_linen(GRU, 3, hidden_features=8)
      >>> variables = linen.init(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> linen.apply(variables, nnx_method="parameters")[0][0].bias.shape
      (24,)
    """

    kind = stacks.GRU
    cell_defaults: ClassVar[dict[str, Any]] = {"reset_after": True}

    def __init__(
        self,
        in_features: SupportsIndex,
        hidden_features: SupportsIndex,
        *,
        num_layers: SupportsIndex = 1,
        bidirectional: bool = False,
        merge_mode: MergeMode = "concat",
        reset_after: bool = True,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        hidden = as_int("hidden_features", hidden_features, 1)
        param_dtype = float_dtype("param_dtype", param_dtype)

        def direction(features):
            return GRUParameters(
                draw(nnx.initializers.glorot_uniform(), rngs, (features, 3 * hidden), param_dtype),
                _orthogonal(rngs, hidden, hidden, 3, param_dtype),
                jnp.zeros(3 * hidden, param_dtype),
                jnp.zeros(3 * hidden, param_dtype),
            )

        self.reset_after = reset_after
        layers = _stack(direction, in_features, hidden, num_layers, bidirectional, merge_mode)
        super().__init__(layers, merge_mode, dropout, input_dropout, recurrent_dropout, dtype, rngs)


def _stack(direction, in_features, output: int, num_layers, bidirectional: bool, merge_mode: str):
    """The parameters of each layer and direction."""
    in_features = as_int("in_features", in_features, 1)
    num_layers = as_int("num_layers", num_layers, 1)
    check_merge_mode(merge_mode)
    directions = 2 if bidirectional else 1
    width = directions * output if merge_mode == "concat" else output
    sizes = [in_features] + [width] * (num_layers - 1)
    return [[direction(size) for _ in range(directions)] for size in sizes]


def _orthogonal(rngs: nnx.Rngs, output: int, hidden: int, gates: int, dtype: jnp.dtype):
    """One orthogonal matrix a gate, side by side."""
    parts = [
        draw(nnx.initializers.orthogonal(), rngs, (output, hidden), dtype) for _ in range(gates)
    ]
    return jnp.concatenate(parts, axis=1)
