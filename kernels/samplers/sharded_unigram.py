"""The unigram sampler with its tables split over devices.

Log-uniform and uniform samplers have no tables: with one key they draw the same on every device.
Here a draw looks its slot up where it is, so what is sent grows with the draws; the race that
finishes unique draws (``without_replacement.py``) runs on each device over its own classes, and
only each one's first arrivals are sent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets.kernels.rows.sharded import take_sharded
from jaxnets.kernels.samplers.by_contents import ByContents
from jaxnets.kernels.samplers.unigram import Unigram, draw_by_alias
from jaxnets.kernels.samplers.without_replacement import Arrivals, race
from jaxnets.kernels.vocab_sharding import VocabSharding, as_sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class ShardedUnigram(ByContents):
    """:class:`Unigram` whose tables are split over ``sharding.vocab_axis``.

    Its draws with replacement are those of :class:`Unigram` for the same key. Unique draws have the
    same distribution; where they take the race, other numbers decide it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxnets.kernels import draw_samples
      >>> sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
      >>> sampler = ShardedUnigram.split(sharding, Unigram.from_counts(jnp.array([1, 0, 3, 4])))
      >>> samples = draw_samples(sampler, jax.random.key(0), 64, jnp.array([2]), unique=False)
      >>> set(samples.ids.tolist()) <= {0, 2, 3}
      True
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays, [vocab] each.
    threshold: Any
    alias: Any
    log_p: Any
    support: int = field(metadata={"static": True})
    sharding: VocabSharding = field(metadata={"static": True})

    @classmethod
    def split(cls, sharding: VocabSharding, sampler: Unigram) -> ShardedUnigram:
        """``sampler`` with its tables split."""
        sharding = as_sharding(sharding)
        sharding.check(sampler.vocab_size, (sharding.mesh.size,))
        placed = NamedSharding(sharding.mesh, sharding.table_spec)
        tables = jax.device_put((sampler.threshold, sampler.alias, sampler.log_p), placed)
        threshold, alias, log_p = tables
        return cls(threshold, alias, log_p, sampler.support, sharding)

    @property
    def vocab_size(self) -> int:
        return self.log_p.shape[0]

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        def look_up(slot: jax.Array) -> list[jax.Array]:
            return [take_sharded(self.sharding, t, slot) for t in (self.threshold, self.alias)]

        return draw_by_alias(key, shape, self.vocab_size, look_up)

    def log_probability(self, ids: Any) -> jax.Array:
        return take_sharded(self.sharding, self.log_p, ids)

    def race(self, key: jax.Array, known_ids: jax.Array) -> Arrivals:
        """The first ``known_ids.size`` classes to arrive that are not among ``known_ids``."""
        sharding, count = self.sharding, known_ids.size

        def on_device(log_p, key, known_ids):
            size = log_p.shape[0]
            here = jax.random.fold_in(key, sharding.start(size))
            known, _ = sharding.local_ids(known_ids, size)
            first = race(here, jnp.exp(log_p), known, min(count, size))
            ids = first.ids + sharding.start(size)
            everyone = [
                lax.all_gather(a, sharding.vocab_axes, tiled=True) if sharding.vocab_axes else a
                for a in (first.times, ids, first.probability)
            ]
            times, order = lax.top_k(-everyone[0], count)
            mass = sharding.sum_over_vocab(first.known)
            return Arrivals(-times, everyone[1][order], everyone[2][order], mass)

        specs = (sharding.table_spec, P(), P())
        return sharding.run(on_device, specs, P(), self.log_p, key, known_ids)
