"""What more cores bring: a step of each kernel on one core, and on all that there are.

``python -m benchmarks.threads CASE CORES`` is the process of one of them. XLA has as many threads
as the process has cores when JAX starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import jax

from benchmarks import profiling
from benchmarks.bars import bar, ratio
from benchmarks.harness import Suite, cores, measure
from benchmarks.limits import Limits
from benchmarks.workers import WorkerCase, answer

CASES = {
    "exact loss": profiling.exact_case,
    "sampled step": profiling.sampled_case,
    "LSTM": profiling.lstm_case,
    "1x1 convolution": profiling.pointwise_case,
}
QUICK = "Cores: all of them, and not one beside."


def run(limits: Limits, suite: Suite, names: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """The rows and the bars; none where there is one core, or the system cannot keep to it."""
    available = cores()
    if suite == "quick" or available == 1 or not hasattr(os, "sched_setaffinity"):
        return [], []
    rows, bars = [], []
    for name in names:
        made = [
            WorkerCase(f"on {count} of {available} cores", "benchmarks.threads", name, count)
            for count in (1, available)
        ]
        one, every = measure(f"cores, {name}", list(made), 5, limits)
        for case in made:
            case.close()
        rows += [one, every]
        bars.append(bar(f"{name}: time on 1 core / on {available}", ratio(one, every)))
    return rows, bars


if __name__ == "__main__":
    chosen, count = CASES[sys.argv[1]], int(sys.argv[2])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    case = chosen()
    answer(lambda: jax.block_until_ready(case.run()))
