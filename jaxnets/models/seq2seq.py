"""Translation: an LSTM encoder and decoder with attention, and a projection to a large vocabulary.

Sutskever et al. 2014, with the global attention of Luong et al. 2015 (section 3.1, "general")
applied to all target steps at once, so that both LSTMs run as whole sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Integer

from jaxnets import rows
from jaxnets.kernels import (
    LogUniform,
    checks,
    draw_samples,
)
from jaxnets.kernels.meshes import over_rows
from jaxnets.layers import LSTM, OutputProjection, look_up
from jaxnets.sequences import length_mask

UNKNOWN, END, START = 0, 1, 2
TABLES = ("source_embedding", "target_embedding", "projection")


@dataclass(frozen=True)
class Seq2SeqConfig:
    """Sizes of the model, and how it is trained.

    Attributes:
      source_vocab_size: words, of them 0 unknown (and padding), 1 the end, 2 the start.
      target_vocab_size: words, likewise.
      features: of the embeddings, the memory and the hidden state.
      layers: of the encoder and of the decoder.
      bidirectional: the encoder reads both ways, each with half of the features.
      reverse_source: the encoder reads from the end (Sutskever et al. 2014, section 3.3).
      dropout: of embeddings and of what goes into the projection.
      num_sampled: classes that the training loss samples.
      batch: rows of a batch of the training.
      learning_rate: of the training.
      clip_norm: of the training's gradients, the largest.
      buckets: pairs of the longest source and target; None: the best for the data.

    Example:
      >>> from dataclasses import replace
      >>> replace(TENSORFLOW_TUTORIAL, features=64).layers
      3
    """

    source_vocab_size: int
    target_vocab_size: int
    features: int = 512
    layers: int = 1
    bidirectional: bool = True
    reverse_source: bool = False
    dropout: float = 0.2
    num_sampled: int = 512
    batch: int = 64
    learning_rate: float = 1e-3
    clip_norm: float = 5.0
    buckets: tuple[tuple[int, int], ...] | None = None


#: The translate.py of TensorFlow's sequence-to-sequence tutorial (2015): its flags and buckets.
TENSORFLOW_TUTORIAL = Seq2SeqConfig(
    source_vocab_size=40_000, target_vocab_size=40_000, features=1024, layers=3,
    bidirectional=False, reverse_source=True, dropout=0.0, num_sampled=512, batch=64,
    learning_rate=0.5, clip_norm=5.0,
    buckets=((5, 10), (10, 15), (20, 25), (40, 50)),
)  # fmt: skip


class Memory(NamedTuple):
    """What the decoder sees of a source: keys and values of each step, which are there, a carry."""

    keys: jax.Array  # [batch, source, features]
    values: jax.Array  # [batch, source, features]
    mask: jax.Array  # [batch, source] bool
    carries: Any  # of the decoder's layers


class Seq2Seq(nnx.Module):
    """Encoder, decoder, attention and output projection.

    Source and target are [batch, time] word ids padded on the right; a target begins with
    ``START`` and ends with ``END``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> model = Seq2Seq(Seq2SeqConfig(500, 800, features=8), rngs=nnx.Rngs(0))
      >>> source, lengths = jnp.ones((2, 11), jnp.int32), jnp.array([11, 3])
      >>> target = jnp.array([[2, 7, 9, 1], [2, 7, 1, 0]])
      >>> loss = nnx.jit(Seq2Seq.loss)(model, source, lengths, target, jnp.array([4, 3]))
      >>> float(loss) > 0
      True
    """

    def __init__(self, config: Seq2SeqConfig, *, rngs: nnx.Rngs):
        features = config.features
        directions = 2 if config.bidirectional else 1
        self.config = config
        self.source_embedding = _table(rngs, config.source_vocab_size, features)
        self.target_embedding = _table(rngs, config.target_vocab_size, features)
        self.encoder = LSTM(
            features, features // directions, num_layers=config.layers,
            bidirectional=config.bidirectional, rngs=rngs,
        )  # fmt: skip
        self.decoder = LSTM(features, features, num_layers=config.layers, rngs=rngs)
        self.keys = nnx.Linear(features, features, use_bias=False, rngs=rngs)
        self.combine = nnx.Linear(2 * features, features, use_bias=False, rngs=rngs)
        self.projection = OutputProjection(features, config.target_vocab_size, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

    def encode(
        self,
        vectors: Float[Array, "batch source features"],
        lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    ) -> Memory:
        """The memory of embedded sources."""
        time = vectors.shape[1]
        lengths = _checked_lengths("source_lengths", lengths, vectors.shape[0], time)
        if self.config.reverse_source and time:
            vectors = _reversed(vectors, lengths)
        outputs, carries = self.encoder(vectors, lengths=lengths)
        # The two directions of a layer make one carry of the decoder's layer.
        starts = [
            [tuple(jnp.concatenate(parts, axis=1) for parts in zip(*layer, strict=True))]
            for layer in carries
        ]
        mask = length_mask(lengths, time)
        return Memory(self.keys(outputs), outputs, mask, starts)

    def attend(
        self, outputs: Float[Array, "batch target features"], memory: Memory
    ) -> Float[Array, "batch target features"]:
        r"""``tanh(W [context, output])``, the context by a softmax over the source's steps."""
        scores = jnp.einsum("btf,bsf->bts", outputs, memory.keys)
        mask = memory.mask[:, None]
        # A row without a source (a batch's filling) has no step to look at; it must not be the
        # softmax of -inf alone, whose NaN is an alarm to jax_debug_nans.
        hidden = ~mask & mask.any(2, keepdims=True)
        scores = jnp.where(hidden, -jnp.inf, scores.astype(jnp.float32))
        weights = jnp.where(mask, jax.nn.softmax(scores), 0)
        context = jnp.einsum("bts,bsf->btf", weights.astype(outputs.dtype), memory.values)
        return jnp.tanh(self.combine(jnp.concatenate([context, outputs], axis=-1)))

    def hidden(self, source_vectors, source_lengths, target_vectors) -> jax.Array:
        """What goes into the projection for each target step, [batch, target, features]."""
        memory = self.encode(self.dropout(source_vectors), source_lengths)
        outputs, _ = self.decoder(self.dropout(target_vectors), memory.carries)
        return self.dropout(self.attend(outputs, memory))

    def loss(
        self,
        source: Integer[ArrayLike, "batch source"] | Sequence,
        source_lengths: Integer[ArrayLike, " batch"] | Sequence[int],
        target: Integer[ArrayLike, "batch target"] | Sequence,
        target_lengths: Integer[ArrayLike, " batch"] | Sequence[int],
        *,
        reduction: str = "mean",
    ) -> Float[Array, "..."]:
        """The exact cross-entropy of the targets' words after ``START``.

        Raises:
          TypeError: words or lengths that are not integers.
          ValueError: a word that is none of the vocabulary's, or a length beyond its side, where
            its value is known; under ``jit`` the loss is NaN.
        """
        inputs, labels, weights = _targets(target, target_lengths)
        hidden = self.hidden(
            look_up(self.source_embedding[...], source, "source"),
            source_lengths,
            look_up(self.target_embedding[...], inputs, "target"),
        )
        return jnp.asarray(
            self.projection.exact_loss(hidden, labels, token_weights=weights, reduction=reduction)
        )

    def step(self, words: Integer[Array, " batch"], carries, memory: Memory):
        """Logits [batch, vocab] of what follows ``words``, and the carries after them."""
        vectors = look_up(self.target_embedding[...], words, "words")
        outputs, carries = self.decoder(vectors[:, None], carries)
        return self.projection.logits(self.attend(outputs, memory)[:, 0]), carries

    def memory(
        self,
        source: Integer[ArrayLike, "batch source"] | Sequence,
        lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    ) -> Memory:
        """The memory of sources given by their words."""
        return self.encode(look_up(self.source_embedding[...], source, "source"), lengths)


@over_rows(vectors=0, lengths=0)
def _reversed(vectors, lengths):
    """Each row's steps from its last to its first."""
    time = vectors.shape[1]
    place = lengths[:, None] - 1 - jnp.arange(time)[None]
    place = place.clip(0, time - 1)  # of padding, which the encoder does not read
    return jnp.take_along_axis(vectors, place[..., None], axis=1)


def _targets(target, lengths) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The words that go in, those that come out, and a weight for each of these."""
    target = checks.as_integers("target", target)
    if target.ndim != 2 or not target.shape[1]:
        raise ValueError(f"target must be [batch, target] from START on, got shape {target.shape}")
    batch, time = target.shape
    lengths = _checked_lengths("target_lengths", lengths, batch, time)
    steps = jnp.arange(1, time)[None]
    weights = (steps < lengths[:, None]).astype(jnp.float32)
    if not checks.is_known(lengths):
        wrong = ~checks.in_range(lengths, time + 1)
        weights = jnp.where(wrong[:, None], jnp.nan, weights)
    return target[:, :-1], target[:, 1:], weights


def _checked_lengths(name: str, lengths, batch: int, time: int) -> jax.Array:
    """[batch] int32, in [0, time] where their values are known."""
    lengths = checks.as_integers(name, lengths)
    if lengths.shape != (batch,):
        raise ValueError(f"{name} must be [batch] = {(batch,)}, got shape {lengths.shape}")
    checks.check_range(name, lengths, 0, time + 1, "[0, time]")
    return lengths


def sampled_loss(
    model: Seq2Seq, batch: Any, key: jax.Array
) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The loss over sampled words, and no metrics, for :func:`jaxnets.training.fit`.

    ``batch`` is a :class:`jaxnets.sequences.Batch` of source and target. Errors are those of
    :meth:`Seq2Seq.loss`.
    """
    (source, target), (source_lengths, target_lengths) = batch.sequences, batch.lengths
    inputs, labels, weights = _targets(target, target_lengths)
    hidden = model.hidden(
        look_up(model.source_embedding[...], source, "source"),
        source_lengths,
        look_up(model.target_embedding[...], inputs, "target"),
    )
    samples = draw_samples(
        LogUniform(model.config.target_vocab_size), key, model.config.num_sampled, labels
    )
    loss = model.projection.loss(hidden, labels, samples=samples, token_weights=weights)
    return jnp.asarray(loss), {}


def is_table(path: tuple[str, ...]) -> bool:
    """Whether a parameter's gradient comes by rows, for :func:`jaxnets.optim.partition`."""
    return path[0] in TABLES


def sampled_gradients(model: Seq2Seq, batch: Any, key: jax.Array) -> tuple[tuple, Any]:
    """Loss and gradients of one step, by rows for the tables: nothing in it is O(vocab).

    For :func:`jaxnets.training.fit`; arguments and errors are those of :func:`sampled_loss`.
    """
    (source, target), (source_lengths, target_lengths) = batch.sequences, batch.lengths
    # The loss is traced, where no value is known any more.
    for name, words, lengths, vocab_size in (
        ("source", source, source_lengths, model.config.source_vocab_size),
        ("target", target, target_lengths, model.config.target_vocab_size),
    ):
        words = checks.as_integers(name, words)
        checks.check_range(name, words, 0, vocab_size, "[0, vocab_size)")
        _checked_lengths(f"{name}_lengths", lengths, *words.shape)
    gradient = rows.value_and_grad(sampled_loss, has_aux=True, is_table=is_table)
    return gradient(model, batch, key)


def _table(rngs: nnx.Rngs, vocab_size: int, features: int) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(features**-0.5)(rngs.params(), (vocab_size, features)))
