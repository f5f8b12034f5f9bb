"""Reads the TPU compiler's schedule of a kernel: its VLIW bundles, and which units each keeps busy.

A core issues a bundle a cycle and reorders nothing, so the bundles of a loop's body times its trips
are the kernel's cycles, but for waiting on memory. Every branch counts as taken: a kernel that does
something only in its first or last step of a loop is charged for it in each.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple


class Schedule(NamedTuple):
    """A kernel as it was scheduled.

    Attributes:
      cycles: the compiler's estimate: bundles, the trips of the loops around them counted.
      units: of each unit the share of its capacity that is used, over these cycles.
      unknown_loops: loops whose trips the schedule does not say; they count once.
    """

    cycles: int
    units: dict[str, float]
    unknown_loops: int


class _Bundle(NamedTuple):
    """One bundle: its mark (LB: a loop's body begins), the depth of loops, and its text."""

    mark: str
    depth: int
    text: str


_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|\d+) +([LPC][A-Z])? *: *(>*) *\{(.*)$")


_DUMPS = "final_bundles", "final_hlo-static-per-bundle-utilization"


def read(folder: Path, name: str) -> Schedule | None:
    """The schedule of the instruction ``name`` in a folder of dumps; None where it has none."""
    dump = re.compile(rf"\d+-{re.escape(name)}-\d+-({'|'.join(_DUMPS)})\.txt")
    found = {match[1]: file for file in folder.iterdir() if (match := dump.fullmatch(file.name))}
    if _DUMPS[0] not in found:
        return None
    return schedule(*(found[kind].read_text() for kind in _DUMPS if kind in found))


def schedule(bundles: str, utilization: str = "") -> Schedule:
    """The schedule of the text of ``final_bundles`` and of the utilization beside it."""
    runs, unknown = _runs(bundles)
    units = _units(utilization, runs)
    return Schedule(sum(runs), units, unknown)


def _bundles(text: str) -> list[_Bundle]:
    bundles: list[_Bundle] = []
    for line in text.splitlines():
        if found := _BUNDLE.match(line):
            bundles.append(_Bundle(found[1] or "", len(found[2]), found[3]))
        elif bundles:  # a comment of several lines
            last = bundles[-1]
            bundles[-1] = last._replace(text=f"{last.text}\n{line}")
    return bundles


def _runs(text: str) -> tuple[list[int], int]:
    """How often each bundle runs, and the number of loops that do not say."""
    bundles = _bundles(text)
    starts = [n for n, bundle in enumerate(bundles) if bundle.mark == "LB" and bundle.depth]
    runs, owner = [1] * len(bundles), [-1] * len(bundles)
    loops = {}
    for start in starts:
        depth = bundles[start].depth
        # An instruction that was moved into a loop keeps the depth that it had. So a loop ends with
        # the last bundle of its depth before another begins there, not with the first of a lesser.
        limit = next((n for n in starts if n > start and bundles[n].depth <= depth), len(bundles))
        end = max(n for n in range(start, limit) if bundles[n].depth >= depth) + 1
        loops[start] = range(start, end)
        for n in loops[start]:
            owner[n] = start  # inner loops begin later, and take theirs
    unknown = 0
    for start, inside in loops.items():
        own = "\n".join(bundles[n].text for n in inside if owner[n] == start)
        trips = _trips(own)
        unknown += trips is None
        for n in inside:
            runs[n] *= trips or 1
    return runs, unknown


def _trips(text: str) -> int | None:
    """From a loop's exit test and the step of its counter, which starts at 0."""
    test = re.search(r"scmp\.ge\.s32\.totalorder (%s\w+), (\d+) /\* loop exit test", text)
    if test is None:
        return None
    step = re.search(rf"{test[1]} = sadd\.s32 (\d+), ", text)
    trips = -(-int(test[2]) // (int(step[1]) if step else 1))
    # A pipelined grid takes two steps more: the first only reads, the last only writes.
    return max(1, trips - 2) if "iteration index, stage = 0" in text else trips


def _units(text: str, runs: list[int]) -> dict[str, float]:
    lines = text.splitlines()
    if len(lines) < 4:
        return {}
    names = [name.strip() for name in lines[1].split(",")]
    capacity = [int(number) for number in lines[2].split()]
    rows = [[int(number) for number in line.split()] for line in lines[4:] if line.strip()]
    if len(rows) != len(runs) or not runs:
        return {}
    total = sum(runs)
    return {
        name: sum(row[at] * times for row, times in zip(rows, runs, strict=True))
        / (capacity[at] * total)
        for at, name in enumerate(names)
        if capacity[at]
    }
