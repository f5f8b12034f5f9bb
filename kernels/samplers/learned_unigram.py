"""A unigram sampler that learns its counts from the labels it is shown.

The counts stand in the leaves of a tree of sums with a wide fan-out. A draw walks down from the
root, a level a step, and an update adds to one sum a level, so both cost the number of draws or
labels times log(vocab) and not the vocabulary (donate the sampler to the jitted step, else it is
copied). The counts are integers: the probabilities are exact.

What forgets keeps its counts in parts of one, for each class one for itself and the rest for what
was seen. The rest is halved now and then, all of it, which costs the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, Integer

from jaxnets.kernels import checks
from jaxnets.kernels.losses import safe_ids
from jaxnets.kernels.samplers.by_contents import ByContents
from jaxnets.kernels.samplers.classes import as_vocab_size
from jaxnets.kernels.samplers.samples import CLASS_IDS

_FAN_OUT = 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LearnedUnigram(ByContents):
    """p = (1 + times seen) / total, of what :meth:`update` was shown.

    With a half-life h, times seen are halved each time that h labels more were shown: a label of j
    such periods ago counts :math:`2^{-j}` (for data whose distribution changes).

    Attributes:
      levels: the counts, [nodes, 128] with zeros behind the last class, then each node's sum, and
        so on up to a single node.
      vocab_size: how many classes.
      shown: [] int32, labels since the last halving; None without a half-life.
      half_life: h, or None: nothing is forgotten.
      unit: what one label adds to a count: with a half-life above 1, for its halves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> @jax.jit
      ... def probabilities(sampler, labels):
      ...     return jnp.exp(sampler.update(labels).log_probability(jnp.arange(4)))
      >>> found = probabilities(LearnedUnigram.create(4), jnp.array([3, 3, 1]))
      >>> (7 * found).round(2).tolist()
      [1.0, 2.0, 1.0, 3.0]
      >>> found = probabilities(LearnedUnigram.create(4, half_life=3), jnp.array([3, 3, 1]))
      >>> (5.5 * found).round(2).tolist()  # by now what it saw counts half
      [1.0, 1.5, 1.0, 2.0]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays.
    levels: Any  # tuple of Int32[Array, "nodes 128"]
    vocab_size: int = field(default=0, metadata={"static": True})
    shown: Any = None
    half_life: int | None = field(default=None, metadata={"static": True})
    unit: int = field(default=1, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.vocab_size:
            raise TypeError(
                "LearnedUnigram holds counts: make it by LearnedUnigram.create(vocab_size)"
            )

    @classmethod
    def create(cls, vocab_size: int, *, half_life: SupportsIndex | None = None) -> LearnedUnigram:
        """The sampler that has seen nothing: every class counts 1.

        Args:
          vocab_size: how many classes.
          half_life: after so many labels what was seen counts half; None: nothing is forgotten.
            It is to be larger than a batch.

        Raises:
          TypeError, ValueError: ``vocab_size`` is no integer, or not in [1, 2**30 - 1], or
            ``half_life`` is none, below 1, or too large: with ``vocab_size + 4 * half_life`` above
            2**31 - 1.
        """
        vocab_size = as_vocab_size(vocab_size, checks.INT32_MAX // 2)
        if half_life is None:
            return cls(_levels(jnp.ones(vocab_size, jnp.int32)), vocab_size)
        half_life = checks.as_int("half_life", half_life, 1)
        # The labels seen add up to two half-lives and two batches at most.
        parts = checks.INT32_MAX // (vocab_size + 4 * half_life)
        if not parts:
            raise ValueError(
                f"half_life must be at most {(checks.INT32_MAX - vocab_size) // 4} for "
                f"{vocab_size} classes, got {half_life}"
            )
        unit = 2 ** min(parts.bit_length() - 1, 16)
        ones = jnp.full(vocab_size, unit, jnp.int32)
        return cls(_levels(ones), vocab_size, jnp.zeros((), jnp.int32), half_life, unit)

    @property
    def support(self) -> int:
        return self.vocab_size

    def update(self, labels: Integer[ArrayLike, "..."] | Sequence) -> LearnedUnigram:
        """The sampler after ``labels [...]``; a label outside [0, vocab_size) is not counted.

        Counts are int32: once the total would pass 2**31 - 1, the sampler stays as it is.
        """
        labels = checks.as_integers("labels", labels, CLASS_IDS)
        ids = safe_ids(labels.reshape(-1), self.vocab_size)
        room = self._total() <= checks.INT32_MAX - ids.size * self.unit
        valid = ids < self.vocab_size
        one = jnp.where(room & valid, self.unit, 0)
        levels = []
        for nodes in self.levels:
            levels.append(nodes.at[ids // _FAN_OUT, ids % _FAN_OUT].add(one, mode="drop"))
            ids = ids // _FAN_OUT
        if self.half_life is None:
            return replace(self, levels=tuple(levels))
        shown = self.shown + valid.sum(dtype=jnp.int32)
        due = shown >= self.half_life
        forgotten = jax.lax.cond(due, self._halved, lambda levels: levels, tuple(levels))
        return replace(self, levels=forgotten, shown=jnp.where(due, 0, shown))

    def _halved(self, levels: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Half of what each class has beyond its own one."""
        counts = levels[0].reshape(-1)[: self.vocab_size]
        return _levels(self.unit + (counts - self.unit) // 2)

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Independent draws: a rank in [0, total), and the leaf that holds it."""
        rank = jax.random.randint(key, shape, 0, self._total(), jnp.int32)
        node = jnp.zeros(shape, jnp.int32)
        for level in reversed(self.levels):
            sums = jnp.cumsum(level[node], axis=-1)
            child = (sums <= rank[..., None]).sum(-1, dtype=jnp.int32)
            before = jnp.take_along_axis(sums, jnp.maximum(child - 1, 0)[..., None], -1)[..., 0]
            rank = rank - jnp.where(child > 0, before, 0)
            node = node * _FAN_OUT + child
        return node

    def log_probability(self, ids: Any) -> jax.Array:
        ids = safe_ids(checks.as_integers("ids", ids), self.vocab_size)
        count = (
            self.levels[0].reshape(-1)[jnp.minimum(ids, self.vocab_size - 1)].astype(jnp.float32)
        )
        return jnp.where(
            ids < self.vocab_size,
            jnp.log(count) - jnp.log(self._total().astype(jnp.float32)),
            -jnp.inf,
        )

    def _total(self) -> jax.Array:
        return self.levels[-1].sum(dtype=jnp.int32)


def _levels(sums: jax.Array) -> tuple[jax.Array, ...]:
    """The tree over ``sums [vocab]``."""
    levels = []
    while True:
        nodes = jnp.pad(sums, (0, -sums.size % _FAN_OUT)).reshape(-1, _FAN_OUT)
        levels.append(nodes)
        if len(nodes) == 1:
            return tuple(levels)
        sums = nodes.sum(1, dtype=jnp.int32)
