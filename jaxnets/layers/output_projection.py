"""The output layer of a model over many classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxnets.kernels import (
    LossAndLogSumExp,
    Samples,
    TopK,
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
        flax. A loss over samples casts hidden states only: to cast a table costs all of it.
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
      >>> hidden, labels = jnp.ones((2, 5, 8)), jnp.zeros((2, 5), jnp.int32)
      >>> samples = draw_samples(LogUniform(1000), jax.random.key(0), 64, labels)
      >>> head.loss(hidden, labels, samples=samples).shape, head.exact_loss(hidden, labels).shape
      ((), ())
      >>> head.top_k(hidden, 3)[1].shape
      (2, 5, 3)

      In linen, any method by its name; called, it gives the logits:

      >>> linen = nnx.bridge.to_linen(OutputProjection, 8, vocab_size=1000)
      >>> variables = linen.init(jax.random.key(0), hidden)
      >>> linen.apply(variables, hidden, labels, samples=samples, nnx_method="loss").shape
      ()
      >>> linen.apply(variables, hidden, 3, nnx_method="top_k")[1].shape
      (2, 5, 3)
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

    def _arrays(self, hidden: Any) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """Hidden states, weight and bias in the dtype that is computed in."""
        bias = None if self.bias is None else self.bias[...]
        return as_computed(self.dtype, (as_floats("hidden", hidden), self.weight[...], bias))

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
        logits = jnp.matmul(
            hidden.astype(dtype),
            weight.astype(dtype).T,
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
            hidden, self.weight[...], labels, samples, bias=bias, **options
        )

    def exact_loss(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "*batch"] | Sequence,
        **options,
    ) -> Float[Array, "..."] | LossAndLogSumExp:
        """The exact loss, however the layer is trained."""
        hidden, weight, bias = self._arrays(hidden)
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, **options)

    def top_k(
        self, hidden: Float[ArrayLike, "*batch features"], k: SupportsIndex, **options
    ) -> TopK:
        """The ``k`` largest logits and their classes, tile by tile.

        ``options`` are those of :func:`jaxnets.kernels.linear_top_k`.
        """
        hidden, weight, bias = self._arrays(hidden)
        return linear_top_k(hidden, weight, k, bias=bias, **options)
