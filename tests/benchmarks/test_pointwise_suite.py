"""The comparison of 1x1 convolutions: its layers agree, its limits are right, it has a report."""

import json

import jax
import numpy as np
from typer.testing import CliRunner

from benchmarks import pointwise, report, report_tables
from benchmarks.__main__ import app
from benchmarks.bars import bar
from benchmarks.harness import compiled_case, measure

LIMITS = {"matmul_flops": 1e11, "copy_bytes_per_s": 1e10}


def test_all_layers_give_the_same():
    """Outputs and the gradients of half their sum of squares: that of the bias is their sum."""
    problems = [pointwise.problem((2, 4, 4, 6), out) for out in (1, 8)]

    @jax.jit
    def program(problems):
        return [
            [pointwise.step(layer)(*arrays) for layer in pointwise.LAYERS.values()]
            for arrays in problems
        ]

    for layers in program(problems):
        outputs, *_, bias_gradient = layers[0]
        np.testing.assert_allclose(bias_gradient, outputs.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
        for layer in layers[1:]:
            for a, b in zip(layer, layers[0], strict=True):
                # Sums of at most 32 products in float32.
                np.testing.assert_allclose(a, b, atol=32 * 6e-8 * 100)


def test_flops_and_bytes():
    flops, least = pointwise.flops_and_bytes((2, 3, 5, 7), 11, gradient=False)
    assert (flops, least) == (2 * 30 * 7 * 11, 4 * (30 * 18 + 77))
    assert pointwise.flops_and_bytes((2, 3, 5, 7), 11, gradient=True) == (3 * flops, 3 * least)


def test_report_page():
    arrays = pointwise.problem((2, 4, 4, 6), 8)
    rows = measure("g", [compiled_case(n, f, *arrays) for n, f in pointwise.LAYERS.items()], 2)
    point = {
        "shape": "[2, 4, 4, 6] to 8", "what": "forward", "flops": 1e6, "bytes": 1e5,
        "ours_s": 2e-5, "flax_s": 4e-5,
    }  # fmt: skip
    page = report.page({
        "name": "pointwise", "benchmarks": rows, "bars": [bar("a bar", 1.5)], "roofline": [point],
        "suite": "full", "notes": ["a note"],
        "recycled_memory": True, "peers": {"torch": False},
        "machine_info": LIMITS | {
            "cpu": "c", "cores": 2, "device": "cpu", "jax": "0", "python": "3"
        },
    })  # fmt: skip
    assert "[2, 4, 4, 6] to 8" in page
    assert "<td>50%</td>" in page  # of the limit
    assert "Peers absent: torch" in page
    assert "<p>a note" in page


def test_quick_measures_fewer_shapes_and_compares_their_outputs(monkeypatch, tmp_path):
    shapes = (((2, 4, 4, 6), 8), ((1, 8, 8, 4), 1))
    monkeypatch.setattr(pointwise, "QUICK_SHAPES", shapes)
    monkeypatch.setattr(pointwise, "WINDOWS", (2, 4, 4, 6))
    monkeypatch.setattr(pointwise, "LOOPS", (2, 6, 16))
    monkeypatch.setattr("benchmarks.__main__.recycle_memory", lambda: True)
    run = CliRunner().invoke(app, ["pointwise", "--quick", "--output", str(tmp_path)])
    assert run.exit_code == 0, run.output
    result = json.loads((tmp_path / "pointwise.json").read_text())
    assert result["suite"] == "quick"
    assert "2 shapes of 4" in result["notes"][0]
    assert result["notes"][0] in (tmp_path / "pointwise.html").read_text()
    assert "2 shapes of 4" in run.stderr.splitlines()[1]
    bars = {row["name"]: row for row in result["bars"]}
    assert len(bars["gradient step: flax nnx.Conv / ours, each shape"]["values"]) == len(shapes)
    (difference,) = bars["largest relative difference between any two"]["values"]
    assert difference < 1e-4  # sums of at most 64 products in float32
    groups = {row["group"] for row in result["benchmarks"]}
    assert not any("head" in group for group in groups)
    for _, *figures in report_tables.timing_rows(result):
        assert all(int(share[:-1]) <= 100 for share in figures[-2:] if share)
    assert all(int(row[-1][:-1]) <= 100 for row in report_tables.roofline_rows(result))
