"""Where the tuning cache is, and that many writers and bad folders lose nothing in silence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxnets.kernels import tuning, tuning_cache

WRITER = """
import sys
from jaxnets.kernels import tuning_cache
for i in range(10):
    measured = tuning_cache.Measured("tiled", None)
    tuning_cache.keep("lstm", "float32", {"writer": sys.argv[1], "i": i}, measured, 1.0)
"""


@pytest.fixture(autouse=True)
def nothing_kept():
    tuning_cache.forget()
    yield
    tuning_cache.forget()


def test_processes_that_write_together_lose_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXNETS_TUNING_CACHE", str(tmp_path / "tuning.json"))
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(n)]) for n in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(json.loads((tmp_path / "tuning.json").read_text())["entries"]) == 20


@pytest.mark.parametrize("value", ["", "here", "./here"])
def test_a_cache_folder_that_is_not_absolute_is_none(monkeypatch, tmp_path, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tuning_cache.cache_folder() == tmp_path / ".cache" / "jaxnets"


def test_without_a_home_there_is_no_cache(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAXNETS_TUNING_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert tuning_cache.cache_path() is None
    assert tuning_cache.look_up("lstm", "float32", {}) is None
    assert tuning_cache.keep("lstm", "float32", {}, tuning_cache.Measured("x", None), 1.0) is None
    with pytest.warns(UserWarning, match="no folder for the tuning cache"):
        tuning_cache.check_writable()


def test_what_cannot_be_written_is_said_before_measuring(monkeypatch, tmp_path):
    """A file in the place of the folder: root may write anywhere else."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXNETS_TUNING_CACHE", str(tmp_path / "file" / "tuning.json"))
    with pytest.warns(UserWarning, match="cannot be written"):
        tuning_cache.check_writable()
    with pytest.warns(UserWarning, match="cannot be written"):
        kept = tuning_cache.keep("lstm", "float32", {}, tuning_cache.Measured("x", None), 1.0)
    assert kept is None
    assert tuning_cache.look_up("lstm", "float32", {}) == ("x", None)  # in this process


def test_a_tuner_that_finds_nothing_to_run_says_why(monkeypatch, tmp_path):
    """A compiler's error may have no words."""
    monkeypatch.setenv("JAXNETS_TUNING_CACHE", str(tmp_path / "tuning.json"))

    def problem(dtype, **sizes):
        def function(implementation, array):
            raise NotImplementedError

        return function, (1.0,)

    monkeypatch.setitem(tuning.PROBLEMS, "pointwise_conv", problem)
    with pytest.raises(RuntimeError, match=r"runs here: .*matmul: NotImplementedError"):
        tuning.tune(
            "pointwise_conv", positions=8, features=2, out=2, groups=1, channels_first=False
        )


def test_a_broken_cache_stops_the_tuner_before_it_measures(monkeypatch, tmp_path):
    (tmp_path / "tuning.json").write_text("{")
    monkeypatch.setenv("JAXNETS_TUNING_CACHE", str(tmp_path / "tuning.json"))
    with pytest.raises(ValueError, match="must be a tuning cache of jaxnets"):
        tuning.tune(
            "pointwise_conv", positions=8, features=2, out=2, groups=1, channels_first=False
        )
