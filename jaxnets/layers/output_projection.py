"""The output layer of a model over many classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Int32, Integer

from jaxnets.kernels import (
    Samples,
    linear_softmax_cross_entropy,
    linear_top_k,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.checks import as_floats, as_int
from jaxnets.kernels.numerics import accumulator_dtype, result_dtype
from jaxnets.layers.initial import draw, float_dtype


class OutputProjection(nnx.Module):
    """A linear layer from ``features`` to ``vocab`` classes, with its losses.

    Args:
      features: size of the hidden state.
      vocab: how many classes.
      use_bias: add a bias for each class.
      tied: an ``nnx.Embed`` of ``vocab`` by ``features`` whose table is used (and trained) as the
        weights (Press and Wolf 2017); None: weights of its own.
      dtype: of the parameters.
      rngs: for the weights; not needed when tied.

    Raises:
      TypeError: ``tied`` is no ``nnx.Embed``, or a size no integer.
      ValueError: ``tied`` has another shape, ``rngs`` is missing, or a size is below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.kernels import LogUniform, sample
      >>> head = OutputProjection(8, 1000, rngs=nnx.Rngs(0))
      >>> hidden, labels = jnp.ones((2, 5, 8)), jnp.zeros((2, 5), jnp.int32)
      >>> samples = sample(LogUniform(1000), jax.random.key(0), 64, labels)
      >>> head.loss(hidden, labels, sampled=samples).shape, head.evaluate(hidden, labels).shape
      ((), ())
      >>> head.top_k(hidden, 3)[1].shape
      (2, 5, 3)

      In linen, any method by its name; called, it gives the logits:

      >>> linen = nnx.bridge.to_linen(OutputProjection, 8, vocab=1000)
      >>> variables = linen.init(jax.random.key(0), hidden)
      >>> linen.apply(variables, hidden, labels, sampled=samples, nnx_method="loss").shape
      ()
      >>> linen.apply(variables, hidden, 3, nnx_method="top_k")[1].shape
      (2, 5, 3)
    """

    def __init__(
        self,
        features: SupportsIndex,
        vocab: SupportsIndex,
        *,
        use_bias: bool = True,
        tied: nnx.Embed | None = None,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        features, vocab = as_int("features", features, 1), as_int("vocab", vocab, 1)
        self.features, self.vocab = features, vocab
        dtype = float_dtype(dtype)
        if tied is not None:
            if not isinstance(tied, nnx.Embed):
                raise TypeError(
                    "tied must be the nnx.Embed of the inputs, whose table is [vocab, features], "
                    f"got {type(tied).__name__}"
                )
            if tied.embedding.shape != (vocab, features):
                raise ValueError(
                    f"tied must embed [vocab, features] = {(vocab, features)}, "
                    f"got {tied.embedding.shape}"
                )
            self.weight = tied.embedding
        elif rngs is None:
            raise ValueError("rngs must be given where the weights are not tied")
        else:
            initial = nnx.initializers.normal(features**-0.5)
            self.weight = nnx.Param(draw(initial, rngs, (vocab, features), dtype))
        self.bias = nnx.Param(jnp.zeros(vocab, dtype)) if use_bias else None

    def _arrays(self) -> tuple[jax.Array, jax.Array | None]:
        return self.weight[...], None if self.bias is None else self.bias[...]

    def __call__(self, hidden: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """As :meth:`logits`."""
        return self.logits(hidden)

    def logits(self, hidden: Float[ArrayLike, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """All logits, [..., vocab]: for a small batch, as in decoding."""
        weight, bias = self._arrays()
        hidden = as_floats("hidden", hidden)
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
        sampled: Samples | None = None,
        **options,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "*batch"]]:
        """The training loss: exact, or over ``sampled`` classes.

        ``options`` are those of :func:`jaxnets.kernels.linear_softmax_cross_entropy` or of
        :func:`jaxnets.kernels.sampled_softmax_cross_entropy`.
        """
        if sampled is None:
            return linear_softmax_cross_entropy(hidden, *self._arrays(), labels, **options)
        return sampled_softmax_cross_entropy(hidden, *self._arrays(), labels, sampled, **options)

    def evaluate(
        self,
        hidden: Float[ArrayLike, "*batch features"],
        labels: Integer[ArrayLike, "*batch"] | Sequence,
        **options,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "*batch"]]:
        """The exact loss, however the layer is trained."""
        return self.loss(hidden, labels, **options)

    def top_k(
        self, hidden: Float[ArrayLike, "*batch features"], k: SupportsIndex
    ) -> tuple[Float[Array, "*batch k"], Int32[Array, "*batch k"]]:
        """The ``k`` largest logits and their classes, tile by tile."""
        return linear_top_k(hidden, *self._arrays(), k)
