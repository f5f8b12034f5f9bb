"""One result as JSON, as a self-contained HTML page and as tables in the terminal."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table


def write(result: dict, folder: Path) -> tuple[Path, Path]:
    """Writes ``softmax.json`` and ``softmax.html`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "softmax.json", folder / "softmax.html"
    paths[0].write_text(json.dumps(result, indent=1))
    paths[1].write_text(page(result))
    return paths


def bar_rows(result: dict) -> list[list[str]]:
    """What the suite is held to: name and value."""
    return [
        [name, value if isinstance(value, str) else f"{value:.3g}"]
        for name, value in result["bars"].items()
    ]


def timing_rows(result: dict) -> list[list[str]]:
    """Group, name, median, spread, compile, temporaries, shares of matmul peak and copy."""
    rows = []
    for row in result["benchmarks"]:
        info, stats = row["extra_info"], row["stats"]
        rows.append(
            [
                row["group"],
                row["name"],
                f"{stats['median'] * 1e3:.2f}",
                f"{stats['min'] * 1e3:.2f} - {stats['max'] * 1e3:.2f}",
                f"{info['compile_s']:.2f}" if "compile_s" in info else "",
                f"{info['temp_bytes'] / 1e6:.1f}" if "temp_bytes" in info else "",
                f"{info['share_of_matmul_peak']:.0%}" if "share_of_matmul_peak" in info else "",
                f"{info['share_of_copy']:.0%}" if "share_of_copy" in info else "",
            ]
        )
    return rows


def quality_rows(result: dict) -> list[list[str]]:
    """Method, ms a step, steps, perplexity at half time and at the end, compile, temporaries."""
    rows = []
    for name, method in result["quality"]["methods"].items():
        curve = method["curve"]
        rows.append(
            [
                name,
                f"{method['ms_per_step']:.1f}",
                f"{curve[-1][1]:,}",
                f"{curve[len(curve) // 2][2]:.0f}",
                f"{curve[-1][2]:.0f}",
                f"{method['compile_s']:.1f}",
                f"{method['temp_bytes'] / 1e6:.0f}",
            ]
        )
    return rows


TABLES = [
    ("What the suite is held to", ["ratio", "value"], bar_rows),
    (
        "Times",
        [
            "group",
            "case",
            "median ms",
            "min - max ms",
            "compile s",
            "temporaries MB",
            "of matmul peak",
            "of copy bandwidth",
        ],
        timing_rows,
    ),
    (
        "Quality reached (exact validation perplexity)",
        ["loss", "ms a step", "steps", "at half time", "at the end", "compile s", "temporaries MB"],
        quality_rows,
    ),
]


def print_tables(result: dict, console: Console) -> None:
    """The tables of the report, in the terminal."""
    for title, header, rows in TABLES:
        table = Table(*header, title=title)
        for row in rows(result):
            table.add_row(*row)
        console.print(table)


def _svg(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]


def _plots(result: dict) -> list[str]:
    plots = []
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, method in result["quality"]["methods"].items():
        seconds, _, perplexity = zip(*method["curve"][1:], strict=True)
        axes.plot(seconds, perplexity, marker=".", label=name)
    axes.set(xlabel="training seconds", ylabel="exact validation perplexity", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    plots.append(_svg(figure))

    groups: dict[str, list[dict]] = {}
    for row in result["benchmarks"]:
        groups.setdefault(row["group"], []).append(row)
    several = {group: rows for group, rows in groups.items() if len(rows) > 1}
    figure, grid = plt.subplots(len(several), 1, figsize=(8, 1.9 * len(several)), squeeze=False)
    for axes, (group, rows) in zip(grid[:, 0], several.items(), strict=True):
        times = [row["stats"]["median"] * 1e3 for row in rows]
        bars = axes.barh([row["name"] for row in rows], times)
        axes.bar_label(bars, fmt="{:,.4g} ms", fontsize=8, padding=3)
        axes.margins(x=0.25)
        axes.set_title(group, fontsize=9)
        axes.invert_yaxis()
        axes.tick_params(labelsize=8)
    figure.tight_layout()
    plots.append(_svg(figure))
    return plots


def _html_table(title: str, header: list[str], rows: list[list[str]]) -> str:
    def cells(tag, values):
        return "".join(f"<{tag}>{html.escape(v)}</{tag}>" for v in values)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<h2>{title}</h2><table><tr>{cells('th', header)}</tr>{body}</table>"


def page(result: dict) -> str:
    """The report as one HTML page that needs nothing else."""
    machine, quality = result["machine_info"], result["quality"]
    absent = [name for name, here in result["peers"].items() if not here]
    about = (
        f"{machine['cpu']}, {machine['cores']} cores, device {machine['device']}, "
        f"jax {machine['jax']}, Python {machine['python']}. Measured in this run: matmul "
        f"{machine['matmul_flops'] / 1e9:.0f} GFLOP/s (2048 cubed, float32), copy "
        f"{machine['copy_bytes_per_s'] / 1e9:.1f} GB/s. "
        f"Peers absent: {', '.join(absent) or 'none'}."
    )
    text = (
        f"{quality['corpus']}: {quality['classes']:,} classes, {quality['tokens']:,} training "
        f"tokens, {quality['seconds']:.0f} s of training for each loss."
    )
    tables = [_html_table(title, header, rows(result)) for title, header, rows in TABLES]
    plots = _plots(result)
    style = (
        "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
        "table{border-collapse:collapse}td,th{padding:.15em .7em;border-bottom:1px solid #ccc;"
        "text-align:left}svg{max-width:100%;height:auto}"
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Full versus sampled softmax"
        f"</title><style>{style}</style><h1>Full versus sampled softmax</h1><p>{html.escape(about)}"
        f"<p>{html.escape(text)}{tables[0]}<h2>Quality against time</h2>{plots[0]}{tables[2]}"
        f"<h2>Time</h2>{plots[1]}{tables[1]}</html>\n"
    )
