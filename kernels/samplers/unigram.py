"""The sampler of any fixed distribution over the classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import checks
from jaxnets.kernels.losses import safe_ids
from jaxnets.kernels.samplers.by_contents import ByContents


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Unigram(ByContents):
    """p = counts / total, drawn in O(1) by the alias method (Walker 1977; Vose 1991).

    Example:
      >>> import jax.numpy as jnp
      >>> sampler = Unigram.from_counts([3, 0, 1])
      >>> jnp.exp(sampler.log_probability(jnp.arange(3))).tolist()
      [0.75, 0.0, 0.25]
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays, [vocab] each.
    threshold: Any = None
    alias: Any = None
    log_p: Any = None
    support: int = field(default=0, metadata={"static": True})

    def __post_init__(self) -> None:
        if not self.support:
            raise TypeError("Unigram holds tables: make it by Unigram.from_counts(counts)")

    @classmethod
    def from_counts(cls, counts: Any, power: float = 1.0) -> Unigram:
        """The sampler with p proportional to ``counts ** power``.

        Args:
          counts: [vocab], at least 0, concrete; a class counted 0 is never drawn.
          power: at least 0; 0.75 is word2vec's (Mikolov et al. 2013).

        Raises:
          ValueError: counts or power that are not so.
        """
        if isinstance(counts, jax.core.Tracer):
            raise ValueError("counts must be concrete: make the sampler outside jit")
        if not 0 <= power < np.inf:
            raise ValueError(f"power must be finite and at least 0, got {power}")
        try:
            mass = np.asarray(counts, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"counts must be [vocab] numbers: {error}") from None
        if mass.ndim != 1 or not mass.size:
            raise ValueError(f"counts must be [vocab], got shape {mass.shape}")
        if not np.isfinite(mass).all() or (mass < 0).any() or not mass.any():
            raise ValueError("counts must be finite, at least 0, and not all 0")
        mass = np.where(mass > 0, (mass / mass.max()) ** power, 0)
        probability = mass / mass.sum()
        threshold, alias = _alias_table(probability)
        with np.errstate(divide="ignore"):
            log_p = np.log(probability)
        return cls(
            jnp.asarray(threshold, jnp.float32),
            jnp.asarray(alias, jnp.int32),
            jnp.asarray(log_p, jnp.float32),
            int((probability > 0).sum()),
        )

    @property
    def vocab_size(self) -> int:
        return self.log_p.shape[0]

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return draw_by_alias(
            key, shape, self.vocab_size, lambda k: (self.threshold[k], self.alias[k])
        )

    def log_probability(self, ids: Any) -> jax.Array:
        ids = checks.as_integers("ids", ids)
        return self.log_p.at[safe_ids(ids, self.vocab_size)].get(mode="fill", fill_value=-jnp.inf)


def draw_by_alias(
    key: jax.Array, shape: tuple[int, ...], vocab_size: int, look_up: Callable[[jax.Array], Any]
) -> jax.Array:
    """int32 ids of ``shape``; ``look_up(slots)`` gives thresholds and aliases (Walker 1977)."""
    slot_key, side_key = jax.random.split(key)
    slot = jax.random.randint(slot_key, shape, 0, vocab_size, jnp.int32)
    threshold, alias = look_up(slot)
    stay = jax.random.uniform(side_key, shape, jnp.float32) < threshold
    return jnp.where(stay, slot, alias)


def _alias_table(probability: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vose's table: slot k keeps its own class with probability threshold[k], else alias[k]."""
    vocab_size = probability.size
    scaled = (probability * vocab_size).tolist()
    threshold, alias = [1.0] * vocab_size, list(range(vocab_size))
    small = [k for k, mass in enumerate(scaled) if mass < 1]
    large = [k for k, mass in enumerate(scaled) if mass >= 1]
    while small and large:
        under, over = small.pop(), large[-1]
        threshold[under], alias[under] = scaled[under], over
        scaled[over] -= 1 - scaled[under]
        if scaled[over] < 1:
            small.append(large.pop())
    # What is left holds 1 up to rounding, unless its class is impossible.
    for under in small:
        if probability[under] == 0:
            threshold[under], alias[under] = 0.0, int(probability.argmax())
    return np.array(threshold), np.array(alias)
