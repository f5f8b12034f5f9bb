"""What a CPU says of its caches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Where a system doesn't say: what a core of most machines has at least.
_USUAL_BYTES = 2**20
_CORES = Path("/sys/devices/system/cpu")


class _Cache(NamedTuple):
    level: int
    bytes: int
    sharers: int  # cores that have it together


@cache
def second_level_bytes() -> int:
    """Of the second-level caches of all cores that this process may run on, together."""
    return sum(map(_share, _cores()))


@cache
def last_level_bytes() -> int:
    """Of the largest cache that the first of these cores has, alone or with others."""
    return max((found.bytes for found in _caches(_cores()[0])), default=_USUAL_BYTES)


def by_level() -> dict[str, str]:
    """The sizes of those that the first of these cores has, as {"L1": "32K", "L2": "1024K"}."""
    return {f"L{found.level}": f"{found.bytes // 1024}K" for found in sorted(_caches(_cores()[0]))}


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _share(core: int) -> int:
    """Of the second level, of which others may have theirs."""
    shares = (found.bytes // found.sharers for found in _caches(core) if found.level == 2)
    return next(shares, _USUAL_BYTES)


def _caches(core: int) -> Iterator[_Cache]:
    """Those that hold data, as far as the system tells."""
    for found in (_CORES / f"cpu{core}" / "cache").glob("index*"):
        try:
            kind, level, size, sharers = (
                (found / name).read_text().strip()
                for name in ("type", "level", "size", "shared_cpu_map")
            )
            count = int(sharers.replace(",", ""), 16).bit_count()
            if kind != "Instruction" and size.endswith("K") and count > 0:
                yield _Cache(int(level), int(size[:-1]) * 1024, count)
        except (OSError, ValueError):
            continue
