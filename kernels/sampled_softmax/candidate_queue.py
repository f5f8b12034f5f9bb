"""The items of the last batches as more negatives of this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import ArrayLike, Float, Integer, Shaped

from jaxnets.kernels import checks
from jaxnets.kernels.meshes import replicated
from jaxnets.kernels.sampled_softmax.in_batch import ExtraItems
from jaxnets.kernels.samplers.by_contents import ByContents
from jaxnets.kernels.samplers.samples import CLASS_IDS, as_mask


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class CandidateQueue(ByContents):
    """The last ``capacity`` items that were pushed, first in, first out: negatives of batches ago.

    For :func:`jaxnets.kernels.in_batch_softmax_cross_entropy`: many negatives with small batches
    (He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", section
    3.2; Wang et al. 2021, "Cross-Batch Negative Sampling for Training Two-Tower Recommenders").
    Items stay as they were computed and have no gradient: they are a little stale. A pytree of
    fixed shapes, for ``jax.jit`` and ``jax.lax.scan``; donate it, else it is copied. Where devices
    split the batch it is whole on each, and ``push`` gathers the items of all.

    Attributes:
      items: [capacity, features].
      labels: [capacity] int32.
      log_probability: [capacity] float32; infinity: nothing has been pushed there yet.
      next: [] int32, the place of the next item.

    Example:
      >>> import jax.numpy as jnp
      >>> queue = CandidateQueue.create(capacity=4, features=2)
      >>> queue = queue.push(jnp.ones((3, 2)), [7, 2, 9]).push(jnp.ones((3, 2)), [1, 4, 5])
      >>> queue.labels.tolist()
      [4, 5, 9, 1]
      >>> from jaxnets.kernels import in_batch_softmax_cross_entropy
      >>> vectors = jnp.ones((2, 2))
      >>> loss = in_batch_softmax_cross_entropy(vectors, vectors, [3, 4], extra=queue.extra)
      >>> bool(jnp.isclose(loss, jnp.log(30.0) / 2))  # of 6 items, and of 5: one is the query's own
      True
    """

    # Any: JAX rebuilds a pytree around whatever stands for its arrays.
    items: Any
    labels: Any
    log_probability: Any
    next: Any

    @classmethod
    def create(
        cls, capacity: SupportsIndex, features: SupportsIndex, dtype: DTypeLike = jnp.float32
    ) -> CandidateQueue:
        """An empty queue of items of ``dtype``.

        Raises:
          TypeError, ValueError: sizes that are no integers of at least 1, or a dtype that is not
            floating point.
        """
        capacity = checks.as_int("capacity", capacity, 1)
        features = checks.as_int("features", features, 1)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype must be floating point, got {jnp.dtype(dtype)}")
        return cls(
            jnp.zeros((capacity, features), dtype),
            jnp.zeros(capacity, jnp.int32),
            jnp.full(capacity, jnp.inf, jnp.float32),
            jnp.zeros((), jnp.int32),
        )

    @property
    def extra(self) -> ExtraItems:
        """What the loss takes as ``extra``."""
        return ExtraItems(lax.stop_gradient(self.items), self.labels, self.log_probability)

    def push(
        self,
        items: Float[ArrayLike, "batch features"],
        labels: Integer[ArrayLike, " batch"] | Sequence,
        log_probability: Float[ArrayLike, " batch"] | Sequence | None = None,
        *,
        mask: Shaped[ArrayLike, " batch"] | Sequence | None = None,
    ) -> CandidateQueue:
        """The queue with the items of a batch in the place of the oldest ones.

        Args:
          items: [batch, features], float, not more than the queue holds.
          labels: [batch], integer ids in the range of int32.
          log_probability: [batch]: log of each item's share of the data, as the loss takes it;
            None: no correction.
          mask: [batch], bool or 0 and 1: False marks a padded row, which is not pushed.

        Raises:
          TypeError: float labels, or integer items or ``log_probability``.
          ValueError: shapes that do not fit, or a label known to be beyond int32.
        """
        items = checks.as_floats("items", items)
        capacity, features = self.items.shape
        if items.ndim != 2 or items.shape[1] != features or len(items) > capacity:
            raise ValueError(
                f"items must be [batch, features = {features}] with a batch of at most {capacity}, "
                f"got {items.shape}"
            )
        labels = checks.as_integers("labels", labels, CLASS_IDS)
        if log_probability is None:
            log_probability = jnp.zeros(items.shape[:1], jnp.float32)
        log_probability = checks.as_floats("log_probability", log_probability)
        for name, array in (("labels", labels), ("log_probability", log_probability)):
            if array.shape != items.shape[:1]:
                raise ValueError(f"{name} must be {list(items.shape[:1])}, got {array.shape}")
        there = as_mask("mask", mask, labels.shape)
        checks.check_range(
            "labels", labels, -checks.INT32_MAX, checks.INT32_MAX, "the range of int32",
            except_for=~there,
        )  # fmt: skip
        return _pushed(self, items, labels, log_probability, there)


@jax.jit
@jax.named_scope("CandidateQueue")
def _pushed(
    queue: CandidateQueue,
    items: jax.Array,
    labels: jax.Array,
    log_probability: jax.Array,
    there: jax.Array,
) -> CandidateQueue:
    items, labels, log_probability, there = replicated((items, labels, log_probability, there))
    capacity = queue.labels.size
    at = (queue.next + jnp.cumsum(there, dtype=jnp.int32) - 1) % capacity
    at = jnp.where(there, at, capacity)  # out of bounds: dropped

    def put(array, new):
        new = lax.stop_gradient(new).astype(array.dtype)
        return array.at[at].set(new, mode="drop")

    return replace(
        queue,
        items=put(queue.items, items),
        labels=put(queue.labels, labels),
        log_probability=put(queue.log_probability, log_probability),
        next=(queue.next + there.sum(dtype=jnp.int32)) % capacity,
    )
