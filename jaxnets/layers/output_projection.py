"""The output layer of a model over many classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxnets.convert.tables import dense_from_keras, table_from_torch
from jaxnets.kernels import (
    LabelRank,
    LogProbs,
    LossAndLogSumExp,
    Samples,
    TopK,
    linear_label_rank,
    linear_log_probs,
    linear_softmax_cross_entropy,
    linear_top_k,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.checks import as_floats, as_int
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.layers.initial import as_computed, computing_dtype, draw, float_dtype


class OutputProjection(nnx.Module):
    """A linear layer from ``features`` to ``vocab_size`` classes, with its losses.

    Args:
      features: size of the hidden state.
      vocab_size: how many classes.
      use_bias: add a bias for each class.
      tied: an ``nnx.Embed`` of ``vocab_size`` by ``features`` whose table is used (and trained) as
        the weights (Press and Wolf 2017); None: weights of its own.
      dtype: computed in, hidden states and parameters cast to it; None: the wider of the two, as
        flax. The exact loss casts the table tile by tile; one over samples casts hidden states
        only: to cast a table costs all of it.
      param_dtype: of the parameters.
      rngs: for the weights; not needed when tied.

    Raises:
      TypeError: ``tied`` is no ``nnx.Embed``, or a size no integer.
      ValueError: ``tied`` has another shape, ``rngs`` is missing, or a size is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.kernels import LogUniform, draw_samples
      >>> head = OutputProjection(8, 1000, rngs=nnx.Rngs(0))
      >>> hidden, labels = jnp.ones((2, 3, 8)), jnp.zeros((2, 3), jnp.int32)
      >>> samples = draw_samples(LogUniform(1000), jax.random.key(0), 64, labels)
      >>> head.loss(hidden, labels, samples=samples).shape, head.exact_loss(hidden, labels).shape
      ((), ())
      >>> head.top_k(hidden, 5).ids.shape
      (2, 3, 5)

      In linen, any method by its name; called, it gives the logits:

      >>> linen = nnx.bridge.to_linen(OutputProjection, 8, vocab_size=1000)
      >>> variables = linen.init(jax.random.key(0), hidden)
      >>> linen.apply(variables, hidden, labels, samples=samples, nnx_method="loss").shape
      ()
      >>> linen.apply(variables, hidden, 5, nnx_method="top_k").ids.shape
      (2, 3, 5)
    """

    def __init__(
        self,
        features: SupportsIndex,
        vocab_size: SupportsIndex,
        *,
        use_bias: bool = True,
        tied: nnx.Embed | None = None,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        features, vocab_size = as_int("features", features, 1), as_int("vocab_size", vocab_size, 1)
        self.features, self.vocab_size = features, vocab_size
        self.dtype = computing_dtype(dtype)
        param_dtype = float_dtype("param_dtype", param_dtype)
        if tied is not None:
            if not isinstance(tied, nnx.Embed):
                raise TypeError(
                    "tied must be the nnx.Embed of the inputs, whose table is [vocab, features], "
                    f"got {type(tied).__name__}"
                )
            if tied.embedding.shape != (vocab_size, features):
                raise ValueError(
                    f"tied must embed [vocab, features] = {(vocab_size, features)}, "
                    f"got {tied.embedding.shape}"
                )
            self.weight = tied.embedding
        elif rngs is None:
            raise ValueError("rngs must be given where the weights are not tied")
        else:
            initial = nnx.initializers.normal(features**-0.5)
            self.weight = nnx.Param(draw(initial, rngs, (vocab_size, features), param_dtype))
        self.bias = nnx.Param(jnp.zeros(vocab_size, param_dtype)) if use_bias else None
        self.features_first = False

    @classmethod
    def from_linear(cls, linear: nnx.Linear) -> OutputProjection:
        """The head ``linear`` with losses: its own parameters, of which no copy is made.

        Args:
          linear: from the hidden state's features to one logit a class; its kernel is [features,
            vocab], and stays so.

        Raises:
          TypeError: what is no ``nnx.Linear``.

        Example:
          >>> import jax.numpy as jnp
          >>> from flax import nnx
          >>> linear = nnx.Linear(8, 1000, rngs=nnx.Rngs(0))
          >>> head = OutputProjection.from_linear(linear)
          >>> head.top_k(jnp.ones((2, 3, 8)), 5).ids.shape, head.weight is linear.kernel
          ((2, 3, 5), True)
        """
        if not isinstance(linear, nnx.Linear):
            raise TypeError(f"linear must be an nnx.Linear, got {type(linear).__name__}")
        return cls._holding(linear.kernel, linear.bias, True, linear.dtype)

    @classmethod
    def from_torch(
        cls, source: Any, *, prefix: str | None = None, dtype: DTypeLike | None = None
    ) -> OutputProjection:
        """Of an ``nn.Linear``, whose weight [out, in] is a table [vocab, features].

        Args:
          source: the module, its ``state_dict()`` or a larger model's; of bfloat16 too.
          prefix: of the module in a larger model, as "decoder"; None: the only weight there is.
          dtype: as in the class.

        Raises:
          TypeError: weights that are not floating point.
          ValueError: no such weight or several, or shapes that do not fit.

        Example:
          >>> import numpy as np
          >>> state = {"decoder.weight": np.ones((1000, 8)), "decoder.bias": np.zeros(1000)}
          >>> head = OutputProjection.from_torch(state, prefix="decoder")
          >>> head.vocab_size, sorted(head.to_torch(prefix="decoder"))
          (1000, ['decoder.bias', 'decoder.weight'])
        """
        weight, bias = table_from_torch(source, prefix)
        return cls._holding(*_copied(weight, bias), False, dtype)

    @classmethod
    def from_keras(cls, source: Any, *, dtype: DTypeLike | None = None) -> OutputProjection:
        """Of a Keras ``Dense``, whose kernel stays [features, vocab].

        Args:
          source: the layer, without an activation or with the softmax, which is the loss's; or its
            ``get_weights()``.
          dtype: as in the class.

        Raises:
          TypeError: weights that are not floating point.
          ValueError: another layer or activation, or shapes that do not fit.

        Example:
          >>> import numpy as np
          >>> head = OutputProjection.from_keras([np.ones((8, 1000)), np.zeros(1000)])
          >>> head.vocab_size, [array.shape for array in head.to_keras()]
          (1000, [(8, 1000), (1000,)])
        """
        return cls._holding(*_copied(*dense_from_keras(source)), True, dtype)

    def to_torch(self, *, prefix: str | None = None) -> dict[str, np.ndarray]:
        """The state dict of an ``nn.Linear``, of NumPy's arrays."""
        start = f"{prefix.removesuffix('.')}." if prefix else ""
        weight = np.asarray(self.weight[...])
        arrays = {"weight": weight.T if self.features_first else weight}
        if self.bias is not None:
            arrays["bias"] = np.asarray(self.bias[...])
        return {f"{start}{name}": array for name, array in arrays.items()}

    def to_keras(self) -> list[np.ndarray]:
        """The argument of ``set_weights`` of a Keras ``Dense``."""
        weight = np.asarray(self.weight[...])
        kernel = weight if self.features_first else weight.T
        return [kernel] if self.bias is None else [kernel, np.asarray(self.bias[...])]

    @classmethod
    def _holding(
        cls, weight: nnx.Param, bias: nnx.Param | None, features_first: bool,
        dtype: DTypeLike | None,
    ) -> OutputProjection:  # fmt: skip
        """Of these very variables."""
        features, vocab_size = weight.shape if features_first else weight.shape[::-1]
        embed = nnx.eval_shape(lambda: nnx.Embed(vocab_size, features, rngs=nnx.Rngs(0)))
        head = cls(features, vocab_size, use_bias=bias is not None, tied=embed, dtype=dtype)
        head.weight, head.features_first = weight, features_first
        if bias is not None:
            head.bias = bias
        return head

    def _arrays(self, hidden: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Hidden states, weight and bias in the dtype that is computed in."""
        bias = None if self.bias is None else self.bias[...]
        return as_computed(self.dtype, (as_floats("hidden", hidden), self.weight[...], bias))

    def _tile_by_tile(self, hidden: Any, options: dict[str, Any]) -> tuple[Any, ...]:
        """What is given, and the options with a ``compute_dtype``: no copy of the table.

        What is to be computed in more bits than it has is cast before.
        """
        hidden, weight = as_floats("hidden", hidden), self.weight[...]
        given = result_dtype(hidden, weight)
        if self.dtype is None or jnp.finfo(self.dtype).bits > jnp.finfo(given).bits:
            return (*self._arrays(hidden), options)
        bias = None if self.bias is None else self.bias[...]
        return hidden, weight, bias, {"compute_dtype": self.dtype, **options}

    def __call__(self, hidden: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """As :meth:`logits`."""
        return self.logits(hidden)

    def logits(self, hidden: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """All logits, [..., vocab]: for a small batch, as in decoding."""
        hidden, weight, bias = self._arrays(hidden)
        if hidden.shape[-1:] != (self.features,):
            raise ValueError(
                f"hidden must be [..., features] with features = {self.features}, "
                f"got shape {hidden.shape}"
            )
        dtype = result_dtype(hidden, weight)
        weight = weight.astype(dtype)
        logits = jnp.matmul(
            hidden.astype(dtype),
            weight if self.features_first else weight.T,
            preferred_element_type=accumulator_dtype(dtype),
        )
        if bias is not None:
            logits = logits + jnp.expand_dims(bias, range(logits.ndim - 1)).astype(logits.dtype)
        return logits.astype(dtype)

    def loss(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "..."] | Sequence,
        *,
        samples: Samples | None = None,
        **options,
    ) -> Float[Array, "..."] | LossAndLogSumExp:
        """The training loss: exact, or over the classes of ``samples``.

        ``options`` are those of :func:`jaxnets.kernels.linear_softmax_cross_entropy` or of
        :func:`jaxnets.kernels.sampled_softmax_cross_entropy`.
        """
        if samples is None:
            return self.exact_loss(hidden, labels, **options)
        hidden = as_computed(self.dtype, as_floats("hidden", hidden))
        bias = None if self.bias is None else self.bias[...]
        return sampled_softmax_cross_entropy(
            hidden, self.weight[...], labels, samples, bias=bias,
            features_first=self.features_first, **options,
        )  # fmt: skip

    def exact_loss(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "..."] | Sequence,
        **options,
    ) -> Float[Array, "..."] | LossAndLogSumExp:
        """The exact loss, however the layer is trained.

        Its ``compute_dtype`` is the layer's dtype: the table is cast tile by tile.
        """
        hidden, weight, bias, options = self._tile_by_tile(hidden, options)
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, features_first=self.features_first, **options
        )

    def log_probs(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "*batch"] | Sequence,
        **options,
    ) -> LogProbs:
        """As :func:`jaxnets.kernels.linear_log_probs`, whose ``options`` it takes."""
        hidden, weight, bias, options = self._tile_by_tile(hidden, options)
        return linear_log_probs(
            hidden, weight, labels, bias=bias, features_first=self.features_first, **options
        )

    def top_k(
        self, hidden: Float[ArrayLike, "*batch features"], k: SupportsIndex, **options
    ) -> TopK:
        """The ``k`` largest logits and their classes, tile by tile.

        ``options`` are those of :func:`jaxnets.kernels.linear_top_k`.
        """
        hidden, weight, bias = self._arrays(hidden)
        return linear_top_k(
            hidden, weight, k, bias=bias, features_first=self.features_first, **options
        )

    def label_rank(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "*batch"] | Sequence,
        **options,
    ) -> LabelRank:
        """As :func:`jaxnets.kernels.linear_label_rank`, whose ``options`` it takes."""
        hidden, weight, bias = self._arrays(hidden)
        return linear_label_rank(
            hidden, weight, labels, bias=bias, features_first=self.features_first, **options
        )


def _copied(weight: jax.Array, bias: jax.Array | None) -> tuple[nnx.Param, nnx.Param | None]:
    """Variables with buffers of their own, for what they come of may live in another library."""
    return nnx.Param(jnp.array(weight)), None if bias is None else nnx.Param(jnp.array(bias))
