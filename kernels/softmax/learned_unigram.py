"""A unigram sampler that learns its counts from the labels it is shown.

The counts stand in the leaves of a tree of sums with a wide fan-out. A draw walks down from the
root, a level a step, and an update adds to one sum a level, so both cost the number of draws or
labels times log(vocab) and not the vocabulary (donate the sampler to the jitted step, else it is
copied). The counts are integers: the probabilities are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Integer

from jaxnets.kernels.softmax import arguments

_FAN_OUT = 128


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LearnedUnigram:
    """p = (1 + times seen) / total, of what :meth:`update` was shown.

    levels: the counts, [nodes, 128] with zeros behind the last class, then each node's sum, and so
      on up to a single node.

    Example:
      >>> import jax.numpy as jnp
      >>> sampler = LearnedUnigram.create(1000).update(jnp.array([3, 3, 8]))
      >>> [round(float(p) * 1003) for p in jnp.exp(sampler.log_probability(jnp.array([3, 8, 9])))]
      [3, 2, 1]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays.
    levels: Any  # tuple of Int32[Array, "nodes 128"]
    vocab: int = field(metadata={"static": True})

    @classmethod
    def create(cls, vocab: int) -> LearnedUnigram:
        """The sampler that has seen nothing: every class counts 1."""
        if not 1 <= vocab <= arguments.INT32_MAX // 2:
            raise ValueError(f"vocab must lie in [1, {arguments.INT32_MAX // 2}], got {vocab}")
        sums = jnp.ones(vocab, jnp.int32)
        levels = []
        while True:
            nodes = jnp.pad(sums, (0, -sums.size % _FAN_OUT)).reshape(-1, _FAN_OUT)
            levels.append(nodes)
            if len(nodes) == 1:
                return cls(tuple(levels), vocab)
            sums = nodes.sum(1, dtype=jnp.int32)

    @property
    def support(self) -> int:
        return self.vocab

    def update(self, labels: Integer[Array, "..."]) -> LearnedUnigram:
        """The sampler after ``labels [...]``; a label outside [0, vocab) is not counted.

        Counts are int32: once the total would pass 2**31 - 1, the sampler stays as it is.
        """
        arguments.check_integers("labels", labels)
        ids = arguments.safe_ids(labels.reshape(-1), self.vocab)
        room = self._total() <= arguments.INT32_MAX - ids.size
        valid = ids < self.vocab
        one = jnp.where(room & valid, 1, 0)
        levels = []
        for nodes in self.levels:
            levels.append(nodes.at[ids // _FAN_OUT, ids % _FAN_OUT].add(one, mode="drop"))
            ids = ids // _FAN_OUT
        return replace(self, levels=tuple(levels))

    def draw(self, key, shape):
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

    def log_probability(self, ids):
        ids = arguments.safe_ids(ids, self.vocab)
        count = self.levels[0].reshape(-1)[jnp.minimum(ids, self.vocab - 1)].astype(jnp.float32)
        return jnp.where(
            ids < self.vocab, jnp.log(count) - jnp.log(self._total().astype(jnp.float32)), jnp.nan
        )

    def _total(self):
        return self.levels[-1].sum(dtype=jnp.int32)
