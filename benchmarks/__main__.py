"""python -m benchmarks softmax | compare."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import jax
import typer
from rich.console import Console

from benchmarks import exact, quality, report, steps
from benchmarks.compare import compare as compare_results
from benchmarks.harness import machine

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def softmax(
    output: Annotated[Path, typer.Option(help="Folder for softmax.json and softmax.html.")] = Path(
        "results"
    ),
    full: Annotated[bool, typer.Option("--full", help="The whole suite: larger, longer.")] = False,
    profile: Annotated[
        Path | None, typer.Option(help="Folder for a trace that xprof and Perfetto open.")
    ] = None,
) -> None:
    """Full versus sampled softmax: time, memory and quality reached, on real text."""
    console = Console()
    peers = {name: importlib.util.find_spec(name) is not None for name in ("tensorflow", "torch")}
    for name, here in peers.items():
        if not here:
            console.print(f"{name} is absent, so not compared with (make peers installs it)")
    if profile is not None:
        case = steps.sampled_case(1_000_000, 128, 1024, 1024)
        jax.block_until_ready(case.run())
        with jax.profiler.trace(str(profile)):
            for _ in range(10):
                jax.block_until_ready(case.run())
        console.print(f"trace of ten steps at 1,000,000 classes: {profile}")
    limits = machine()
    benchmarks, bars = exact.run(limits, full, peers)
    step_rows, step_bars = steps.run(limits, full, peers)
    result = {
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"), "version": "jaxnets 1",
        "suite": "full" if full else "quick", "machine_info": limits, "peers": peers,
        "benchmarks": benchmarks + step_rows, "bars": bars | step_bars,
        "quality": quality.run(full),
    }  # fmt: skip
    report.print_tables(result, console)
    for path in report.write(result, output):
        console.print(f"written: {path}")


@app.command()
def compare(before: Path, after: Path) -> None:
    """Say what got slower from BEFORE to AFTER; exit with 1 if anything did."""
    results = [json.loads(path.read_text()) for path in (before, after)]
    table, slower = compare_results(*results)
    Console().print(table)
    if slower:
        raise typer.Exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        app()
