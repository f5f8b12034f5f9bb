"""The output layer of a model over many classes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int32, Integer

from jaxnets.kernels import (
    Samples,
    linear_softmax_cross_entropy,
    linear_top_k,
    sampled_softmax_cross_entropy,
)


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
      ValueError: ``tied`` has another shape, or ``rngs`` is missing.

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
    """

    def __init__(
        self,
        features: int,
        vocab: int,
        *,
        use_bias: bool = True,
        tied: nnx.Embed | None = None,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        self.features, self.vocab = features, vocab
        if tied is not None:
            if tied.embedding.shape != (vocab, features):
                raise ValueError(
                    f"tied must embed [vocab, features] = {(vocab, features)}, "
                    f"got {tied.embedding.shape}"
                )
            self.weight = tied.embedding
        elif rngs is None:
            raise ValueError("rngs must be given where the weights are not tied")
        else:
            initial = nnx.initializers.normal(features**-0.5)(rngs.params(), (vocab, features))
            self.weight = nnx.Param(initial.astype(dtype))
        self.bias = nnx.Param(jnp.zeros(vocab, dtype)) if use_bias else None

    def _arrays(self) -> tuple[jax.Array, jax.Array | None]:
        return self.weight[...], None if self.bias is None else self.bias[...]

    def logits(self, hidden: Float[Array, "*batch features"]) -> Float[Array, "*batch vocab"]:
        """All logits, [..., vocab]: for a small batch, as in decoding."""
        weight, bias = self._arrays()
        if hidden.shape[-1] != self.features:
            raise ValueError(
                f"hidden must be [..., features] with features = {self.features}, "
                f"got shape {hidden.shape}"
            )
        logits = hidden @ weight.T
        return logits if bias is None else logits + bias

    def loss(
        self,
        hidden: Float[Array, "*batch features"],
        labels: Integer[Array, "..."],
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
        hidden: Float[Array, "*batch features"],
        labels: Integer[Array, "*batch"],
        **options,
    ) -> Float[Array, "..."] | tuple[Float[Array, "..."], Float[Array, "*batch"]]:
        """The exact loss, however the layer is trained."""
        return self.loss(hidden, labels, **options)

    def top_k(
        self, hidden: Float[Array, "*batch features"], k: int
    ) -> tuple[Float[Array, "*batch k"], Int32[Array, "*batch k"]]:
        """The ``k`` largest logits and their classes, tile by tile."""
        return linear_top_k(hidden, *self._arrays(), k)
