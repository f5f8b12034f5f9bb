"""The next item of a session: GRU4Rec, over a catalogue of any size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int32, Integer, Shaped

from jaxnets.kernels import (
    LabelRank,
    Samples,
    TopK,
    checks,
    linear_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.meshes import over_rows
from jaxnets.kernels.recurrent.checks import as_given
from jaxnets.kernels.recurrent.padding import Given, padding_of
from jaxnets.layers import GRU, OutputProjection, look_up

NO_ITEM = -1
TABLES = ("embedding", "projection")


class SessionGRU(nnx.Module):
    """Item embeddings, GRU layers over each session, a projection to all items.

    Hidasi et al. 2016, "Session-based Recommendations with Recurrent Neural Networks", section 3;
    Hidasi and Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains for Session-based
    Recommendations", for the losses over sampled items.

    Sessions are [batch, time] item ids: one a row, padded anywhere, with ``lengths`` or a ``mask``;
    or several a row, with ``segment_ids`` (:func:`jaxnets.sequences.pack`), where each starts from
    a state of zeros. Whatever stands in padding leaves no trace.

    Args:
      items: how many there are; ids are 0 to items - 1.
      features: of an item's embedding.
      hidden_features: of the GRU; None: as ``features``. Where they differ, a linear layer without
        bias leads from the one to the other.
      layers: of the GRU, on top of each other.
      tied: the projection's weights are the embeddings (2018, section 4.2, "constrained
        embeddings"); False: its own.
      dropout: of embeddings, between layers, and of what goes into the projection.
      rngs: for parameters and dropout.

    Raises:
      TypeError, ValueError: a size that is no integer, or below 1, or a share of dropout outside
        [0, 1).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from jaxnets.kernels import LogUniform, draw_samples
      >>> model = SessionGRU(1000, 8, rngs=nnx.Rngs(0))
      >>> sessions, lengths = jnp.array([[3, 8, 1], [8, 5, 0]]), jnp.array([3, 2])
      >>> labels = next_items(sessions, lengths)
      >>> samples = draw_samples(LogUniform(1000), jax.random.key(0), 64, labels)
      >>> nnx.jit(SessionGRU.loss)(model, sessions, lengths, samples=samples).shape
      ()
      >>> model.eval()
      >>> recommend = nnx.jit(SessionGRU.recommend, static_argnums=2)
      >>> recommend(model, sessions, 10, lengths=lengths).ids.shape
      (2, 10)
    """

    def __init__(
        self,
        items: SupportsIndex,
        features: SupportsIndex = 64,
        *,
        hidden_features: SupportsIndex | None = None,
        layers: SupportsIndex = 1,
        tied: bool = True,
        dropout: float = 0.2,
        rngs: nnx.Rngs,
    ):
        items, features = checks.as_int("items", items, 1), checks.as_int("features", features, 1)
        hidden = features
        if hidden_features is not None:
            hidden = checks.as_int("hidden_features", hidden_features, 1)
        self.embedding = nnx.Embed(items, features, rngs=rngs)
        self.gru = GRU(features, hidden, num_layers=layers, dropout=dropout, rngs=rngs)
        last = nnx.Linear(hidden, features, use_bias=False, rngs=rngs)
        self.last = last if hidden != features else None
        self.projection = OutputProjection(
            features, items, tied=self.embedding if tied else None, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def hidden(
        self,
        items: Integer[ArrayLike, "batch time"] | Sequence,
        lengths: Integer[ArrayLike, " batch"] | Sequence[int] | None = None,
        *,
        segment_ids: Integer[ArrayLike, "batch time"] | Sequence | None = None,
        mask: Shaped[ArrayLike, "batch time"] | Sequence | None = None,
    ) -> Float[Array, "batch time features"]:
        """What goes into the projection after each item, [batch, time, features]; 0 in padding.

        Args:
          items: [batch, time] ids, integers of any width.
          lengths, segment_ids, mask: at most one of them; see :func:`jaxnets.kernels.gru`.

        Raises:
          TypeError: ids or lengths that are no integers.
          ValueError: shapes that do not fit, two kinds of padding, or an id outside [0, items) or a
            length outside [0, time] where its value is known; under ``jit`` its session's states
            are NaN from there on.
        """
        return self._states(*_checked(items, lengths, segment_ids, mask))[0]

    def loss(
        self,
        items: Integer[ArrayLike, "batch time"] | Sequence,
        lengths: Integer[ArrayLike, " batch"] | Sequence[int] | None = None,
        *,
        samples: Samples | None = None,
        function: Callable | None = None,
        segment_ids: Integer[ArrayLike, "batch time"] | Sequence | None = None,
        mask: Shaped[ArrayLike, "batch time"] | Sequence | None = None,
        **options,
    ) -> Float[Array, "..."]:
        """The loss of each item after those before it, by any loss of ``jaxnets.kernels``.

        Args:
          items, lengths, segment_ids, mask: as in :meth:`hidden`.
          samples: drawn with the labels of :func:`next_items`; None: the loss is exact. With
            :func:`jaxnets.kernels.in_batch_samples` it is over the batch's own items.
          function: ``function(hidden, weight, labels, samples, *, bias, ignore_index, **options)``,
            such as :func:`jaxnets.kernels.bpr_max_loss` or :func:`jaxnets.kernels.gbce_loss`. None:
            sampled softmax, or without samples the exact cross-entropy.
          options: of ``function``, as ``reduction``.

        Raises:
          TypeError, ValueError: as :meth:`hidden` and ``function`` do. Under ``jit`` an id or a
            length out of range makes the loss NaN.
        """
        hidden = self.hidden(items, lengths, segment_ids=segment_ids, mask=mask)
        labels = next_items(items, lengths, segment_ids=segment_ids, mask=mask)
        if function is None:
            exact = samples is None
            function = linear_softmax_cross_entropy if exact else sampled_softmax_cross_entropy
        drawn = () if samples is None else (samples,)
        head = self.projection
        bias = None if head.bias is None else head.bias[...]
        return jnp.asarray(
            function(
                hidden, head.weight[...], labels, *drawn, bias=bias, ignore_index=NO_ITEM, **options
            )
        )

    def recommend(
        self,
        items: Integer[ArrayLike, "batch time"] | Sequence,
        k: SupportsIndex,
        *,
        exclude_seen: bool = True,
        lengths: Integer[ArrayLike, " batch"] | Sequence[int] | None = None,
        mask: Shaped[ArrayLike, "batch time"] | Sequence | None = None,
    ) -> TopK:
        """The ``k`` items most likely to follow each session, [batch, k], best first.

        Over all items, tile by tile, so that no [batch, items] scores are in memory. Call
        ``eval()`` before, or dropout is at work.

        Args:
          items, lengths, mask: one session a row, as in :meth:`hidden`.
          k: from 1 to the number of items.
          exclude_seen: leave out what is in the session; where fewer than k items remain, these
            come last, with a logit of -inf.

        Raises:
          TypeError, ValueError: as :meth:`hidden`, or a ``k`` out of range. Under ``jit`` the
            logits of a session that is out of range are NaN.
        """
        hidden, seen = self._after(items, lengths, mask)
        return self.projection.top_k(hidden, k, exclude=seen if exclude_seen else None)

    def label_rank(
        self,
        items: Integer[ArrayLike, "batch time"] | Sequence,
        labels: Integer[ArrayLike, " batch"] | Sequence[int],
        *,
        exclude_seen: bool = True,
        lengths: Integer[ArrayLike, " batch"] | Sequence[int] | None = None,
        mask: Shaped[ArrayLike, "batch time"] | Sequence | None = None,
    ) -> LabelRank:
        """The rank among all items of the one that followed each session, [batch].

        For :class:`jaxnets.models.metrics.RankingMetrics`. Arguments and errors are those of
        :meth:`recommend`; ``labels`` are the true items. Under ``jit`` what is out of range has no
        rank: -1.
        """
        hidden, seen = self._after(items, lengths, mask)
        return self.projection.label_rank(hidden, labels, exclude=seen if exclude_seen else None)

    def _states(self, items: jax.Array, given: Given) -> tuple[jax.Array, jax.Array]:
        """Of each step, and of each row's last: [batch, time, features] and [batch, features]."""
        vectors = look_up(self.embedding.embedding[...], _read(items, given), "items")
        outputs, carries = self.gru(self.dropout(vectors), **given._asdict())
        states = outputs, carries[-1][0].astype(outputs.dtype)
        if self.last is not None:
            states = self.last(states[0]), self.last(states[1])
        return self.dropout(states[0]), self.dropout(states[1])

    def _after(self, items: Any, lengths: Any, mask: Any) -> tuple[jax.Array, jax.Array]:
        """The state after each session, and the items that it has seen, padded by ``NO_ITEM``."""
        items, given = _checked(items, lengths, None, mask)
        return self._states(items, given)[1], _seen(items, given)


def next_items(
    items: Integer[ArrayLike, "batch time"] | Sequence,
    lengths: Integer[ArrayLike, " batch"] | Sequence[int] | None = None,
    *,
    segment_ids: Integer[ArrayLike, "batch time"] | Sequence | None = None,
    mask: Shaped[ArrayLike, "batch time"] | Sequence | None = None,
) -> Int32[Array, "batch time"]:
    """The item that follows each in its session: the labels of :meth:`SessionGRU.loss`.

    Args:
      items, lengths, segment_ids, mask: as in :meth:`SessionGRU.hidden`.

    Returns:
      [batch, time] int32, -1 after a session's last item and in padding: a loss's ``ignore_index``.
      A negative id, and under ``jit`` all of a row with a length out of range, has a label beyond
      every catalogue, of which a loss is NaN.

    Raises:
      TypeError, ValueError: as :meth:`SessionGRU.hidden`, except that any integer is an id.

    Example:
      >>> next_items([[5, 6, 7, 0]], [3]).tolist()
      [[6, 7, -1, -1]]
      >>> next_items([[5, 6, 7, 8, 0]], segment_ids=[[1, 1, 2, 2, 0]]).tolist()
      [[6, -1, 8, -1, -1]]
    """
    return _next_items(*_checked(items, lengths, segment_ids, mask))


def is_table(path: tuple[str, ...]) -> bool:
    """Whether a parameter's gradient comes by rows, for :func:`jaxnets.optim.partition`."""
    return path[0] in TABLES


def _checked(items: Any, lengths: Any, segment_ids: Any, mask: Any) -> tuple[jax.Array, Given]:
    items = checks.as_integers("items", items)
    if items.ndim != 2:
        raise ValueError(f"items must be [batch, time] ids, got shape {items.shape}")
    batch, time = items.shape
    return items, as_given(lengths, segment_ids, mask, (batch,), time, time_first=False)


def _valid(items: jax.Array, given: Given) -> jax.Array:
    """Which steps [batch, time] are no padding."""
    valid = padding_of(given, items.shape[1], reverse=False).valid
    return jnp.ones(items.shape, bool) if valid is None else valid


@jax.jit
@over_rows(items=0, given=0)
def _read(items: jax.Array, given: Given) -> jax.Array:
    """The items, and in padding one that is read anyway: no other row of the table is touched."""
    valid = _valid(items, given)
    return jnp.where(valid, items, jnp.where(valid, items, 0).max(initial=0))


@jax.jit
@over_rows(items=0, given=0)
def _seen(items: jax.Array, given: Given) -> jax.Array:
    return jnp.where(_valid(items, given), items, NO_ITEM)


@jax.jit
@over_rows(items=0, given=0)
def _next_items(items: jax.Array, given: Given) -> jax.Array:
    batch, time = items.shape
    if not items.size:
        return items
    beyond = checks.INT32_MAX
    valid = _valid(items, given)
    step = jnp.where(valid, jnp.arange(time, dtype=jnp.int32)[None], time)
    # The first step after each that is no padding; ``time`` where there is none.
    following = lax.cummin(step, axis=1, reverse=True)[:, 1:]
    following = jnp.concatenate([following, jnp.full((batch, 1), time, jnp.int32)], axis=1)
    at = jnp.minimum(following, time - 1)
    follows = valid & (following < time)
    if given.segment_ids is not None:
        follows &= jnp.take_along_axis(given.segment_ids, at, axis=1) == given.segment_ids
    labels = jnp.take_along_axis(jnp.where(items < 0, beyond, items), at, axis=1)
    labels = jnp.where(follows, labels, NO_ITEM)
    wrong = padding_of(given, time, reverse=False).wrong
    return labels if wrong is None else jnp.where(wrong[:, None], beyond, labels)
