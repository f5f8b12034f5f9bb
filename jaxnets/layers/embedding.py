"""An embedding whose ids are checked, from and to other libraries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxnets.convert.arrays import as_array, check_matrix
from jaxnets.convert.tables import embeddings_from_keras, table_from_torch
from jaxnets.layers.initial import computing_dtype
from jaxnets.layers.look_up import look_up


class Embedding(nnx.Embed):
    """``nnx.Embed`` with checked ids: :func:`jaxnets.layers.look_up` of its table.

    Its arguments are those of ``nnx.Embed``, and :class:`OutputProjection` takes it as ``tied``.

    Example:
      >>> from flax import nnx
      >>> embedding = Embedding(1000, 8, rngs=nnx.Rngs(0))
      >>> embedding([[3, 999]]).shape
      (1, 2, 8)
      >>> embedding([1000])
      Traceback (most recent call last):
        ...
      ValueError: ids must lie in [0, vocab_size) = [0, 1000), got 1000
    """

    def __call__(  # type: ignore[override]
        self, ids: Integer[ArrayLike, "*batch"] | Sequence
    ) -> Float[Array, "*batch features"]:
        """Rows [..., features] of ``ids`` [...], in the layer's dtype.

        Raises:
          TypeError, ValueError: as :func:`jaxnets.layers.look_up`.
        """
        return look_up(self.embedding[...], ids).astype(self.dtype)

    @classmethod
    def from_torch(
        cls, source: Any, *, prefix: str | None = None, dtype: DTypeLike | None = None
    ) -> Embedding:
        """Of an ``nn.Embedding``.

        That the row of ``padding_idx`` gets no gradient is not a matter of weights: mask those ids.

        Args:
          source: the module, its state dict or a larger model's; of bfloat16 too, which stays.
          prefix: of the module in a larger model, as "encoder.embed"; None: the only weight.
          dtype: of the rows; None: the table's.

        Raises:
          TypeError: a weight that is not floating point.
          ValueError: no such weight, or several of them; a weight of other than two axes.

        Example:
          >>> import numpy as np
          >>> state = {"embed.weight": np.ones((10, 3)), "head.weight": np.ones((10, 3))}
          >>> Embedding.from_torch(state, prefix="embed")([7]).tolist()
          [[1.0, 1.0, 1.0]]
        """
        return cls._of(table_from_torch(source, prefix)[0], dtype)

    @classmethod
    def from_keras(cls, source: Any, *, dtype: DTypeLike | None = None) -> Embedding:
        """Of a Keras ``Embedding``, whose ``mask_zero`` is ``mask=ids != 0`` of a recurrent layer.

        Args:
          source: the layer, or its ``get_weights()``, ``[embeddings]``.
          dtype: of the rows; None: the table's.

        Raises:
          TypeError: weights that are not floating point.
          ValueError: another layer, or other weights than one array of two axes.

        Example:
          >>> import numpy as np
          >>> Embedding.from_keras([np.ones((10, 3))]).num_embeddings
          10
        """
        return cls._of(embeddings_from_keras(source), dtype)

    @classmethod
    def from_flax(cls, source: Any, *, dtype: DTypeLike | None = None) -> Embedding:
        """Of an ``nnx.Embed``, whose dtype it keeps, or the ``params`` of linen's.

        Args:
          source: the module, its state, or what holds ``embedding``.
          dtype: of the rows; None: the module's, or the table's.

        Raises:
          TypeError: what is neither, or a table that is not floating point.
          ValueError: parameters of another layer.

        Example:
          >>> from flax import nnx
          >>> Embedding.from_flax(nnx.Embed(10, 3, rngs=nnx.Rngs(0)))([7]).shape
          (1, 3)
        """
        if isinstance(source, nnx.Embed):
            return cls._of(as_array("embedding", source.embedding), dtype or source.dtype)
        if not isinstance(source, Mapping):
            raise TypeError(f"source must be an nnx.Embed or params, got {type(source).__name__}")
        if "embedding" not in source:
            raise ValueError(f"source must hold embedding, got {', '.join(map(str, source))}")
        return cls._of(as_array("embedding", source["embedding"]), dtype)

    def to_torch(self, *, prefix: str | None = None) -> dict[str, np.ndarray]:
        """The state dict of an ``nn.Embedding``, of NumPy's arrays.

        Example:
          >>> from flax import nnx
          >>> list(Embedding(10, 3, rngs=nnx.Rngs(0)).to_torch(prefix="embed"))
          ['embed.weight']
        """
        start = f"{prefix.removesuffix('.')}." if prefix else ""
        return {f"{start}weight": np.asarray(self.embedding[...])}

    def to_keras(self) -> list[np.ndarray]:
        """The argument of ``set_weights`` of a Keras ``Embedding``."""
        return [np.asarray(self.embedding[...])]

    def to_flax(self) -> dict[str, jax.Array]:
        """The ``params`` of linen's ``Embed``, or the pure state of an ``nnx.Embed``."""
        return {"embedding": self.embedding[...]}

    @classmethod
    def _of(cls, table: jax.Array, dtype: DTypeLike | None) -> Embedding:
        check_matrix("embedding", table, "[vocab, features]")
        return cls(  # a copy: a step that is given one of two buffers must leave the other
            *table.shape, dtype=computing_dtype(dtype), param_dtype=table.dtype,
            embedding_init=lambda *_: jnp.array(table), rngs=nnx.Rngs(0),
        )  # fmt: skip
