"""Rounds that spread are repeated, ratios are of cases that ran in turn, and the load is said."""

import itertools
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import harness, noise
from benchmarks.bars import ratio
from benchmarks.harness import Case, measure


def test_noisy_rounds_are_measured_again_in_turn(monkeypatch):
    """Where one case spreads, all run on; a ratio is of one turn; load and spread are said."""
    seconds = {"calm": itertools.repeat(1.0), "settles": itertools.chain([1, 1, 1, 2, 4], [1] * 99)}
    seconds["restless"] = itertools.cycle([1.0, 2.0])
    monkeypatch.setattr(harness, "_seconds", lambda case, count: next(seconds[case.name]))
    calm, settles, restless = (Case(name, lambda: None) for name in seconds)
    rows = measure("g", [calm, settles], rounds=3)
    assert [row["stats"]["rounds"] for row in rows] == [9, 9] != [3, 3]
    assert rows[1]["extra_info"]["spread"] == 0 == rows[0]["extra_info"]["spread"]
    others = measure("g", [calm, restless], rounds=5)
    assert [row["stats"]["rounds"] for row in others] == [15, 15]
    assert ratio(others[1], others[0]) in (1.0, 2.0)
    with pytest.raises(ValueError, match=r"in turn, got g::calm and g::restless"):
        ratio(rows[0], others[1])
    *load, wide = noise.notes(rows + others)
    assert wide.endswith("repeated or not: g::restless.")
    assert len(load) == Path("/proc/stat").exists()


def test_others_are_what_this_process_and_its_children_did_not_do(monkeypatch):
    busy, own = iter([10.0, 16.0]), iter([1.0, 3.0])
    monkeypatch.setattr(noise, "_busy", lambda: next(busy))
    monkeypatch.setattr(noise, "_own", lambda: next(own))
    clock = SimpleNamespace(perf_counter=partial(next, iter([0.0, 2.0])))
    monkeypatch.setattr(noise, "time", clock)
    assert noise.Others().cores() == 2.0


def test_the_time_of_a_child_that_runs_is_our_own():
    if not Path("/proc/stat").exists():
        assert noise.Others().cores() is None
        return
    code = "print(1, flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout.read(1) == b"1"
        before, here = noise._own(), time.process_time()
        time.sleep(1)
        grown = noise._own() - before - (time.process_time() - here)
        child.kill()
    assert 0.05 < grown < 1.5  # of a busy machine it may get little
