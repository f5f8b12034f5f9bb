"""LSTM and GRU modules: layers, directions and dropout over the kernels' functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Integer

from jaxnets.kernels import GRUParameters, LayerNorm, LSTMParameters, recurrent_layers
from jaxnets.kernels.lstm.arguments import check_inputs


class Direction(nnx.Module):
    """The parameters of one layer and one direction, by the names of their tuple."""

    def __init__(self, parameters: LSTMParameters | GRUParameters):
        self.kind = type(parameters)
        norm = getattr(parameters, "layer_norm", None)
        self.layer_norm = None if norm is None else nnx.Dict(_params(norm))
        for name, param in _params(parameters).items():
            if name != "layer_norm":
                setattr(self, name, param)

    def parameters(self) -> LSTMParameters | GRUParameters:
        """The tuple that the kernels take."""
        fields = {
            name: getattr(self, name)[...]
            for name in self.kind._fields
            if name != "layer_norm" and getattr(self, name, None) is not None
        }
        if self.layer_norm is not None:
            fields["layer_norm"] = LayerNorm(**{n: p[...] for n, p in self.layer_norm.items()})
        return self.kind(**fields)


def _params(fields) -> dict[str, nnx.Param]:
    return {
        name: nnx.Param(array)
        for name, array in fields._asdict().items()
        if isinstance(array, jax.Array)
    }


class _Recurrent(nnx.Module):
    """What LSTM and GRU share: layers of directions, and one call of ``recurrent_layers``."""

    def __init__(
        self, layers: Sequence[Sequence[LSTMParameters | GRUParameters]], dropout: float,
        recurrent_dropout: float, rngs: nnx.Rngs | None,
    ):  # fmt: skip
        self.features = layers[0][0].input_kernel.shape[0]
        self.layers = nnx.List(
            [nnx.List([Direction(direction) for direction in layer]) for layer in layers]
        )
        self.dropout, self.recurrent_dropout = dropout, recurrent_dropout
        self.deterministic = False
        wants_key = dropout or recurrent_dropout
        self.rngs = rngs.dropout.fork() if wants_key and rngs is not None else None

    def parameters(self) -> list[list[Any]]:
        """The parameters as :func:`jaxnets.kernels.recurrent_layers` takes them."""
        return [[direction.parameters() for direction in layer] for layer in self.layers]

    def __call__(
        self,
        inputs: Float[Array, "batch time features"],
        carries: Sequence[Sequence] | None = None,
        *,
        lengths: Integer[Array, " batch"] | None = None,
        segment_ids: Integer[Array, "batch time"] | None = None,
        **options,
    ) -> tuple[Float[Array, "batch time output"], list[list]]:
        """Outputs and the last carry of each layer and direction.

        ``options`` are those of :func:`jaxnets.kernels.lstm`; dropout is off after ``eval()``.
        """
        check_inputs(inputs, self.features)
        drops = not self.deterministic and (self.dropout > 0 or self.recurrent_dropout > 0)
        return recurrent_layers(
            inputs, carries, self.parameters(), lengths=lengths, segment_ids=segment_ids,
            dropout=self.dropout if drops else 0.0,
            recurrent_dropout=self.recurrent_dropout if drops else 0.0,
            key=self.rngs() if drops and self.rngs is not None else None, **options,
        )  # fmt: skip


class LSTM(_Recurrent):
    """LSTM layers over padded, packed or very long sequences.

    Args:
      features: size of an input at one step.
      hidden: size of the memory.
      num_layers: layers on top of each other.
      bidirectional: two directions a layer, their outputs beside each other.
      projection: size of the projected output and carry; None: no projection.
      peepholes: the gates see the memory.
      layer_norm: normalise the gates and the memory.
      dropout: of the outputs between layers; recurrent_dropout: of h, the same at each step.
      forget_bias: of the forget gate, at the start.
      dtype: of the parameters.
      rngs: for the parameters, and for dropout its stream ``dropout``.

    Kernels start as Glorot-uniform, recurrent kernels orthogonal.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> layer = LSTM(3, 8, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
      >>> outputs, carries = layer(jnp.ones((2, 7, 3)), lengths=jnp.array([7, 2]))
      >>> outputs.shape, carries[1][0][0].shape
      ((2, 7, 16), (2, 8))
      >>> layer(jnp.ones((2, 3, 7)))
      Traceback (most recent call last):
        ...
      ValueError: inputs must be [batch, time, features] with features = 3 as the layer declares, \
got shape (2, 3, 7); they look like [batch, features, time]: give [batch, time, features], \
jnp.swapaxes(inputs, 1, 2)
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        projection: int | None = None,
        peepholes: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        forget_bias: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        output = hidden if projection is None else projection

        def direction(features):
            ones, gates = jnp.ones(4 * hidden, dtype), 4 * hidden
            return LSTMParameters(
                _glorot(rngs, (features, gates), dtype),
                _orthogonal(rngs, output, hidden, 4, dtype),
                jnp.zeros(gates, dtype).at[hidden : 2 * hidden].set(forget_bias),
                None if projection is None else _glorot(rngs, (hidden, output), dtype),
                jnp.zeros((3, hidden), dtype) if peepholes else None,
                LayerNorm(ones, ones, ones[:hidden], jnp.zeros(hidden, dtype))
                if layer_norm
                else None,
            )

        layers = _stack(direction, features, output, num_layers, bidirectional)
        super().__init__(layers, dropout, recurrent_dropout, rngs)


class GRU(_Recurrent):
    """GRU layers; arguments as those of :class:`LSTM`.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> outputs, carries = GRU(3, 8, rngs=nnx.Rngs(0))(jnp.ones((2, 7, 3)))
      >>> bool((outputs[:, -1] == carries[0][0]).all())
      True
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        def direction(features):
            zeros = jnp.zeros(3 * hidden, dtype)
            return GRUParameters(
                _glorot(rngs, (features, 3 * hidden), dtype),
                _orthogonal(rngs, hidden, hidden, 3, dtype),
                zeros,
                zeros,
            )

        layers = _stack(direction, features, hidden, num_layers, bidirectional)
        super().__init__(layers, dropout, recurrent_dropout, rngs)


def _stack(direction, features, output, num_layers, bidirectional):
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    directions = 2 if bidirectional else 1
    sizes = [features] + [directions * output] * (num_layers - 1)
    return [[direction(size) for _ in range(directions)] for size in sizes]


def _glorot(rngs, shape, dtype):
    return nnx.initializers.glorot_uniform()(rngs.params(), shape, dtype)


def _orthogonal(rngs, output, hidden, blocks, dtype):
    parts = [
        nnx.initializers.orthogonal()(rngs.params(), (output, hidden), dtype) for _ in range(blocks)
    ]
    return jnp.concatenate(parts, axis=1)
