"""Which implementation runs, why, and what the tuner's cache has to do with it."""

import json

import jax.numpy as jnp
import pytest

from jaxnets.kernels import compiling_for, explain, pointwise_conv
from jaxnets.kernels.dispatch import target
from jaxnets.kernels.tuning import tune
from jaxnets.kernels.tuning_cache import Measured, cache_path, forget, keep, look_up

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
        pointwise_conv(jnp.ones((1, 2, 3)), jnp.ones((3, 4)), implementation="pallas")
    with (
        compiling_for("gpu"),
        pytest.raises(ValueError, match="the kernel takes one group, got groups = 3"),
    ):
        pointwise_conv(jnp.ones((1, 2, 3)), jnp.ones((1, 3)), groups=3, implementation="pallas")


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


@pytest.mark.parametrize(
    ("operation", "sizes"),
    [
        ("pointwise_conv", SIZES),
        ("linear_softmax_cross_entropy", TOKENS),
        ("sampled_softmax_cross_entropy",
         {"tokens": 32, "features": 8, "num_sampled": 16, "per_token": False}),
        ("lstm", {"batch": 2, "time": 4, "features": 3, "hidden": 5, "extras": ()}),
    ],
)  # fmt: skip
def test_tune_keeps_the_fastest(cache, operation, sizes):
    timings = tune(operation, **sizes)
    timed = [timing for timing in timings if timing.seconds is not None]
    assert timed[0].seconds == min(timing.seconds for timing in timed)
    assert {t.left_out for t in timings if t.implementation == "pallas"} == {
        "Pallas kernels need a GPU or TPU, this is cpu"
    }
    assert look_up(operation, "float32", sizes) == (timed[0].implementation, timed[0].tiles)


def test_tune_times_every_tile_and_leaves_out_what_fails_or_differs(monkeypatch):
    """As on a GPU whose default tiles do not compile and whose others are right, but for one."""
    tried = []
    from jaxnets.kernels.pallas import fused_matmul

    run = fused_matmul._triton

    def strange(target, tiles, *rest):
        tried.append(tiles)
        if tiles == fused_matmul.DEFAULT_TILES["gpu"]:
            raise RuntimeError("out of shared memory\nand more")
        results = run(target, tiles, *rest)
        return [2 * r for r in results] if tiles == fused_matmul.OTHER_TILES["gpu"][0] else results

    monkeypatch.setattr(fused_matmul, "_triton", strange)
    with compiling_for("gpu", interpret=True):
        timings = {t.tiles: t for t in tune("pointwise_conv", **SIZES) if t.tiles}
    default, first, *others = (fused_matmul.DEFAULT_TILES["gpu"], *fused_matmul.OTHER_TILES["gpu"])
    assert set(tried) == {default, first, *others}
    assert timings[default].left_out == "out of shared memory"
    assert timings[first].left_out == "its results differ"
    assert all(timings[tiles].seconds > 0 for tiles in others)
