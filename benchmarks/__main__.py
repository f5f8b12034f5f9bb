"""python -m benchmarks softmax | sequences | pointwise | recommender | accelerators | ..."""

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
from benchmarks import (
    epochs,
    estimators,
    evaluation,
    exact,
    noise,
    profiling,
    quality,
    recurrent,
    steps,
    threads,
    tokens,
    vowels,
)
from benchmarks import pointwise as pointwise_cases
from benchmarks import recommender as recommender_cases
from benchmarks import report as reports
from benchmarks.compare import compare as compare_results
from benchmarks.compilers import report as vendor_reports
from benchmarks.compilers import run as vendors
from benchmarks.compilers import tables
from benchmarks.compilers.devices import TPUS
from benchmarks.harness import Suite, machine, progress, recycle_memory
from benchmarks.limits import Limits
from benchmarks.profiling import trace
from jaxnets import kernels

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


Output = Annotated[Path, typer.Option(help="Folder for the report, as JSON and as a page.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Fewer shapes, rounds and steps: 3 minutes for all three.")
]
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
def softmax(
    output: Output = Path("results"), quick: Quick = False, full: Full = False,
    profile: Profile = None,
) -> None:  # fmt: skip
    """Full versus sampled softmax: time, memory and quality reached, on real text."""
    console = Console()
    parts = exact, steps, tokens, evaluation, threads, estimators, quality
    suite, notes = chosen(quick, full, *(part.QUICK for part in parts))
    peers = find_peers(console, "tensorflow", "torch", "jax_cce", "tokamax")
    if profile is not None:
        trace(profiling.sampled_case().run, profile)
        console.print(f"trace of ten steps at 1,000,000 classes: {profile}")
    limits = Limits()
    benchmarks, bars = exact.run(limits, suite, peers)
    for part in (steps, tokens, evaluation):
        more_rows, more_bars = part.run(limits, suite, peers)
        benchmarks, bars = benchmarks + more_rows, bars + more_bars
    on_cores, by_cores = threads.run(limits, suite, ("exact loss", "sampled step"))
    finish(
        console, output, name="softmax", suite=suite, limits=limits, notes=notes, peers=peers,
        benchmarks=benchmarks + on_cores, bars=bars + by_cores, estimators=estimators.run(suite),
        quality=quality.run(suite),
    )  # fmt: skip


@app.command()
def sequences(
    output: Output = Path("results"), quick: Quick = False, full: Full = False,
    profile: Profile = None,
) -> None:  # fmt: skip
    """LSTM and GRU beside their peers; padded, bucketed and packed sequences, on real text."""
    console = Console()
    suite, notes = chosen(quick, full, recurrent.QUICK, threads.QUICK, epochs.QUICK, vowels.QUICK)
    peers = find_peers(console, "keras", "tensorflow", "torch")
    if profile is not None:
        trace(profiling.lstm_case().run, profile)
        console.print(f"trace of ten steps of an LSTM, {recurrent.SHAPES[0]}: {profile}")
    limits = Limits()
    benchmarks, bars = recurrent.run(limits, suite, peers)
    on_cores, by_cores = threads.run(limits, suite, ["LSTM"])
    epoch_result, epoch_bars = epochs.run(suite)
    accuracies = [] if suite == "quick" else vowels.run()
    finish(
        console, output, name="sequences", suite=suite, limits=limits, notes=notes, peers=peers,
        benchmarks=benchmarks + on_cores, bars=bars + by_cores + epoch_bars + accuracies,
        epochs=epoch_result,
    )  # fmt: skip


@app.command()
def pointwise(
    output: Output = Path("results"), quick: Quick = False, full: Full = False,
    profile: Profile = None,
) -> None:  # fmt: skip
    """Dense versus 1x1 versus general convolution: time by shape, beside the machine's limits."""
    console = Console()
    suite, notes = chosen(quick, full, pointwise_cases.QUICK, threads.QUICK)
    peers = find_peers(console, "torch")
    recycled = recycle_memory()
    if profile is not None:
        trace(profiling.pointwise_case().run, profile)
        console.print(f"trace of ten steps of {pointwise_cases.SHAPES[0]}: {profile}")
    limits = Limits()
    benchmarks, bars, roofline = pointwise_cases.run(limits, suite, peers)
    on_cores, by_cores = threads.run(limits, suite, ["1x1 convolution"])
    finish(
        console, output, name="pointwise", suite=suite, limits=limits, notes=notes, peers=peers,
        benchmarks=benchmarks + on_cores, bars=bars + by_cores, roofline=roofline,
        recycled_memory=recycled,
    )  # fmt: skip


@app.command()
def recommender(
    output: Output = Path("results"), quick: Quick = False, full: Full = False,
    recbole: Annotated[
        Path | None, typer.Option(help="The Python of an environment that has RecBole, of 3.11.")
    ] = None,
) -> None:  # fmt: skip
    """A recommender of sessions: a step by the number of items, and what each loss reaches."""
    console = Console()
    suite, notes = chosen(quick, full, recommender_cases.QUICK)
    limits = Limits()
    benchmarks, bars = recommender_cases.steps(limits, suite)
    compared = [] if recbole is None else recommender_cases.compared(recbole)
    if recbole is not None:
        notes.append(recommender_cases.PEER_NOTE)
    finish(
        console, output, name="recommender", suite=suite, limits=limits, notes=notes,
        peers={"RecBole": recbole is not None}, benchmarks=benchmarks, bars=bars,
        recommender=recommender_cases.quality(suite), compared=compared,
    )  # fmt: skip


@app.command()
def accelerators(output: Output = Path("results")) -> None:
    """Every implementation that can run on this device beside the others."""
    limits = Limits()
    benchmarks, bars = accelerator_cases.run(limits)
    finish(
        Console(), output, name="accelerators", suite="full", limits=limits, notes=[], peers={},
        benchmarks=benchmarks, bars=bars,
    )  # fmt: skip


@app.command()
def compilers(
    output: Output = Path("results"), quick: Quick = False,
    device: Annotated[
        list[str] | None, typer.Option(help="Only this one; may be given several times.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Make kernels/tables/ anew, for the TPUs: no report.")
    ] = False,
) -> None:  # fmt: skip
    """What the vendors' compilers make of every operation, for devices that are not here."""
    if absent := vendors.missing():
        raise typer.BadParameter(
            f"{', '.join(absent)} not installed: pip install 'jaxnets[compilers]', on Linux x86-64"
        )
    if unknown := set(device or ()) - set(vendors.DEVICES):
        raise typer.BadParameter(f"devices are {', '.join(vendors.DEVICES)}, got {unknown}")
    if tune:
        tpus = [name for name in device or TPUS if name in TPUS]
        for path in tables.write(Path(kernels.__path__[0]) / "tables", tpus):
            Console().print(f"written: {path}")
        return
    result = vendors.run(device or vendors.DEVICES, quick=quick)
    vendor_reports.print_tables(result, Console())
    for path in vendor_reports.write(result, output):
        Console().print(f"written: {path}")


def chosen(quick: bool, full: bool, *shortened: str) -> tuple[Suite, list[str]]:
    """The suite, and what it leaves out, said at once."""
    if quick and full:
        raise typer.BadParameter("--quick and --full exclude each other")
    suite: Suite = "quick" if quick else "full" if full else "standard"
    notes = [f"Shortened or left out: {part}" for part in shortened if quick]
    for line in (f"The {suite} suite.", *notes):
        progress(line)
    return suite, notes


def find_peers(console: Console, *names: str) -> dict[str, bool]:
    """Which of the libraries to compare with are installed."""
    peers = {name: importlib.util.find_spec(name) is not None for name in names}
    for name, here in peers.items():
        if not here:
            console.print(f"{name} is absent, so not compared with (make peers installs it)")
    return peers


def finish(
    console: Console, output: Path, *, limits: Limits, notes: list[str], **result: Any
) -> None:
    """Prints and writes the report."""
    result |= {
        "machine_info": machine() | limits.rates(),
        "notes": notes + limits.notes() + noise.notes(result["benchmarks"]),
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"), "version": "jaxnets 1",
    }  # fmt: skip
    reports.print_tables(result, console)
    for path in reports.write(result, output):
        console.print(f"written: {path}")


@app.command()
def report(result: Path, output: Output = Path("results")) -> None:
    """Build the page of RESULT, a JSON such as benchmarks/results/amd-epyc/softmax.json."""
    data = json.loads(result.read_text())
    if data["name"] == vendor_reports.NAME:
        paths = vendor_reports.write_pages(data, output)
    else:
        paths = [reports.write_page(data, output)]
    for path in paths:
        Console().print(f"written: {path}")


@app.command()
def compare(before: Path, after: Path) -> None:
    """Say what got slower from BEFORE to AFTER; exit with 1 if anything did."""
    results = [json.loads(path.read_text()) for path in (before, after)]
    of_compilers = results[0]["name"] == vendor_reports.NAME
    table, slower = (vendor_reports.compare if of_compilers else compare_results)(*results)
    Console().print(table)
    if slower:
        raise typer.Exit(1)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        app()
