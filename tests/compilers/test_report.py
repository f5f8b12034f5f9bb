import json

import pytest
from typer.testing import CliRunner

from benchmarks.__main__ import app
from benchmarks.compilers import report, run
from benchmarks.compilers.devices import DEVICES
from benchmarks.compilers.programs import DEFAULT, NAIVE, Program, programs
from benchmarks.compilers.records import GpuRecord, Kernel, Part, TpuRecord


def program(name):
    return Program("exact <loss>", "8 x 4", name, len, (), "bfloat16", flops=1e9, moved=1e6)


def result(cycles=2_000_000, failed=""):
    tpu, gpu = DEVICES["v5e"], DEVICES["H100"]
    part = Part("fusion.1", "jit(f)/dot_general", times=4, cycles=cycles // 4, pallas=False)
    kernel = Kernel("gemm", "jit(f)/dot", 3, 500, 100, registers=40, spilled=8, occupancy=0.5)
    ours = TpuRecord(
        "v5e", error=failed, cycles=cycles, parts=(part,), units={"MXU": 0.5},
        collectives={"all-reduce": (3, 5_000_000)},
    )  # fmt: skip
    counted = GpuRecord("H100", kernels=(kernel,), launches=3, read=1500, written=300, spilled=8)
    rows = [
        run.row(program(DEFAULT), tpu, ours),
        run.row(program(f"{NAIVE}: whole"), tpu, TpuRecord("v5e", cycles=1_000_000)),
        run.row(program(DEFAULT), gpu, counted),
    ]
    versions = {"jax": "0"}
    return {
        "name": report.NAME, "rows": rows, "suite": "quick", "versions": versions, "datetime": "",
    }  # fmt: skip


def test_a_page_a_device_says_whose_estimates_these_are(tmp_path):
    data, tpu, gpu = report.write(result(), tmp_path)
    assert json.loads(data.read_text())["rows"]
    text = tpu.read_text()
    assert "compiler's estimate" in text.replace("&#x27;", "'")
    assert "exact &lt;loss&gt;" in text
    assert "<td>2.000</td><td>2.00</td>" in text  # million cycles, over naive's
    assert "4 x 500,000 dot_general" in text
    assert "MXU 50%" in text
    assert "3 x all-reduce, 5.0 MB" in text
    assert "3 x 0.0 MB gemm (40 registers, occupancy 50%)" in gpu.read_text()
    assert "cycles" not in gpu.read_text()


def test_what_does_not_compile_says_why(tmp_path):
    pages = report.write(result(failed="MosaicError: no"), tmp_path)
    assert "<td>MosaicError: no</td>" in pages[1].read_text()


@pytest.mark.parametrize(
    ("after", "code", "word"),
    [
        (result(2_000_000), 0, ""),
        (result(3_000_000), 1, "more"),
        (result(1_000_000), 0, "less"),
        (result(failed="MosaicError"), 1, "MosaicError"),
    ],
)
def test_two_results_compare(tmp_path, after, code, word):
    paths = [tmp_path / "before.json", tmp_path / "after.json"]
    for path, data in zip(paths, (result(), after), strict=True):
        path.write_text(json.dumps(data))
    done = CliRunner().invoke(app, ["compare", *map(str, paths)], terminal_width=200)
    assert done.exit_code == code
    assert word in done.output


def test_pages_are_made_again_from_the_json(tmp_path):
    data = report.write(result(), tmp_path)[0]
    made = CliRunner().invoke(app, ["report", str(data), "--output", str(tmp_path / "again")])
    assert made.exit_code == 0, made.output
    names = ["compilers-H100.html", "compilers-v5e.html"]
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == names


def test_a_device_that_nobody_knows_is_refused(monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.vendors.missing", list)
    done = CliRunner().invoke(app, ["compilers", "--device", "v9"])
    assert done.exit_code == 2
    assert "v9" in done.stderr


def test_what_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.vendors.missing", lambda: ["libtpu"])
    done = CliRunner().invoke(app, ["compilers"])
    assert done.exit_code == 2
    assert "libtpu not installed" in done.stderr


def test_every_operation_is_there_by_default_and_naive():
    for quick in (True, False):
        found = list(programs(quick=quick))
        operations = {found.operation for found in found}
        assert len(operations) == 4
        for operation, shape in {(p.operation, p.shape) for p in found}:
            names = [p.name for p in found if (p.operation, p.shape) == (operation, shape)]
            assert DEFAULT in names
            assert sum(name.startswith(NAIVE) for name in names) == 1
