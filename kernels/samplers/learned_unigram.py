"""A unigram sampler that learns its counts from the labels it is shown.

The counts stand in the leaves of a tree of sums with a wide fan-out. A draw walks down from the
root, a level a step, and an update adds to one sum a level, so both cost the number of draws or
labels times log(vocab) and not the vocabulary (donate the sampler to the jitted step, else it is
copied). The counts are integers: the probabilities are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

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

    Attributes:
      levels: the counts, [nodes, 128] with zeros behind the last class, then each node's sum, and
        so on up to a single node.
      vocab_size: how many classes.

    Example:
      >>> import jax.numpy as jnp
      >>> sampler = LearnedUnigram.create(1000).update(jnp.array([3, 3, 8]))
      >>> [round(float(p) * 1003) for p in jnp.exp(sampler.log_probability(jnp.array([3, 8, 9])))]
      [3, 2, 1]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays.
    levels: Any  # tuple of Int32[Array, "nodes 128"]
    vocab_size: int = field(default=0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.vocab_size:
            raise TypeError(
                "LearnedUnigram holds counts: make it by LearnedUnigram.create(vocab_size)"
            )

    @classmethod
    def create(cls, vocab_size: int) -> LearnedUnigram:
        """The sampler that has seen nothing: every class counts 1.

        Raises:
          TypeError, ValueError: ``vocab_size`` is no integer, or not in [1, 2**30 - 1].
        """
        vocab_size = as_vocab_size(vocab_size, checks.INT32_MAX // 2)
        sums = jnp.ones(vocab_size, jnp.int32)
        levels = []
        while True:
            nodes = jnp.pad(sums, (0, -sums.size % _FAN_OUT)).reshape(-1, _FAN_OUT)
            levels.append(nodes)
            if len(nodes) == 1:
                return cls(tuple(levels), vocab_size)
            sums = nodes.sum(1, dtype=jnp.int32)

    @property
    def support(self) -> int:
        return self.vocab_size

    def update(self, labels: Integer[ArrayLike, "..."] | Sequence) -> LearnedUnigram:
        """The sampler after ``labels [...]``; a label outside [0, vocab_size) is not counted.

        Counts are int32: once the total would pass 2**31 - 1, the sampler stays as it is.
        """
        labels = checks.as_integers("labels", labels, CLASS_IDS)
        ids = safe_ids(labels.reshape(-1), self.vocab_size)
        room = self._total() <= checks.INT32_MAX - ids.size
        valid = ids < self.vocab_size
        one = jnp.where(room & valid, 1, 0)
        levels = []
        for nodes in self.levels:
            levels.append(nodes.at[ids // _FAN_OUT, ids % _FAN_OUT].add(one, mode="drop"))
            ids = ids // _FAN_OUT
        return replace(self, levels=tuple(levels))

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
