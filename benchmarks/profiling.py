"""Traces, and where their time went: each operation's time, under the scope that asked for it.

Every kernel runs under a ``jax.named_scope`` of its name. XLA keeps the scope with each operation
of the compiled program, and a trace has the operation's name with each of its runs; here the two
are joined. xprof and Perfetto show the same trace as a timeline.
"""

from __future__ import annotations

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.table import Table

from benchmarks import exact, pointwise, recurrent, steps
from benchmarks.harness import Case, compiled_case
from jaxnets.kernels import pointwise_conv

_RUNS = 10
# ``%name = type opcode(...), metadata={op_name="scope/scope/operation" ...}``
_INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%?([\w.-]+) = .*?\s([\w-]+)\(.*op_name="([^"]*)"', re.MULTILINE
)
# What only holds other operations, whose times it would count again.
_HOLDERS = {"while", "call", "conditional"}


class Hot(NamedTuple):
    """One operation of a program: where it comes from, and its time on all threads or streams."""

    operation: str
    scope: str
    seconds: float  # of one run of the program
    share: float
    runs: int  # in all


def trace(run: Callable[[], Any], folder: Path) -> None:
    """Writes a trace of ten runs."""
    jax.block_until_ready(run())
    with jax.profiler.trace(str(folder)):
        for _ in range(_RUNS):
            jax.block_until_ready(run())


def hottest(folder: Path, program: str, count: int = 8) -> list[Hot]:
    """The operations that took the most time in the newest trace in ``folder``.

    ``program`` is ``compiled.as_text()`` of the program that was traced.
    """
    scopes = {name: (opcode, scope) for name, opcode, scope in _INSTRUCTION.findall(program)}
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime)
    if not files:
        raise ValueError(f"folder must hold a trace, got none in {folder}")
    with gzip.open(files[-1], "rt") as file:
        events = json.load(file)["traceEvents"]
    microseconds: dict[str, float] = defaultdict(float)
    runs: dict[str, int] = defaultdict(int)
    for event in events:
        name = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
        if name and scopes.get(name, ("", ""))[0] not in _HOLDERS:
            microseconds[name] += event["dur"]
            runs[name] += 1
    total = sum(microseconds.values())
    ordered = sorted(microseconds, key=lambda name: -microseconds[name])[:count]
    return [
        Hot(
            name, _readable(scopes.get(name, ("", ""))[1]), microseconds[name] * 1e-6 / _RUNS,
            microseconds[name] / total, runs[name],
        )
        for name in ordered
    ]  # fmt: skip


def _readable(scope: str) -> str:
    """Without what ``jit``, derivatives and loops add: ``backward lstm / dot_general``."""
    backward = "transpose(" in scope
    while (shorter := re.sub(r"(?:jit|jvp|transpose|vmap)\(([^()]*)\)", r"\1", scope)) != scope:
        scope = shorter
    dropped = {"while", "body", "cond", "closed_call"}
    parts = [p for p in scope.split("/") if p and p not in dropped and not p.startswith("_")]
    parts = [p for n, p in enumerate(parts) if n == 0 or p != parts[n - 1]]
    return ("backward " if backward else "") + " / ".join(parts[-3:])


def exact_case() -> Case:
    """The exact loss and its gradients."""
    return compiled_case(
        "linear_softmax_cross_entropy",
        jax.value_and_grad(exact.ours, (0, 1, 2)),
        *exact.problem(1024, 512, 32_768),
    )


def sampled_case() -> Case:
    """A step with sampled softmax at a million classes."""
    return steps.sampled_case(1_000_000, 128, 1024, 1024)


def lstm_case() -> Case:
    """The first shape of the LSTM's comparison."""
    arrays = recurrent.problem(*recurrent.SHAPES[0])
    return compiled_case("lstm", partial(recurrent.step, recurrent.ours), *arrays)


def pointwise_case() -> Case:
    """The first shape of the 1x1 convolution's comparison."""
    arrays = pointwise.problem(*pointwise.SHAPES[0])
    return compiled_case("pointwise_conv", pointwise.step(pointwise_conv), *arrays)


def cases() -> list[Case]:
    """A training step of each kernel, at a shape of the suite."""
    return [exact_case(), sampled_case(), lstm_case(), pointwise_case()]


def run(console: Console, folder: Path) -> None:
    """Traces a step of each kernel, and prints where its time went."""
    for case in cases():
        where = folder / case.name.replace(" ", "_").replace(",", "")
        trace(case.run, where)
        table = Table(title=f"{case.name}: {where}")
        for heading in ("scope", "operation", "ms a step", "share", "runs a step"):
            table.add_column(heading, justify="left" if heading == "scope" else "right")
        for hot in hottest(where, case.program):
            table.add_row(
                hot.scope, hot.operation, f"{hot.seconds * 1e3:.3f}", f"{hot.share:.0%}",
                f"{hot.runs / _RUNS:.0f}",
            )  # fmt: skip
        console.print(table)
