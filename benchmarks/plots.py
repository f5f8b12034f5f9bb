"""The report's figures, as SVG to stand in its page."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def _svg(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue().split("?>", 1)[1].split(">", 1)[1]


def plot_quality(result: dict) -> str:
    """Exact perplexity of each method against the seconds it trained."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, method in result["quality"]["methods"].items():
        seconds, _, perplexity = zip(*method["curve"][1:], strict=True)
        axes.plot(seconds, perplexity, marker=".", label=name)
    axes.set(xlabel="training seconds", ylabel="exact validation perplexity", yscale="log")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def plot_ranking(result: dict) -> str:
    """NDCG@10 of each loss against the seconds it trained."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name, method in result["recommender"]["methods"].items():
        seconds, _, ndcg, _ = zip(*method["curve"], strict=True)
        axes.plot(seconds, ndcg, marker=".", label=name)
    axes.set(xlabel="training seconds", ylabel="NDCG@10")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    return _svg(figure)


def plot_epochs(result: dict) -> str:
    """What an epoch takes, running and compiling, for each way to batch."""
    ways = result["epochs"]["ways"]
    compiling = [way["compile_s"] for way in ways.values()]
    running = [way["seconds"] - way["compile_s"] for way in ways.values()]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.barh(list(ways), running, label="running")
    axes.barh(list(ways), compiling, left=running, label="compiling")
    axes.set(xlabel="seconds an epoch")
    axes.invert_yaxis()
    axes.legend()
    return _svg(figure)


def plot_roofline(result: dict) -> str:
    """Operations a second by operations a byte, under the machine's limits."""
    machine, points = result["machine_info"], result["roofline"]
    figure, axes = plt.subplots(figsize=(8, 4.5))
    intensity = [point["flops"] / point["bytes"] for point in points]
    ends = [min(intensity) / 2, max(intensity) * 2]
    corner = machine["matmul_flops"] / machine["copy_bytes_per_s"]
    line = sorted({*ends, corner})
    roof = [min(machine["matmul_flops"], x * machine["copy_bytes_per_s"]) / 1e9 for x in line]
    axes.plot(line, roof, color="black", label="matmul peak, copy bandwidth")
    for name, label in (("ours_s", "pointwise_conv"), ("flax_s", "flax nnx.Conv")):
        rates = [point["flops"] / point[name] / 1e9 for point in points]
        axes.scatter(intensity, rates, label=label, s=18)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="GFLOP/s")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    return _svg(figure)


def plot_times(result: dict) -> str:
    """The median of each case, a group a row."""
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
    return _svg(figure)
