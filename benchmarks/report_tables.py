"""The tables of a report: what their rows are, read from a result's JSON."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from benchmarks.bars import goal, verdict


def bar_rows(result: dict) -> list[list[str]]:
    """What the suite is held to: name, values, goal and whether it was met."""
    return [
        [row["name"], ", ".join(f"{value:.3g}" for value in row["values"]), goal(row), verdict(row)]
        for row in result["bars"]
    ]


def timing_rows(result: dict) -> list[list[str]]:
    """Group, name, median, range, spread, compile, temporaries, shares of matmul peak and copy."""
    rows = []

    def share(info, work, seconds, limit):
        return f"{info[work] / seconds / result['machine_info'][limit]:.0%}" if work in info else ""

    for row in result["benchmarks"]:
        info, stats = row["extra_info"], row["stats"]
        rows.append(
            [
                row["group"],
                row["name"],
                f"{stats['median'] * 1e3:.2f}",
                f"{stats['min'] * 1e3:.2f} - {stats['max'] * 1e3:.2f}",
                f"{info['spread']:.0%}" if "spread" in info else "",
                f"{info['compile_s']:.2f}" if "compile_s" in info else "",
                f"{info['temp_bytes'] / 1e6:.1f}" if "temp_bytes" in info else "",
                share(info, "flops", stats["median"], "matmul_flops"),
                share(info, "bytes", stats["median"], "copy_bytes_per_s"),
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


def estimator_rows(result: dict) -> list[list[str]]:
    """Samples, what is subtracted, bias of the gradient, and what noise alone would make of it."""
    return [
        [
            f"{row['num_sampled']}",
            row["name"],
            f"{row['bias']:.4f}",
            f"{row['noise_floor']:.4f}",
        ]
        for row in result.get("estimators", [])
    ]


def epoch_rows(result: dict) -> list[list[str]]:
    """Way, seconds an epoch, of them compiling, compiles, steps, padding, updates, perplexity."""
    return [
        [
            name,
            f"{way['seconds']:.1f}",
            f"{way['compile_s']:.1f}",
            str(way["compiles"]),
            f"{way['steps']:,}",
            f"{way['padding']:.0%}",
            str(way["updates"]),
            f"{way['perplexity']:.1f}",
        ]
        for name, way in result["epochs"]["ways"].items()
    ]


def plan_rows(result: dict) -> list[list[str]]:
    """Lengths, way, share of padding, compiles, batches, steps."""
    return [
        [
            plan["lengths"],
            plan["way"],
            f"{plan['padding']:.1%}",
            str(plan["compiles"]),
            f"{plan['batches']:,}",
            f"{plan['steps']:,}",
        ]
        for plan in result["epochs"]["plans"]
    ]


def roofline_rows(result: dict) -> list[list[str]]:
    """Shape, what, products a byte, GFLOP/s of each, what the machine allows, our share of it."""
    machine = result["machine_info"]

    def limit(point):
        intensity = point["flops"] / point["bytes"]
        return min(machine["matmul_flops"], intensity * machine["copy_bytes_per_s"])

    return [
        [
            point["shape"],
            point["what"],
            f"{point['flops'] / point['bytes']:.1f}",
            *(f"{point['flops'] / point[name] / 1e9:.0f}" for name in ("ours_s", "flax_s")),
            f"{limit(point) / 1e9:.0f}",
            f"{point['flops'] / point['ours_s'] / limit(point):.0%}",
        ]
        for point in result["roofline"]
    ]


def ranking_rows(result: dict) -> list[list[str]]:
    """Loss, ms a step, steps, NDCG and recall at half time and at the end, compile."""
    rows = []
    for name, method in result["recommender"]["methods"].items():
        curve = method["curve"]
        _, steps, *last = curve[-1]
        middle = curve[len(curve) // 2 - 1][2:]
        figures = [f"{value:.4f}" for pair in zip(middle, last, strict=True) for value in pair]
        first = [name, f"{method['ms_per_step']:.1f}", f"{steps:,}"]
        rows.append([*first, *figures, f"{method['compile_s']:.1f}"])
    return rows


def compared_rows(result: dict) -> list[list[str]]:
    """Library, seed, seconds of the median epoch on the clock and of the CPU, NDCG, recall."""
    return [
        [
            row["name"],
            str(row["seed"]),
            *(f"{median(row[of]):.1f}" for of in ("epoch_s", "epoch_cpu_s")),
            *(f"{row[of]:.4f}" for of in ("ndcg", "recall")),
        ]
        for row in result["compared"]
    ]


class Table(NamedTuple):
    """A table of the report: its rows are read from the result, and without any it is left out."""

    title: str
    header: list[str]
    rows: Callable[[dict], list[list[str]]]


BARS = Table("What the suite is held to", ["ratio", "value", "goal", "verdict"], bar_rows)
TIMES = Table(
    "Times",
    [
        "group", "case", "median ms", "min - max ms", "spread", "compile s", "temporaries MB",
        "of matmul peak", "of copy bandwidth",
    ],
    timing_rows,
)  # fmt: skip
QUALITY = Table(
    "Quality reached (exact validation perplexity)",
    ["loss", "ms a step", "steps", "at half time", "at the end", "compile s", "temporaries MB"],
    quality_rows,
)
ESTIMATORS = Table(
    "Bias of sampled softmax at the optimum of 1,000 classes (L1 norm of the mean gradient)",
    ["samples", "subtracted", "bias", "by noise alone"],
    estimator_rows,
)
EPOCHS = Table(
    "One epoch over the sentences, compiles included",
    ["batches", "seconds", "compiling", "compiles", "steps", "padding", "updates", "perplexity"],
    epoch_rows,
)
PLANS = Table(
    "Plans: what batches cost before anything runs",
    ["lengths", "batches", "padding", "compiles", "batches", "steps"],
    plan_rows,
)
ROOFLINE = Table(
    "Beside the machine's limits (matmul peak, or copy bandwidth on the least bytes)",
    [
        "shape", "what", "operations a byte", "ours GFLOP/s", "flax nnx.Conv GFLOP/s",
        "limit GFLOP/s", "ours of the limit",
    ],
    roofline_rows,
)  # fmt: skip

RANKING = Table(
    "Each user's last event among all items not seen before",
    [
        "loss", "ms a step", "steps", "NDCG@10 at half time", "at the end",
        "recall@10 at half time", "at the end", "compile s",
    ],
    ranking_rows,
)  # fmt: skip
COMPARED = Table(
    "Beside RecBole: last event among all items",
    ["library", "seed", "seconds an epoch", "of the CPU", "NDCG@10", "recall@10"],
    compared_rows,
)
