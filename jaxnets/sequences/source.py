"""A plan's batches by number: a random-access source, as Grain reads it or a plain loop.

``grain.MapDataset.source(BatchSource(...))`` brings Grain's prefetching, its workers and its
checkpoints; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

from jaxnets.kernels.checks import as_int
from jaxnets.sequences.arrays import Side, as_rows
from jaxnets.sequences.padding import Batch, assemble, check_counts
from jaxnets.sequences.plan import Order, Plan, Shape

KEPT = 8  # orders of epochs; each takes 8 bytes an example


class BatchSource:
    """The padded batches of ``epochs`` epochs of a plan, one process's rows of each.

    Args:
      plan: from :func:`jaxnets.sequences.bucket_plan`.
      sides: for each side the sequences of all examples, [time, ...] each, arrays or lists. A
        side that is not one array is read once at the start: every batch has the common type
        (``np.result_type``) of all its sequences.
      rows: a tree of arrays [examples, ...], one entry an example (labels), each kept in its type;
        a list of labels is one array.
      epochs: how many; each has an order of its own.
      process: which share of the rows.

    Raises:
      TypeError: sequences or labels without a common type that holds them all.
      ValueError: other numbers of sides, sequences or rows than the plan has; sequences that differ
        in the axes after time; ``epochs`` or ``process`` out of range.

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
        sides: Sequence[Any],
        rows: Any = (),
        *,
        epochs: SupportsIndex = 1,
        process: SupportsIndex = 0,
    ):
        count, wanted = plan.lengths.shape
        if len(sides) != wanted:
            raise ValueError(
                f"sides must be {wanted} as the plan's lengths are [examples, {wanted}], got "
                f"{len(sides)}: a list of one list of sequences a side, and a plan of pairs for two"
            )
        check_counts(sides, count, "the plan's examples")
        self.plan = plan
        self.sides = [Side(f"sides[{i}]", side, range(count)) for i, side in enumerate(sides)]
        self.rows = as_rows(rows, count, "the plan's examples")
        self.epochs, self.process = as_int("epochs", epochs, 1), plan.check_process(process)
        self._orders: dict[int, Order] = {}  # of the epochs last read, the latest at the end

    def __len__(self) -> int:
        return self.epochs * self.plan.batches

    def __getitem__(self, number: SupportsIndex) -> Batch:
        position = as_int("number", number)
        if not 0 <= position < len(self):
            raise IndexError(f"number must lie in [0, {len(self)}), got {position}")
        epoch, batch = divmod(position, self.plan.batches)
        shape, examples = self._order(epoch)[batch]
        own = examples[self.process :: self.plan.processes]
        return assemble(self.sides, own, Shape(len(own), shape.times), self.rows)

    def _order(self, epoch: int) -> Order:
        # A new dict in one assignment, not a change: Grain reads from several threads.
        orders = self._orders
        order = orders[epoch] if epoch in orders else Order(self.plan, epoch)
        others = [item for item in orders.items() if item[0] != epoch]
        self._orders = dict([*others[1 - KEPT :], (epoch, order)])
        return order
