"""python -m benchmarks softmax | sequences | pointwise | accelerators | compare, or --profile."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import accelerators as accelerator_cases
from benchmarks import epochs, exact, profiling, quality, recurrent, report, steps, vowels
from benchmarks import pointwise as pointwise_cases
from benchmarks.compare import compare as compare_results
from benchmarks.harness import machine, recycle_memory
from benchmarks.profiling import trace

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


Output = Annotated[Path, typer.Option(help="Folder for the report, as JSON and as a page.")]
Full = Annotated[bool, typer.Option("--full", help="The whole suite: larger, longer.")]
Profile = Annotated[
    Path | None, typer.Option(help="Folder for a trace that xprof and Perfetto open.")
]


@app.callback(invoke_without_command=True)
def main(
    profile: Annotated[
        bool, typer.Option("--profile", help="Trace a step of each kernel, and say what is hot.")
    ] = False,
    traces: Annotated[Path, typer.Option(help="Folder for the traces.")] = Path("results/traces"),
) -> None:
    """Comparisons with what people use today, and traces of the kernels."""
    if profile:
        profiling.run(Console(), traces)
        raise typer.Exit


@app.command()
def softmax(output: Output = Path("results"), full: Full = False, profile: Profile = None) -> None:
    """Full versus sampled softmax: time, memory and quality reached, on real text."""
    console = Console()
    peers = find_peers(console, "tensorflow", "torch")
    if profile is not None:
        trace(profiling.sampled_case().run, profile)
        console.print(f"trace of ten steps at 1,000,000 classes: {profile}")
    limits = machine()
    benchmarks, bars = exact.run(limits, full, peers)
    step_rows, step_bars = steps.run(limits, full, peers)
    finish(
        console, output, name="softmax", full=full, machine_info=limits, peers=peers,
        benchmarks=benchmarks + step_rows, bars=bars | step_bars, quality=quality.run(full),
    )  # fmt: skip


@app.command()
def sequences(
    output: Output = Path("results"), full: Full = False, profile: Profile = None
) -> None:
    """LSTM beside its peers; padded versus bucketed versus packed sequences, on real text."""
    console = Console()
    peers = find_peers(console, "keras", "tensorflow", "torch")
    if profile is not None:
        trace(profiling.lstm_case().run, profile)
        console.print(f"trace of ten steps of an LSTM, {recurrent.SHAPES[0]}: {profile}")
    limits = machine()
    benchmarks, bars = recurrent.run(limits, full, peers)
    epoch_result, epoch_bars = epochs.run(full)
    accuracies = {layout: vowels.accuracy(layout) for layout in vowels.LAYOUTS}
    finish(
        console, output, name="sequences", full=full, machine_info=limits, peers=peers,
        benchmarks=benchmarks, bars=bars | epoch_bars, epochs=epoch_result, vowels=accuracies,
    )  # fmt: skip


@app.command()
def pointwise(
    output: Output = Path("results"), full: Full = False, profile: Profile = None
) -> None:
    """Dense versus 1x1 versus general convolution: time by shape, beside the machine's limits."""
    console = Console()
    peers = find_peers(console, "torch")
    recycled = recycle_memory()
    if profile is not None:
        trace(profiling.pointwise_case().run, profile)
        console.print(f"trace of ten steps of {pointwise_cases.SHAPES[0]}: {profile}")
    limits = machine()
    benchmarks, bars, roofline = pointwise_cases.run(limits, full, peers)
    finish(
        console, output, name="pointwise", full=full, machine_info=limits, peers=peers,
        benchmarks=benchmarks, bars=bars, roofline=roofline, recycled_memory=recycled,
    )  # fmt: skip


@app.command()
def accelerators(output: Output = Path("results")) -> None:
    """Every implementation that can run on this device beside the others."""
    limits = machine()
    benchmarks, bars = accelerator_cases.run(limits)
    finish(
        Console(), output, name="accelerators", full=True, machine_info=limits, peers={},
        benchmarks=benchmarks, bars=bars,
    )  # fmt: skip


def find_peers(console: Console, *names: str) -> dict[str, bool]:
    """Which of the libraries to compare with are installed."""
    peers = {name: importlib.util.find_spec(name) is not None for name in names}
    for name, here in peers.items():
        if not here:
            console.print(f"{name} is absent, so not compared with (make peers installs it)")
    return peers


def finish(console: Console, output: Path, *, full: bool, **result: Any) -> None:
    """Prints and writes the report."""
    result |= {
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
        "version": "jaxnets 1",
        "suite": "full" if full else "quick",
    }
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
