"""Timing: interleaved rounds, compile time apart from run time, and lines of progress."""

from __future__ import annotations

import ctypes
import itertools
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from pytest_benchmark.stats import Stats

from benchmarks import noise
from benchmarks.limits import Limits
from jaxnets.kernels import caches

Suite = Literal["quick", "standard", "full"]

_START = time.perf_counter()
_SLICE_S = 0.1  # of a round, for one case
_MOST_TIMES = 3  # as many rounds as asked for, where they are noisy
_LONG_S = 5.0  # a round that takes longer is told of
_turns = itertools.count()


def normal(seed: int, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
    """A problem's numbers: NumPy's, for which no program is compiled."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def progress(text: str) -> None:
    """A line on the console at once, with the seconds since the start: a run takes minutes."""
    print(f"{time.perf_counter() - _START:6.1f} s  {text}", file=sys.stderr, flush=True)


@dataclass
class Case:
    """One thing to time: ``run()`` returns what must be ready before the clock stops."""

    name: str
    run: Callable[[], Any]
    flops: float | None = None  # of the matmuls, by their formula
    program: str = ""  # the compiled program's text, where XLA made one
    info: dict[str, Any] = field(default_factory=dict)


def compiled_case(
    name: str,
    function: Callable,
    *arrays: Any,
    carried: int = 0,
    flops: float | None = None,
    **info: Any,
) -> Case:
    """Compiles ``function`` ahead of time.

    Its first ``carried`` arguments are donated, and its first ``carried`` results take their place
    in the next run, as a training step's state does.
    """
    start = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=tuple(range(carried)))
    compiled = jitted.lower(*arrays).compile()
    info["compile_s"] = time.perf_counter() - start
    progress(f"compiled {name}")
    memory = compiled.memory_analysis()
    assert memory is not None, "this backend reports no memory"
    info["temp_bytes"] = memory.temp_size_in_bytes
    info["output_bytes"] = memory.output_size_in_bytes
    costs, program = compiled.cost_analysis(), compiled.as_text() or ""
    if costs and " while(" not in program:  # XLA counts the body of a loop once
        info.setdefault("bytes", costs["bytes accessed"])
    state, rest = list(arrays[:carried]), arrays[carried:]

    def run():
        results = compiled(*state, *rest)
        if carried:
            state[:] = results[:carried]
        return results

    return Case(name, run, flops, program, info)


def measure(group: str, cases: list[Case], rounds: int, limits: Limits | None = None) -> list[dict]:
    """Runs the cases in turn, ``rounds`` times after a warm-up; a row a case.

    In a round a short case runs several times, for about a tenth of a second, and its mean counts:
    a training step repeats, and is not to be charged for the caches that another case emptied.
    Where the rounds of a case spread by more than a tenth (of three rounds or more), all cases run
    on, in turn, up to three times as often. ``limits`` are probed in each round, and told of each
    case's fastest. The rows have the fields of pytest-benchmark's JSON, so that its own tools read
    them; those of one call have one ``turn``, and what others did meanwhile.
    """
    times: list[list[float]] = [[] for _ in cases]
    iterations = []
    for case in cases:
        progress(f"{group}: {case.name} starts")
        seconds = _seconds(case, 1)
        if seconds < 1:  # the first run warms up; a long one need not run twice to tell its length
            seconds = _seconds(case, 1)
        iterations.append(max(1, min(20, round(_SLICE_S / seconds))))
    others = noise.Others()
    for done in range(1, _MOST_TIMES * rounds + 1):
        start = time.perf_counter()
        if limits is not None:
            limits.probe()
        for case, taken, count in zip(cases, times, iterations, strict=True):
            taken.append(_seconds(case, count))
        if time.perf_counter() - start > _LONG_S:
            progress(f"{group}: round {done} of {rounds}, or {_MOST_TIMES * rounds} where noisy")
        noisy = rounds >= 3 and any(noise.spread(each) > noise.NOISY for each in times)
        if done >= rounds and not noisy:
            break
    turn, busy = next(_turns), others.cores()
    rows = []
    for case, taken, count in zip(cases, times, iterations, strict=True):
        stat = Stats()
        for each in taken:
            stat.update(each)
        progress(f"{group}: {case.name} took {stat.median * 1e3:.2f} ms, rounds: {stat.rounds}")
        info = case.info | {"turn": turn, "spread": noise.spread(taken), "others_cores": busy}
        if case.flops:
            info["flops"] = case.flops
        names = {"group": group, "name": case.name, "fullname": f"{group}::{case.name}"}
        if limits is not None:
            work = info.get("flops", 0.0), info.get("bytes", 0.0)
            limits.saw(names["fullname"], stat.min, *work)
        fields = ("min", "max", "mean", "stddev", "median", "iqr", "rounds")
        row_stats = {name: getattr(stat, name) for name in fields} | {"iterations": count}
        rows.append({**names, "stats": row_stats, "extra_info": info})
    return rows


def _seconds(case: Case, iterations: int) -> float:
    if iterations > 1:  # the threads of the library before it may still spin
        time.sleep(_SLICE_S)
        jax.block_until_ready(case.run())
    start = time.perf_counter()
    for _ in range(iterations):
        jax.block_until_ready(case.run())
    return (time.perf_counter() - start) / iterations


def difference(actual: Any, expected: Any) -> float:
    """The largest difference of any array, relative to the array's largest value."""
    return max(
        float(np.abs(np.asarray(a) - np.asarray(e)).max() / np.abs(np.asarray(e)).max())
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    )


def recycle_memory() -> bool:
    """Has this process keep the memory that it frees, as a training loop's allocator would.

    To be called before JAX starts its threads. By default glibc gives large arrays back to the
    system, and whoever asks next pays for fresh pages: for a 1x1 convolution that is more time
    than the convolution, and chance decides who pays. It holds for every library that allocates
    with malloc, ours and the peers'. False: not glibc, and nothing was changed.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    # M_MMAP_MAX, M_TRIM_THRESHOLD, M_ARENA_MAX: a thread's own arena is given back whole.
    settings = ((-4, 0), (-1, 2**31 - 1), (-8, 1))
    return all(mallopt(*setting) == 1 for setting in settings)


def cores() -> int | None:
    """How many this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def machine() -> dict:
    """What the figures were measured on."""
    cpu = platform.processor()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            cpu = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), cpu)
    device = jax.devices()[0]
    return {
        "device": f"{device.platform} {device.device_kind}", "cpu": cpu, "cores": cores(),
        "caches": caches.by_level(),
        "python": platform.python_version(), "jax": jax.__version__, "system": platform.system(),
    }  # fmt: skip
