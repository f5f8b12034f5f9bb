"""Which implementation runs, why, and what the tuner's cache has to do with it."""

import json
import pathlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    compiling_for,
    dispatch,
    explain,
    pointwise_conv,
    tuned,
    tuning,
    xla_only,
)
from jaxnets.kernels.dispatch import operation_named, target
from jaxnets.kernels.tuning import tune
from jaxnets.kernels.tuning_cache import Measured, cache_path, forget, keep, look_up
from tests.inputs import on_device

SIZES = {"positions": 64, "features": 8, "out": 8, "groups": 1, "channels_first": False}
TOKENS = {"tokens": 64, "features": 16, "vocab_size": 100}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "tuning.json"
    monkeypatch.setenv("JAXNETS_TUNING_CACHE", str(path))
    forget()
    yield path
    forget()


def test_the_default_is_the_one_that_runs_anywhere():
    for platform in ("cpu", "gpu", "tpu"):
        with compiling_for(platform):
            assert f"on {platform}, float32" in explain("pointwise_conv", **SIZES)
            assert "matmul: chosen (the default" in explain("pointwise_conv", **SIZES)


def test_wrong_questions():
    with pytest.raises(ValueError, match=r"operation must be one of .*lstm.*, got 'softmax'"):
        explain("softmax")
    with pytest.raises(ValueError, match=r"sizes of pointwise_conv must be .*positions.*'out'"):
        explain("pointwise_conv", out=3)
    with pytest.raises(ValueError, match="platform must be one of"), compiling_for("cuda"):
        pass
    with pytest.raises(ValueError, match="the plain layer only"):
        tune("lstm", batch=1, time=1, features=1, hidden=1, extras=("peepholes",))
    with pytest.raises(ValueError, match="to be tuned, got 'gru'"):
        tune("gru", batch=1, time=1, features=1, hidden=1, extras=())


def test_the_target_is_put_back():
    before = target()
    with compiling_for("tpu", interpret=True):
        assert target() == ("tpu", True)
    assert target() == before


@pytest.mark.smoke
def test_a_kernel_that_cannot_run_here_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="implementation='pallas' cannot run here: Pallas kernels"):
        pointwise_conv(np.ones((1, 2, 3)), np.ones((3, 4)), implementation="pallas")
    with (
        compiling_for("gpu"),
        pytest.raises(ValueError, match="the kernel takes one group, got groups = 3"),
    ):
        pointwise_conv(np.ones((1, 2, 3)), np.ones((1, 3)), groups=3, implementation="pallas")


@pytest.mark.smoke
def test_what_was_measured_is_chosen_for_its_sizes_dtype_and_device_only(cache):
    keep("pointwise_conv", "float32", SIZES, Measured("reference", None), 1e-3)
    assert "reference: chosen (fastest when measured" in explain("pointwise_conv", **SIZES)
    assert "matmul: chosen" in explain("pointwise_conv", **(SIZES | {"out": 9}))
    assert "matmul: chosen" in explain("pointwise_conv", dtype="bfloat16", **SIZES)
    content = json.loads(cache.read_text())
    (key,) = content["entries"]
    for part in ("cpu", "jax 0.", "jaxnets 0."):
        assert part in key
    content["entries"] = {key.replace("cpu", "gpu"): content["entries"][key]}
    cache.write_text(json.dumps(content))
    forget()
    assert "matmul: chosen" in explain("pointwise_conv", **SIZES)


def test_a_measured_kernel_that_cannot_run_here_is_not_chosen():
    keep("pointwise_conv", "float32", SIZES, Measured("pallas", (64, 64, 32)), 1e-3)
    assert "matmul: chosen" in explain("pointwise_conv", **SIZES)
    keep("pointwise_conv", "float32", SIZES, Measured("winograd", None), 1e-3)
    assert "matmul: chosen" in explain("pointwise_conv", **SIZES)


def test_measured_tiles_are_used():
    keep("linear_softmax_cross_entropy", "float32", TOKENS, Measured("pallas", (64, 32, 16)), 1e-3)
    with compiling_for("gpu"):
        text = explain("linear_softmax_cross_entropy", **TOKENS)
    assert "pallas: chosen (fastest when measured on this device, tiles (64, 32, 16))" in text


BROKEN = {
    "cut off": '{"library": "jaxnets", "form',
    "another's": '{"tool": "another", "entries": {}}',
    "a list": "[1, 2]",
    "another format": '{"library": "jaxnets", "format": 99, "entries": {}}',
    "bad entries": '{"library": "jaxnets", "format": 1, "entries": {"key": {"tiles": "many"}}}',
    "bad tiles": (
        '{"library": "jaxnets", "format": 1, '
        '"entries": {"key": {"implementation": "pallas", "tiles": [64, 0, 32]}}}'
    ),
    "no text": b"\xff\xfe\x00",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_cache_that_is_broken_or_not_ours_is_ignored_and_left_alone(cache, content):
    cache.parent.mkdir()
    cache.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = cache.read_bytes()
    forget()
    with pytest.warns(UserWarning, match="ignoring the tuning cache"):
        assert look_up("pointwise_conv", "float32", SIZES) is None
    assert "matmul: chosen" in explain("pointwise_conv", **SIZES)
    with pytest.raises(ValueError, match="must be a tuning cache of jaxnets or absent"):
        keep("pointwise_conv", "float32", SIZES, Measured("matmul", None), 1.0)
    assert cache.read_bytes() == before


def test_a_folder_in_its_place_is_ignored(cache):
    cache.mkdir(parents=True)
    forget()
    with pytest.warns(UserWarning, match="ignoring the tuning cache"):
        assert look_up("pointwise_conv", "float32", SIZES) is None


def test_the_cache_is_in_the_user_s_folder_by_default(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXNETS_TUNING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_path() == tmp_path / "jaxnets" / "tuning.json"


@pytest.fixture
def cheap_problems(monkeypatch):
    """The tuner's arrays drawn by NumPy, which compiles nothing, and its samples by the least."""

    def normal(number, dtype, *shape, scale=1.0):
        return on_device(np.random.default_rng(number).normal(0, scale, shape), dtype)

    monkeypatch.setattr(tuning, "_normal", normal)
    monkeypatch.setattr(tuning, "labels_of", lambda n, size: on_device(np.arange(n) % size))
    monkeypatch.setattr(tuning, "draw_samples", partial(tuning.draw_samples, unique=False))


@pytest.mark.parametrize(
    ("operation", "sizes"),
    [
        ("pointwise_conv", SIZES),
        ("linear_softmax_cross_entropy", TOKENS),
        ("sampled_softmax_cross_entropy",
         {"tokens": 32, "features": 8, "num_sampled": 16, "per_token": False}),
        ("lstm", {"batch": 2, "time": 11, "features": 3, "hidden": 5, "extras": ()}),
    ],
)  # fmt: skip
def test_tune_keeps_the_fastest(cache, cheap_problems, operation, sizes):
    timings = tune(operation, **sizes)
    timed = [timing for timing in timings if timing.seconds is not None]
    assert timed[0].seconds == min(timing.seconds for timing in timed)
    assert {t.left_out for t in timings if t.implementation == "pallas"} == {
        "Pallas kernels need a GPU or TPU, this is cpu"
    }
    assert look_up(operation, "float32", sizes) == (timed[0].implementation, timed[0].tiles)


def test_tune_times_every_tile_and_leaves_out_what_fails_or_differs(monkeypatch, cheap_problems):
    """As on a GPU whose default tiles do not compile and whose others are right, but for one."""
    tried = []
    from jaxnets.kernels.pallas import contract, fused_matmul_triton

    run = fused_matmul_triton.fused_matmul

    def strange(target, tiles, *rest):
        tried.append(tiles)
        if tiles == contract.DEFAULT_TILES["triton"]:
            raise RuntimeError("out of shared memory\nand more")
        results = run(target, tiles, *rest)
        return [2 * r for r in results] if tiles == contract.OTHER_TILES["triton"][0] else results

    monkeypatch.setattr(fused_matmul_triton, "fused_matmul", strange)
    with compiling_for("gpu", interpret=True):
        found = tune("pointwise_conv", **SIZES)
    timings = {t.tiles: t for t in found if t.implementation == "pallas"}
    default, first, *others = (contract.DEFAULT_TILES["triton"], *contract.OTHER_TILES["triton"])
    assert set(tried) == {default, first, *others}
    assert timings[default].left_out == "out of shared memory"
    assert timings[first].left_out == "its results differ"
    assert all(timings[tiles].seconds > 0 for tiles in others)


LSTM = {"batch": 8, "time": 16, "features": 8, "hidden": 128}


def test_xla_only_goes_before_tables_tuner_and_rule_and_after_a_name(monkeypatch):
    with compiling_for("tpu"):
        assert "pallas: chosen" in explain("lstm", **LSTM)
        with xla_only():
            assert "scan: chosen (only XLA was asked for)" in explain("lstm", **LSTM)
        assert "pallas: chosen" in explain("lstm", **LSTM)
        monkeypatch.setenv("JAXNETS_IMPLEMENTATION", "xla")
        assert "scan: chosen (only XLA was asked for)" in explain("lstm", **LSTM)
    keep("pointwise_conv", "float32", SIZES, Measured("reference", None), 1e-3)
    assert "matmul: chosen (only XLA" in explain("pointwise_conv", **SIZES)
    pointwise_conv(np.ones((1, 2, 3)), np.ones((3, 4)), implementation="reference")
    monkeypatch.setenv("JAXNETS_IMPLEMENTATION", "pallas")
    with pytest.raises(ValueError, match="JAXNETS_IMPLEMENTATION must be 'xla' or not set, got 'p"):
        explain("lstm", **LSTM)


def test_no_pallas_kernel_unasked_where_xla_may_split_the_program(monkeypatch):
    """JAX refuses such a program: "Mosaic kernels cannot be automatically partitioned"."""
    monkeypatch.setattr(dispatch, "target", lambda: dispatch.Target("tpu"))
    monkeypatch.setattr(dispatch, "_kind_of_device", lambda: None)
    assert jax.device_count() > 1
    assert "scan: chosen (XLA may split the program" in explain("lstm", **LSTM)
    keep("lstm", "float32", LSTM | {"extras": ()}, Measured("pallas", None), 1e-3)
    assert "scan: chosen (XLA may split the program" in explain("lstm", **LSTM)
    found = []

    def on_each(inputs):
        found.append(explain("lstm", **LSTM))
        return inputs

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.P("data")
    jax.jit(jax.shard_map(on_each, mesh=mesh, in_specs=spec, out_specs=spec))(jnp.ones(4))
    assert "pallas: chosen (fastest when measured" in found[0]
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "pallas: chosen (fastest when measured" in explain("lstm", **LSTM)


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Writes a table for a device of the kind "TPU test"."""
    monkeypatch.setattr(tuned, "files", lambda _package: tmp_path)
    tuned._rows.cache_clear()

    def write(*rows):
        (tmp_path / "tables").mkdir()
        path = tmp_path / "tables" / tuned.file_name("TPU test")
        path.write_text(json.dumps({"device_kind": "TPU test", "rows": rows}))

    yield write
    tuned._rows.cache_clear()


def table_row(implementation, sizes, **others):
    row = {"operation": "lstm", "dtype": "float32", "tiles": None, "source": "compiler, 1.2"}
    return row | {"implementation": implementation, "sizes": {"extras": [], **sizes}} | others


def test_a_table_speaks_for_sizes_near_its_rows(tables):
    far = {name: 64 * size for name, size in LSTM.items()}
    tables(
        table_row("scan", LSTM),
        table_row("pallas", {name: 3 * size for name, size in LSTM.items()}),
        table_row("cudnn", far),
        table_row("scan", LSTM | {"extras": ["peepholes"]}, dtype="bfloat16"),
    )

    def chosen(kind="TPU test", **options):
        with compiling_for("tpu", device_kind=kind):
            (line,) = (x for x in explain("lstm", **(LSTM | options)).splitlines() if "chosen" in x)
        return line

    assert chosen().startswith("  scan: chosen (compiler, 1.2, for TPU test at batch=8, time=16,")
    assert "scan: chosen (compiler" in chosen(time=20)
    assert "pallas: chosen (compiler" in chosen(batch=20, time=40, features=20, hidden=300)
    # Not near, another dtype, other options, another kind, one that cannot run: the rule.
    assert "pallas: chosen (the default on tpu" in chosen(time=16 * 13)
    assert "pallas: chosen (the default on tpu" in chosen(dtype="bfloat16")
    assert "pallas: chosen (the default on tpu" in chosen(extras=("segment_ids",))
    assert "pallas: chosen (the default on tpu" in chosen(kind="TPU other")
    assert "pallas: chosen (the default on tpu" in chosen(kind=None)
    assert "cudnn" not in chosen(**far)


def test_the_tables_that_are_shipped_name_what_there_is():
    paths = [*(pathlib.Path(tuned.__file__).parent / "tables").glob("*.json")]
    assert paths
    for path in paths:
        table = json.loads(path.read_text())
        assert path.name == tuned.file_name(table["device_kind"])
        for row in table["rows"]:
            operation = operation_named(row["operation"])
            assert row["implementation"] in operation.implementations
            assert set(row["sizes"]) == set(operation.sizes)
            assert row["source"].startswith(("compiler, ", "measured on "))
            jnp.dtype(row["dtype"])
            sizes = row["sizes"] | {n: tuple(v) for n, v in row["sizes"].items() if v == []}
            found = tuned.look_up(table["device_kind"], row["operation"], row["dtype"], sizes)
            assert found.implementation == row["implementation"]
