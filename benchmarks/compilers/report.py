"""The result as JSON, as a page a device, as tables in the terminal, and compared with another."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from rich.console import Console

from benchmarks.compilers.programs import DEFAULT, NAIVE

NAME = "compilers"  # of the result, and of its files
Row = dict[str, Any]
ABOUT = {
    "tpu": (
        "Cycles are the TPU compiler's estimate, of a Pallas kernel its scheduled bundles with "
        "every branch taken; nothing was run, and they are no time. The bound is the data sheet's: "
        "the operation's matmuls at the peak, or its operands and results once at the memory's "
        "bandwidth, whichever is more."
    ),
    "gpu": (
        "Kernels and bytes are counted in what the GPU compiler made, without autotuning; nothing "
        "was run. Milliseconds are the data sheet's: for those bytes at the memory's bandwidth, "
        "were none in a cache, and the bound for the operation by any program."
    ),
}


class Column(NamedTuple):
    """A column of a device's table: its heading, and the text of a row beside naive's."""

    heading: str
    text: Callable[[Row, Row | None], str]


def cost(row: Row) -> float:
    """What rows are compared by: cycles (the compiler's estimate), or bytes read and written."""
    record = row["record"]
    return record["cycles"] if row["platform"] == "tpu" else record["read"] + record["written"]


def cost_in_words(row: Row) -> str:
    """The cost with its unit, and whose it is."""
    if row["platform"] == "tpu":
        return f"{cost(row) / 1e6:,.3f} million cycles, compiler's estimate"
    return f"{row['record']['launches']:,} kernels, {cost(row) / 1e9:,.3f} GB"


def ratio(row: Row, other: Row | None) -> str:
    """The cost of a row over another's; empty where one has none."""
    if other is None or not cost(other) or row["record"]["error"]:
        return ""
    return f"{cost(row) / cost(other):.2f}"


def _megabytes(name: str) -> Callable[[Row, Row | None], str]:
    return lambda row, _: f"{row['record'][name] / 1e6:,.0f}"


def _fullest(row: Row, _: Row | None) -> str:
    units = row["record"]["units"]
    unit = max(units, key=lambda name: units[name], default="")
    return f"{unit} {units[unit]:.0%}" if unit else ""


def _parts(row: Row, _: Row | None) -> str:
    def words(part: dict) -> str:
        what = part["source"].rpartition("/")[2] or part["name"]
        return f"{part['times']:,} x {part['cycles']:,} {what}"

    return "; ".join(map(words, row["record"]["parts"][:4]))


def _collectives(row: Row, _: Row | None) -> str:
    found = row["record"]["collectives"]
    return "; ".join(
        f"{times:,} x {kind}, {moved / 1e6:,.1f} MB" for kind, (times, moved) in found.items()
    )


def _kernels(row: Row, _: Row | None) -> str:
    def words(kernel: dict) -> str:
        known = kernel["registers"] is not None
        detail = f" ({kernel['registers']} registers, " if known else ""
        if known and kernel["occupancy"] is not None:
            detail += f"occupancy {kernel['occupancy']:.0%})"
        moved = (kernel["read"] + kernel["written"]) / 1e6
        return f"{kernel['launches']:,} x {moved:,.1f} MB {kernel['name']}{detail}"

    return "; ".join(map(words, row["record"]["kernels"][:4]))


_SHARED = (
    Column("temporaries MB", _megabytes("temp_bytes")),
    Column("arguments MB", _megabytes("argument_bytes")),
    Column("compile s", lambda row, _: f"{row['record']['compile_s']:.1f}"),
)
COLUMNS = {
    "tpu": (
        Column("compiler's estimate, million cycles", lambda row, _: f"{cost(row) / 1e6:,.3f}"),
        Column("estimate / naive's", ratio),
        Column("estimate / bound", lambda row, _: f"{cost(row) / row['bound_cycles']:.2f}"),
        Column("fullest unit", _fullest),
        Column("VMEM MB", _megabytes("vmem_bytes")),
        *_SHARED,
        Column("collectives, bytes given out", _collectives),
        Column("longest parts, times x cycles", _parts),
    ),
    "gpu": (
        Column("kernels launched", lambda row, _: f"{row['record']['launches']:,}"),
        Column("GB read", lambda row, _: f"{row['record']['read'] / 1e9:,.3f}"),
        Column("GB written", lambda row, _: f"{row['record']['written'] / 1e9:,.3f}"),
        Column("bytes / naive's", ratio),
        Column("bytes at bandwidth, ms", lambda row, _: f"{row['record']['memory_s'] * 1e3:,.3f}"),
        Column("bound, ms", lambda row, _: f"{row['bound_s'] * 1e3:,.3f}"),
        Column("spilled bytes", lambda row, _: f"{row['record']['spilled']:,}"),
        *_SHARED,
        Column("kernels with most bytes", _kernels),
    ),
}


def groups(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each operation and shape."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["operation"], row["shape"]), []).append(row)
    return found


def naive_of(rows: list[Row]) -> Row | None:
    """What one writes today, among the rows of a group."""
    return next((row for row in rows if row["program"].startswith(NAIVE)), None)


def cells(row: Row, naive: Row | None) -> list[str]:
    """A row of a device's table, or why there is none."""
    record, columns = row["record"], COLUMNS[row["platform"]]
    if record["error"]:
        return [row["program"], record["error"], *[""] * (len(columns) - 1)]
    loops = record["unknown_loops"]
    name = row["program"] + (f" ({loops} loops of unknown trips, counted once)" if loops else "")
    return [name, *(column.text(row, naive) for column in columns)]


def page(result: dict[str, Any], device: str) -> str:
    """The page of a device; it needs nothing else."""
    rows = [row for row in result["rows"] if row["device"] == device]
    platform = rows[0]["platform"]
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    title = f"{device}: what its compiler makes of our programs"
    body = []
    for (operation, shape), members in groups(rows).items():
        naive = naive_of(members)
        headings = ["program", *(column.heading for column in COLUMNS[platform])]
        lines = [_line("th", headings), *(_line("td", cells(row, naive)) for row in members)]
        body.append(
            f"<h2>{html.escape(f'{operation}, {shape}')}</h2><table>{''.join(lines)}</table>"
        )
    style = (
        "body{font:15px/1.5 sans-serif;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.15em .7em;border-bottom:1px solid #ccc;"
        "text-align:left;vertical-align:top}"
    )
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title>"
        f"<style>{style}</style><h1>{title}</h1><p>{ABOUT[platform]}"
        f"<p>{html.escape(versions)}; {result['suite']} suite, {result['datetime']}."
        f"{''.join(body)}</html>\n"
    )


def _line(tag: str, texts: list[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(text)}</{tag}>' for text in texts)}</tr>"


def write(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes ``compilers.json`` and ``compilers-DEVICE.html`` for each device."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / f"{NAME}.json"
    data.write_text(json.dumps(result, indent=1))
    return [data, *write_pages(result, folder)]


def write_pages(result: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the page of each device of a result."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for device in dict.fromkeys(row["device"] for row in result["rows"]):
        paths.append(folder / f"{NAME}-{device}.html")
        paths[-1].write_text(page(result, device))
    return paths


def print_tables(result: dict[str, Any], console: Console) -> None:
    """Ours by default over naive: cycles on a TPU, bytes on a GPU."""
    devices = list(dict.fromkeys(row["device"] for row in result["rows"]))
    table = rich.table.Table(
        "operation", *devices,
        title="ours by default / naive: compiler's estimate of cycles (TPU), bytes moved (GPU)",
    )  # fmt: skip
    for (operation, shape), members in groups(result["rows"]).items():
        texts = []
        for device in devices:
            here = [row for row in members if row["device"] == device]
            ours = next((row for row in here if row["program"] == DEFAULT), None)
            failed = ours is not None and ours["record"]["error"]
            texts.append("fails" if failed else ratio(ours, naive_of(here)) if ours else "")
        table.add_row(f"{operation}, {shape}", *texts)
    console.print(table)


def compare(
    before: dict[str, Any], after: dict[str, Any], threshold: float = 1.05
) -> tuple[rich.table.Table, list[str]]:
    """A table of the ratios after / before, and what costs more by the threshold or fails now."""
    old, new = ({_key(row): row for row in result["rows"]} for result in (before, after))
    table = rich.table.Table("program", "before", "after", "after / before", "")
    worse = []
    for key in sorted(old.keys() & new.keys()):
        a, b = old[key], new[key]
        if a["record"]["error"]:
            continue
        if b["record"]["error"]:
            table.add_row(key, f"{cost(a):,.0f}", "", "", b["record"]["error"])
            worse.append(key)
            continue
        change = cost(b) / cost(a)
        verdict = "more" if change > threshold else "less" if change < 1 / threshold else ""
        worse += [key] if verdict == "more" else []
        table.add_row(key, f"{cost(a):,.0f}", f"{cost(b):,.0f}", f"{change:.2f}", verdict)
    return table, worse


def _key(row: Row) -> str:
    unit = "cycles, compiler's estimate" if row["platform"] == "tpu" else "bytes"
    parts = row["device"], row["operation"], row["shape"], row["program"]
    return f"{'; '.join(parts)} ({unit})"
