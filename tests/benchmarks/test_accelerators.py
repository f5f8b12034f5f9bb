"""The comparison of implementations on one device: what runs, and that it agrees."""

import json

import jax
import pytest
from typer.testing import CliRunner

from benchmarks import __main__ as command
from benchmarks import accelerators
from jaxnets.kernels import compiling_for


def test_on_cpu_the_defaults_run_agree_with_the_naive_and_have_a_report(monkeypatch, tmp_path):
    first = accelerators.SHAPES[0]
    small = {"tokens": 32, "features": 16, "vocab_size": 200}
    monkeypatch.setattr(accelerators, "SHAPES", ((first[0], "float32", {}, small),))
    result = CliRunner().invoke(command.app, ["accelerators", "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "accelerators.json").read_text())
    assert [row["name"] for row in report["benchmarks"]] == ["tiled", "naive optax"]
    assert "naive optax / tiled, time" in (tmp_path / "accelerators.html").read_text()
    bars = [row for row in report["bars"] if "relative difference" in row["name"]]
    ((difference,),) = [row["values"] for row in bars]
    assert difference < 1e-5  # sums of 200 terms in float32


def traced_cases(monkeypatch, *arguments):
    """The names of the cases, each of which is traced with its arrays, and not compiled."""
    names = []

    def traced(name, function, *arrays):
        jax.eval_shape(function, *arrays)
        names.append(name)

    monkeypatch.setattr(accelerators, "compiled_case", traced)
    jax.eval_shape(lambda: accelerators.cases(*arguments) and None)
    return names


@pytest.mark.parametrize("shape", accelerators.SHAPES, ids=lambda shape: shape[0])
def test_every_shape_has_a_default_on_cpu(shape, monkeypatch):
    operation, dtype, _, small = shape
    first, *_ = traced_cases(monkeypatch, operation, dtype, small)
    assert first in ("tiled", "gathered", "scan", "matmul")


def test_on_a_gpu_the_kernels_are_among_the_cases(monkeypatch):
    operation, _, _, small = accelerators.SHAPES[-1]
    with compiling_for("gpu", interpret=True):
        names = traced_cases(monkeypatch, operation, "float32", small | {"positions": 64})
    assert names == ["matmul", "pallas"]


@pytest.mark.parametrize("shape", accelerators.SHAPES, ids=lambda shape: shape[0])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_the_large_shapes_can_run_some_kernel(shape, platform):
    """Their kernels are not refused, so that the comparison there has something to compare."""
    from jaxnets.kernels import explain

    operation, dtype, large, _ = shape
    with compiling_for(platform):
        text = explain(operation, dtype=dtype, **large)
    assert text.count("can run") >= 1, text
