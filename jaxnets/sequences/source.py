"""A plan's batches by number: a random-access source, as Grain reads it or a plain loop.

``grain.MapDataset.source(BatchSource(...))`` brings Grain's prefetching, its workers and its
checkpoints; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxnets.sequences.padding import Batch, pad_batch
from jaxnets.sequences.plan import Plan, Shape


class BatchSource:
    """The padded batches of ``epochs`` epochs of a plan, one process's rows of each.

    Args:
      plan: from :func:`jaxnets.sequences.bucket_plan`.
      sides: for each side the sequences of all examples, [time, ...] each.
      rows: a tree of arrays [examples, ...], one entry an example (labels).
      epochs: how many; each has an order of its own.
      process: which share of the rows.

    Example:
      >>> import numpy as np
      >>> from jaxnets.sequences import bucket_plan
      >>> words = [np.ones(n) for n in (2, 3, 9)]
      >>> source = BatchSource(bucket_plan([2, 3, 9], [3, 9], batch=2), [words], epochs=2)
      >>> len(source), source[0].sequences[0].shape[0]
      (4, 2)
    """

    def __init__(
        self,
        plan: Plan,
        sides: Sequence[Sequence[np.ndarray]],
        rows: Any = (),
        *,
        epochs: int = 1,
        process: int = 0,
    ):
        self.plan, self.sides, self.rows = plan, sides, rows
        self.epochs, self.process = epochs, process
        self._order: tuple[int, list[tuple[Shape, np.ndarray]]] | None = None

    def __len__(self) -> int:
        return self.epochs * self.plan.batches

    def __getitem__(self, number: int) -> Batch:
        if not 0 <= number < len(self):
            raise IndexError(f"number must lie in [0, {len(self)}), got {number}")
        epoch, batch = divmod(int(number), self.plan.batches)
        # Kept in one assignment: Grain reads from several threads.
        order = self._order
        if order is None or order[0] != epoch:
            order = self._order = (epoch, list(self.plan.epoch(epoch, process=self.process)))
        shape, examples = order[1][batch]
        return pad_batch(self.sides, examples, shape, self.rows)
