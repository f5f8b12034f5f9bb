"""Greedy and beam search over a decoder's steps, batched and jitted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Int32, Integer

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import WHOLE, over_rows
from jaxnets.models.seq2seq import END, START, Seq2Seq


def greedy_search(
    model: Seq2Seq,
    source: Integer[ArrayLike, "batch source"] | Sequence,
    lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    *,
    max_time: int,
) -> Int32[Array, "batch max_time"]:
    """The likeliest word at each step, ``END`` and whatever follows it as ``END``.

    Raises:
      TypeError: words or lengths that are not integers, or ``max_time`` that is none.
      ValueError: a word that is none of the vocabulary's, or a length beyond the source, where its
        value is known; under ``jit`` a row's words are -1.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.models import Seq2Seq, Seq2SeqConfig
      >>> model = Seq2Seq(Seq2SeqConfig(500, 800, features=8), rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> source, lengths = jnp.ones((2, 11), jnp.int32), jnp.array([11, 3])
      >>> greedy_search(model, source, lengths, max_time=7).shape
      (2, 7)
    """
    source, lengths, max_time = _check(model, source, lengths, max_time)
    return _greedy_search(model, source, lengths, max_time)


class BeamSearch(NamedTuple):
    """What :func:`beam_search` returns, the best translation of each source first.

    Attributes:
      words: [batch, beam, max_time] int32.
      scores: [batch, beam] float32.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.models import Seq2Seq, Seq2SeqConfig
      >>> model = Seq2Seq(Seq2SeqConfig(500, 800, features=8), rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> source, lengths = jnp.ones((2, 11), jnp.int32), jnp.array([11, 3])
      >>> beam_search(model, source, lengths, max_time=7, beam=3).scores.shape
      (2, 3)
    """

    words: jax.Array
    scores: jax.Array


def beam_search(
    model: Seq2Seq,
    source: Integer[ArrayLike, "batch source"] | Sequence,
    lengths: Integer[ArrayLike, " batch"] | Sequence[int],
    *,
    max_time: int,
    beam: int = 4,
    length_penalty: float = 0.6,
) -> BeamSearch:
    r"""The best ``beam`` translations found, best first, and their scores.

    A translation's score is its log-probability over :math:`((5 + length) / 6)^\alpha` (Wu et al.
    2016, equation 14), ``length_penalty`` being :math:`\alpha`. Partial translations compete by
    log-probability. The search ends when all have ended, or at ``max_time`` words. Errors are those
    of :func:`greedy_search`; under ``jit`` the scores are then NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.models import Seq2Seq, Seq2SeqConfig
      >>> model = Seq2Seq(Seq2SeqConfig(500, 800, features=8), rngs=nnx.Rngs(0))
      >>> model.eval()
      >>> source, lengths = jnp.ones((2, 11), jnp.int32), jnp.array([11, 3])
      >>> words, scores = beam_search(model, source, lengths, max_time=7, beam=3)
      >>> words.shape, scores.shape
      ((2, 3, 7), (2, 3))
    """
    source, lengths, max_time = _check(model, source, lengths, max_time)
    beam = checks.as_int("beam", beam)
    if not 1 <= beam <= model.config.target_vocab_size:
        raise ValueError(f"beam must lie in [1, {model.config.target_vocab_size}], got {beam}")
    return BeamSearch(*_beam_search(model, source, lengths, max_time, beam, length_penalty))


def _check(model: Seq2Seq, source, lengths, max_time) -> tuple[jax.Array, jax.Array, int]:
    """What both searches take, checked where the values are known: inside they are traced."""
    source = checks.as_integers("source", source)
    if source.ndim != 2:
        raise ValueError(f"source must be [batch, source] words, got shape {source.shape}")
    checks.check_range("source", source, 0, model.config.source_vocab_size, "[0, vocab_size)")
    lengths = checks.as_integers("lengths", lengths)
    checks.check_range("lengths", lengths, 0, source.shape[1] + 1, "[0, time]")
    return source, lengths, checks.as_int("max_time", max_time, 1)


def _greedy(model, source, lengths, max_time):
    graph, state = nnx.split(model)
    return _greedy_rows(source, lengths, state, graph, max_time)


@over_rows(source=0, lengths=0, state=WHOLE)
def _greedy_rows(source, lengths, state, graph, max_time):
    model = nnx.merge(graph, state)
    memory = model.memory(source, lengths)

    def going(state):
        return (state[0] < max_time) & ~(state[1] == END).all()

    def step(state):
        time, words, carries, found = state
        logits, carries = model.step(words, carries, memory)
        likeliest = jnp.where(jnp.isnan(logits[:, 0]), -1, logits.argmax(-1).astype(jnp.int32))
        words = jnp.where(words == END, END, likeliest)
        return time + 1, words, carries, found.at[:, time].set(words)

    batch = source.shape[0]
    start = jnp.full(batch, START, jnp.int32)
    found = jnp.full((batch, max_time), END, jnp.int32)
    return lax.while_loop(going, step, (0, start, memory.carries, found))[3]


_greedy_search: Callable = nnx.jit(_greedy, static_argnames=("max_time",))


class _Beam(NamedTuple):
    time: Any
    words: jax.Array  # [batch, beam], the last word of each
    scores: jax.Array  # [batch, beam], log-probabilities
    found: jax.Array  # [batch, beam, max_time]
    carries: Any  # [batch * beam, ...]


def _beam(model, source, lengths, max_time, beam, length_penalty):
    graph, state = nnx.split(model)
    return _beam_rows(source, lengths, state, length_penalty, graph, max_time, beam)


@over_rows(source=0, lengths=0, state=WHOLE, length_penalty=WHOLE)
def _beam_rows(source, lengths, state, length_penalty, graph, max_time, beam):
    model = nnx.merge(graph, state)
    batch, vocab_size = source.shape[0], model.config.target_vocab_size

    def for_each(array):
        return jnp.repeat(array, beam, axis=0)

    memory = jax.tree.map(for_each, model.memory(source, lengths))

    def going(state):
        return (state.time < max_time) & ~(state.words == END).all()

    def step(state):
        logits, carries = model.step(state.words.reshape(-1), state.carries, memory)
        gains = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beam, vocab_size)
        # One that has ended goes on as itself, by END at no cost.
        ended = jnp.full((1, 1, vocab_size), -jnp.inf).at[..., END].set(0)
        gains = jnp.where((state.words == END)[..., None], ended, gains)
        # The best of all are among the best of each.
        gains, words = lax.top_k(gains, min(beam, vocab_size))
        width = gains.shape[-1]
        totals = (state.scores[..., None] + gains).reshape(batch, beam * width)
        scores, chosen = lax.top_k(totals, beam)
        words = jnp.take_along_axis(words.reshape(batch, beam * width), chosen, axis=1)
        origin = chosen // width
        first = beam * jnp.arange(batch, dtype=origin.dtype)
        rows = (origin + first[:, None]).reshape(-1)
        found = jnp.take_along_axis(state.found, origin[..., None], axis=1)
        return _Beam(
            state.time + 1, words, scores, found.at[:, :, state.time].set(words),
            jax.tree.map(lambda leaf: leaf[rows], carries),
        )  # fmt: skip

    # All start as the same, so only the first may go on.
    scores = jnp.where(jnp.arange(beam) == 0, 0.0, -jnp.inf)
    scores = jnp.broadcast_to(scores[None], (batch, beam))
    state = lax.while_loop(going, step, _Beam(
        0, jnp.full((batch, beam), START, jnp.int32), scores,
        jnp.full((batch, beam, max_time), END, jnp.int32), memory.carries,
    ))  # fmt: skip
    words = jnp.minimum((state.found != END).sum(-1) + 1, max_time)
    final = state.scores / ((5 + words) / 6) ** length_penalty
    order = jnp.argsort(-final, axis=1)
    return (
        jnp.take_along_axis(state.found, order[..., None], axis=1),
        jnp.take_along_axis(final, order, axis=1),
    )


_beam_search: Callable = nnx.jit(_beam, static_argnames=("max_time", "beam"))
