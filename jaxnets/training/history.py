"""The host's side of a run: where it is, and what it found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jaxnets.training.arguments import check_metrics


class History:
    """A row of metrics for each evaluation, and which of them is the best."""

    def __init__(self, monitor: str | None, mode: str, patience: int | None):
        self._monitor, self._mode, self._patience = monitor, mode, patience
        self.rows: list[dict[str, Any]] = []
        self.step = 0

    def saved(self) -> dict[str, Any]:
        """As JSON, for ``restore``."""
        return {"history": self.rows, "step": self.step}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what ``saved`` gave."""
        self.rows, self.step = saved["history"], saved["step"]

    def mean_loss(self, total: float) -> float:
        """Of the steps since the last row, whose losses sum to ``total``.

        Raises:
          FloatingPointError: it is not finite.
        """
        mean = float(total) / (self.step - (self.rows[-1]["step"] if self.rows else 0))
        if not math.isfinite(mean):
            raise FloatingPointError(f"the loss is {mean} before step {self.step}")
        return mean

    def add(self, loss: float, metrics: Mapping[str, Any], evaluated: Any) -> bool:
        """Adds a row; whether it is the best so far.

        Args:
          loss: the mean since the last row.
          metrics: of the last step's loss.
          evaluated: what ``evaluate`` returned.

        Raises:
          TypeError, ValueError: ``evaluated`` is not metrics, or they lack the monitored one.
        """
        row = {"step": self.step, "loss": loss} | {k: float(v) for k, v in metrics.items()}
        evaluated = check_metrics(evaluated, "evaluate", own=tuple(row))
        row |= {name: float(value) for name, value in evaluated.items()}
        if self._monitor is not None and self._monitor not in list(row)[1:]:
            raise ValueError(f"monitor must be one of {tuple(row)[1:]}, got {self._monitor!r}")
        self.rows.append(row)
        return self.best is row

    @property
    def best(self) -> dict[str, Any] | None:
        """The row with the best, the first of equals; NaN is never best. None: there is none."""
        monitor = self._monitor
        if monitor is None:
            return None
        known = [row for row in self.rows if not math.isnan(row[monitor])]
        pick = max if self._mode == "max" else min
        return pick(known, key=lambda row: row[monitor], default=None)

    @property
    def stopped(self) -> bool:
        """Whether patience has run out."""
        if self._patience is None:
            return False
        best = self.best
        since = [row for row in self.rows if best is None or row["step"] > best["step"]]
        return len(since) >= self._patience

    def check_best(self) -> None:
        """Raises ``FloatingPointError`` if the monitored metric was NaN in every row."""
        if self._monitor is not None and self.best is None:
            raise FloatingPointError(
                f"{self._monitor!r}, which is monitored, is NaN in each of {len(self.rows)} "
                "evaluations: none of them is the best"
            )
