"""The comparison of implementations on one device: what runs, and that it agrees."""

import json

import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import accelerators
from benchmarks.limits import Limits
from jaxnets.kernels import compiling_for


def test_on_cpu_the_defaults_run_and_agree_with_the_naive(monkeypatch):
    first = accelerators.SHAPES[0]
    small = {"tokens": 32, "features": 16, "vocab_size": 200}
    monkeypatch.setattr(accelerators, "SHAPES", ((first[0], "float32", {}, small),))
    rows, bars = accelerators.run(Limits())
    assert [row["name"] for row in rows] == ["tiled", "naive optax"]
    ((difference,),) = [row["values"] for row in bars if "relative difference" in row["name"]]
    assert difference < 1e-5  # sums of 200 terms in float32


def test_the_command_writes_a_report(monkeypatch, tmp_path):
    operation, _, _, small = accelerators.SHAPES[0]
    shape = (operation, "float32", {}, small | {"vocab_size": 200})
    monkeypatch.setattr(accelerators, "SHAPES", (shape,))
    result = CliRunner().invoke(command.app, ["accelerators", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "accelerators.json").read_text())
    assert [row["name"] for row in report["benchmarks"]] == ["tiled", "naive optax"]
    assert "naive optax / tiled, time" in (tmp_path / "accelerators.html").read_text()


@pytest.mark.parametrize("shape", accelerators.SHAPES, ids=lambda shape: shape[0])
def test_every_shape_has_a_default_on_cpu(shape):
    operation, dtype, _, small = shape
    made = accelerators.cases(operation, dtype, small)
    assert made[0].name in ("tiled", "gathered", "scan", "matmul")


def test_on_a_gpu_the_kernels_are_among_the_cases():
    operation, _, _, small = accelerators.SHAPES[-1]
    with compiling_for("gpu", interpret=True):
        made = accelerators.cases(operation, "float32", small | {"positions": 64})
    assert [case.name for case in made] == ["matmul", "pallas"]


@pytest.mark.parametrize("shape", accelerators.SHAPES, ids=lambda shape: shape[0])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_large_shapes_can_run_some_kernel(shape, platform):
    """Their kernels are not refused, so that the comparison there has something to compare."""
    from jaxnets.kernels import explain

    operation, dtype, large, _ = shape
    with compiling_for(platform):
        text = explain(operation, dtype=dtype, **large)
    assert text.count("can run") >= 1, text
