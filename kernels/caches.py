"""What a CPU says of its caches."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

# Where a system doesn't say: what a core of most machines has at least.
_USUAL_BYTES = 2**20
_CORES = Path("/sys/devices/system/cpu")


@cache
def second_level_bytes() -> int:
    """Of the second-level caches of all cores that this process may run on, together."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(os.cpu_count() or 1))
    return sum(map(_share, cores))


def _share(core: int) -> int:
    """Of a core, which may have the cache together with others."""
    for found in (_CORES / f"cpu{core}" / "cache").glob("index*"):
        try:
            kind, level, size, sharers = (
                (found / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_map")
            )
            if level == "2" and kind != "Instruction" and size.endswith("K"):
                return int(size[:-1]) * 1024 // int(sharers.replace(",", ""), 16).bit_count()
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return _USUAL_BYTES
