"""One result as JSON, as a self-contained HTML page and as tables in the terminal."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import rich.table
from rich.console import Console

from benchmarks import plots
from benchmarks.report_tables import (
    BARS,
    COMPARED,
    EPOCHS,
    ESTIMATORS,
    PLANS,
    QUALITY,
    RANKING,
    ROOFLINE,
    TIMES,
    Table,
)


def write(result: dict, folder: Path) -> tuple[Path, Path]:
    """Writes ``NAME.json`` and ``NAME.html`` into ``folder``, by the name of the comparison."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{result['name']}.json"
    data.write_text(json.dumps(result, indent=1))
    return data, write_page(result, folder)


def write_page(result: dict, folder: Path) -> Path:
    """Writes ``NAME.html`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['name']}.html"
    path.write_text(page(result))
    return path


class Comparison(NamedTuple):
    """What the report of one comparison is made of."""

    title: str
    about: Callable[[dict], str]
    tables: tuple[Table, ...]
    plot: tuple[str, Callable[[dict], str]] | None = None  # beside that of the times


def print_tables(result: dict, console: Console) -> None:
    """The tables of the report, in the terminal."""
    for title, header, rows in COMPARISONS[result["name"]].tables:
        table = rich.table.Table(*header, title=title)
        for row in rows(result):
            table.add_row(*row)
        if table.row_count:
            console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False)


def _about_softmax(result: dict) -> str:
    quality = result["quality"]
    return (
        f"{quality['corpus']}: {quality['classes']:,} classes, {quality['tokens']:,} training "
        f"tokens, {quality['seconds']:.0f} s of training for each loss."
    )


def _about_sequences(result: dict) -> str:
    epochs = result["epochs"]
    return (
        f"{epochs['corpus']}: {epochs['sentences']:,} sentences, {epochs['tokens']:,} words, the "
        f"longest of {epochs['longest']}."
    )


def _about_pointwise(result: dict) -> str:
    memory = "kept by the process" if result["recycled_memory"] else "as the system has it"
    return f"float32; freed memory is {memory}, for ours and for the peers alike."


def _about_recommender(result: dict) -> str:
    data = result["recommender"]
    return (
        f"{data['data']}: {data['users']:,} users, {data['items']:,} items, "
        f"{data['seconds']:.0f} s of training for each loss."
    )


def _about_accelerators(result: dict) -> str:
    return "A value and all gradients, by every implementation that can run on this device."


COMPARISONS = {
    "softmax": Comparison(
        "Full versus sampled softmax",
        _about_softmax,
        (BARS, QUALITY, ESTIMATORS, TIMES),
        ("Quality against time", plots.plot_quality),
    ),
    "sequences": Comparison(
        "LSTM, and padded versus bucketed versus packed sequences",
        _about_sequences,
        (BARS, EPOCHS, PLANS, TIMES),
        ("An epoch", plots.plot_epochs),
    ),
    "pointwise": Comparison(
        "Dense versus 1x1 versus general convolution",
        _about_pointwise,
        (BARS, ROOFLINE, TIMES),
        ("Roofline", plots.plot_roofline),
    ),
    "recommender": Comparison(
        "A recommender of sessions",
        _about_recommender,
        (BARS, RANKING, COMPARED, TIMES),
        ("Quality against time", plots.plot_ranking),
    ),
    "accelerators": Comparison(
        "Implementations on this device", _about_accelerators, (BARS, TIMES)
    ),
}


def _html_table(table: Table, result: dict) -> str:
    def cells(tag, values):
        return "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in table.rows(result))
    if not body:
        return ""
    return f"<h2>{table.title}</h2><table><tr>{cells('th', table.header)}</tr>{body}</table>"


def page(result: dict) -> str:
    """The report as one HTML page that needs nothing else."""
    machine, comparison = result["machine_info"], COMPARISONS[result["name"]]
    absent = [name for name, here in result["peers"].items() if not here]
    caches = ", ".join(f"{level} {size}" for level, size in machine.get("caches", {}).items())
    about = (
        f"{machine['cpu']}, {machine['cores']} cores{caches and f' ({caches})'}, "
        f"device {machine['device']}, "
        f"jax {machine['jax']}, Python {machine['python']}. Suite: {result['suite']}. Measured in "
        f"this run: matmul {machine['matmul_flops'] / 1e9:.0f} GFLOP/s (2048 cubed, float32), copy "
        f"{machine['copy_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Peers absent: {', '.join(absent) or 'none'}."
    )
    notes = "".join(f"<p>{html.escape(note)}" for note in result["notes"])
    tables = [_html_table(table, result) for table in comparison.tables]
    plot = ""
    if comparison.plot is not None:
        title, draw = comparison.plot
        plot = f"<h2>{title}</h2>{draw(result)}"
    style = (
        "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.15em .7em;border-bottom:1px solid #ccc;"
        "text-align:left}svg{max-width:100%;height:auto}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{comparison.title}</title>"
        f"<style>{style}</style><h1>{comparison.title}</h1><p>{html.escape(about)}"
        f"<p>{html.escape(comparison.about(result))}{notes}{tables[0]}{plot}"
        f"{''.join(tables[1:-1])}<h2>Time</h2>{plots.plot_times(result)}{tables[-1]}</html>\n"
    )
