"""How often a batch holds an id, from the batches themselves: ids of any size, in fixed memory.

The steps between two batches that hold an id are its frequency's inverse. They are averaged in a
table that ids are hashed into, so no list of ids is needed, and what is rare no longer fades. Two
ids in one place look like one that comes more often; of several tables with hashes of their own the
longest interval is the one least disturbed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsFloat, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import placed_like, replicated
from jaxnets.kernels.samplers.by_contents import ByContents
from jaxnets.kernels.samplers.samples import CLASS_IDS, as_mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class StreamingFrequency(ByContents):
    r"""Log of how often a batch holds an id, as learned from the batches shown so far.

    At step t each place h of a table that an id of the batch is hashed into has

    .. math::
        B_h \leftarrow (1 - \alpha_n) B_h + \alpha_n (t - A_h), \qquad A_h \leftarrow t, \qquad
        \alpha_n = \max(\alpha, 1 / n)

    with A the step at which it was last hit and n how often it was, and the id is in a share
    :math:`1 / \max_i B^{(i)}_{h_i}` of the batches over tables i (Yi et al. 2019,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", algorithm 2;
    that the first intervals have equal weights is ours, so that the estimate has no bias from where
    it began). Frequencies that change are followed over :math:`1 / \alpha` hits.

    A pytree: donate it to the jitted step, else it is copied.

    Attributes:
      last: [tables, size] int32, A: 0 for a place that was never hit.
      interval: [tables, size] float32, B.
      hits: [tables, size] int32, n.
      step: [] int32, how many batches were shown.
      rate: alpha.

    Example:
      >>> import jax.numpy as jnp
      >>> seen = StreamingFrequency.create(1024)
      >>> for batch in ([7, 2**40], [7, 3], [7, 7], [7, 2**40]):
      ...     seen = seen.update(batch)
      >>> shares = jnp.exp(seen.log_expected_count([7, 2**40, 3, 5]))
      >>> [round(float(share), 3) for share in shares]  # 5 never came: 1 / (1 + 4)
      [1.0, 0.5, 0.5, 0.2]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays.
    last: Any = None
    interval: Any = None
    hits: Any = None
    step: Any = None
    rate: float = field(default=0.0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.rate:
            raise TypeError("make a StreamingFrequency by StreamingFrequency.create(size)")

    @classmethod
    def create(
        cls, size: SupportsIndex, *, tables: SupportsIndex = 2, rate: SupportsFloat = 0.01
    ) -> StreamingFrequency:
        """What has been shown nothing.

        Args:
          size: places of each table, at least 1: well above the number of ids that matter.
          tables: how many, at least 1, each with a hash of its own.
          rate: alpha, in (0, 1].

        Raises:
          TypeError, ValueError: a size that is no integer, or what is out of its range.
        """
        shape = checks.as_int("tables", tables, 1), checks.as_int("size", size, 1)
        rate = checks.as_number("rate", rate)
        if not 0 < rate <= 1:
            raise ValueError(f"rate must lie in (0, 1], got {rate}")
        return cls(
            jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32),
            jnp.zeros(shape, jnp.int32), jnp.zeros((), jnp.int32), rate,
        )  # fmt: skip

    def update(
        self,
        ids: Integer[ArrayLike, "..."] | Sequence,
        *,
        mask: Shaped[ArrayLike, "..."] | Sequence | None = None,
    ) -> StreamingFrequency:
        """What it is after one batch more, of ``ids [...]``; an id counts once in a batch.

        Args:
          ids: [...], integers of any size. (Outside ``jax.enable_x64`` give ids of 64 bits as
            NumPy arrays or lists, outside ``jit``.)
          mask: [...], bool or 0 and 1: False marks padding.

        Raises:
          TypeError: float ids.
          ValueError: a mask of another shape.
        """
        low, high = _words(ids)
        return _updated(self, low, high, as_mask("mask", mask, low.shape))

    def log_expected_count(self, ids: Integer[ArrayLike, "..."] | Sequence) -> jax.Array:
        """Log of the share of batches that hold each id, float32 [...].

        What :func:`jaxnets.kernels.in_batch_softmax_cross_entropy` takes as ``log_probability``
        and :meth:`jaxnets.kernels.Samples.from_candidates` as ``log_expected_count``. An id that
        never came has 1 / (1 + steps).
        """
        return _log_expected_count(self, *_words(ids))


@jax.jit
@jax.named_scope("StreamingFrequency")
def _updated(
    seen: StreamingFrequency, low: jax.Array, high: jax.Array, there: jax.Array
) -> StreamingFrequency:
    low, high, there = replicated((low.reshape(-1), high.reshape(-1), there.reshape(-1)))
    step = seen.step + 1
    tables, places = _places(seen, low, high)
    last, interval, hits = (a[tables, places] for a in (seen.last, seen.interval, seen.hits))
    share = jnp.maximum(jnp.float32(seen.rate), 1 / (hits + 1).astype(jnp.float32))
    interval = interval + share * ((step - last).astype(jnp.float32) - interval)
    # Ids of one place all write the same; what is padded is out of bounds.
    at = tables, jnp.where(there, places, seen.last.shape[1])
    return replace(
        seen,
        last=seen.last.at[at].set(step, mode="drop"),
        interval=seen.interval.at[at].set(interval, mode="drop"),
        hits=seen.hits.at[at].set(hits + 1, mode="drop"),
        step=step,
    )


@jax.jit
@jax.named_scope("StreamingFrequency")
def _log_expected_count(seen: StreamingFrequency, low: jax.Array, high: jax.Array) -> jax.Array:
    at = _places(seen, *replicated((low.reshape(-1), high.reshape(-1))))
    known = (seen.hits[at] > 0).all(0)
    longest = jnp.where(known, seen.interval[at].max(0), (seen.step + 1).astype(jnp.float32))
    return placed_like(low, -jnp.log(longest).reshape(low.shape))


def _places(
    seen: StreamingFrequency, low: jax.Array, high: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where ids [n] stand: the numbers of the tables [tables, 1], and in each [tables, n]."""
    count, size = seen.last.shape
    places = [_hashed(low, high, table) % jnp.uint32(size) for table in range(count)]
    return jnp.arange(count)[:, None], jnp.stack(places).astype(jnp.int32)


def _words(ids: Any) -> tuple[jax.Array, jax.Array]:
    """The lower and the upper 32 bits of ids of any width, uint32 each."""
    checks.as_integers("ids", ids, CLASS_IDS)
    if checks.holds_tracers(ids) or isinstance(ids, jax.Array):
        ids = jnp.asarray(ids)
    else:  # JAX would cut 64 bits to 32
        ids = np.asarray(ids)
        ids = ids if ids.dtype.kind == "u" else ids.astype(np.int64)
    if ids.dtype.itemsize == 8:
        low, high = ids & 0xFFFFFFFF, (ids >> 32) & 0xFFFFFFFF
    else:
        low, high = ids, -(ids < 0).astype(np.int32)
    return jnp.asarray(low.astype(np.uint32)), jnp.asarray(high.astype(np.uint32))


def _hashed(low: jax.Array, high: jax.Array, table: int) -> jax.Array:
    """A hash of 64 bits to 32, of another function for each table: MurmurHash3's, of two words."""
    state = jnp.full_like(low, (table * 0x9E3779B9 + 1) & 0xFFFFFFFF)
    for word in (low, high):
        word = _rotated(word * jnp.uint32(0xCC9E2D51), 15) * jnp.uint32(0x1B873593)
        state = _rotated(state ^ word, 13) * jnp.uint32(5) + jnp.uint32(0xE6546B64)
    state = state ^ (state >> 16)
    state = state * jnp.uint32(0x85EBCA6B)
    state = state ^ (state >> 13)
    state = state * jnp.uint32(0xC2B2AE35)
    return state ^ (state >> 16)


def _rotated(word: jax.Array, bits: int) -> jax.Array:
    return (word << bits) | (word >> (32 - bits))
