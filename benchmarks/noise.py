"""What disturbs a measurement: the spread of its rounds, and what else the machine does."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

NOISY = 0.1  # a spread above this is measured again


def spread(seconds: Sequence[float]) -> float:
    """The interquartile range of the rounds over their median: one odd round alone has none."""
    low, median, high = np.percentile(seconds, (25, 50, 75))
    return float((high - low) / median)


class Others:
    """How many cores other processes, or other guests of the same host, keep busy from now on."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _busy(), _own()

    def cores(self) -> float | None:
        """On average since it was made; None where the system does not tell."""
        start, busy_before, own_before = self._start
        busy = _busy()
        if busy is None or busy_before is None:
            return None
        others = busy - busy_before - (_own() - own_before)
        return max(0.0, others / (time.perf_counter() - start))


def _busy() -> float | None:
    """Seconds that all cores together were busy, or taken away, since the machine started."""
    try:
        line = Path("/proc/stat").read_text().splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _waits, irq, softirq, stolen = map(int, line.split()[1:9])
    return (user + nice + system + irq + softirq + stolen) / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds of this process and of its children, which run peers."""
    ended = os.times()
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            fields = path.read_text().rpartition(")")[2].split()  # from the third on, the state
            if int(fields[1]) == os.getpid():
                ticks += int(fields[11]) + int(fields[12])
    own = ended.user + ended.system + ended.children_user + ended.children_system
    return own + ticks / os.sysconf("SC_CLK_TCK")


def notes(rows: list[dict]) -> list[str]:
    """A sentence for what stayed noisy, and one for the load."""
    loads = [load for row in rows if (load := row["extra_info"].get("others_cores")) is not None]
    found = []
    if loads:
        found.append(f"Other processes kept {max(loads):.1f} cores busy at most while cases ran.")
    wide = [row["fullname"] for row in rows if row["extra_info"].get("spread", 0) > NOISY]
    if wide:
        found.append(
            f"Rounds spread over more than {NOISY:.0%} of the median, repeated or not: "
            f"{'; '.join(wide)}."
        )
    return found
