"""What is saved, damaged in every way, and what else a folder can be."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.checkpoints import Checkpoints, lock, metadata

SETUP = {"monitor": None, "mode": None}


def state(step):
    """Of several types, and a key."""
    key = jax.random.key(step)
    return {
        "kernel": jax.random.normal(key, (64, 3)),
        "half": jnp.full((2, 5), step, jnp.bfloat16),
        "count": jnp.int32(step),
        "key": key,
        "empty": jnp.zeros((0, 4)),
    }


def save(folder, *steps):
    checkpoints = Checkpoints(folder, SETUP)
    for step in steps:
        checkpoints.save(step, state(step), None, {"step": step})
    checkpoints.close()


def restore(folder, like=None):
    checkpoints = Checkpoints(folder, SETUP)
    try:
        return checkpoints.restore(like or state(0), None)
    finally:
        checkpoints.close()


def check_is(restored, step):
    values, _, run = restored
    assert run == {"step": step}
    for name, expected in state(step).items():
        value = values[name]
        assert value.dtype == expected.dtype
        assert value.committed == expected.committed
        if name == "key":
            value, expected = jax.random.key_data(value), jax.random.key_data(expected)
        np.testing.assert_array_equal(value, expected)


def remove(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(data)


def append(file):
    file.write_bytes(file.read_bytes() + b"}x")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save(folder, 10, 20)
    return folder


@pytest.mark.parametrize("damage", [remove, empty, cut, flip, append])
def test_any_file_damaged(damage, saved, tmp_path):
    """The step before is restored, and a warning names the file."""
    files = [p.relative_to(saved) for p in saved.glob("20/**/*") if p.is_file()]
    assert len(files) > 8
    for i, file in enumerate(files):
        folder = shutil.copytree(saved, tmp_path / str(i))
        damage(folder / file)
        step = (
            f"step 20 in the folder {folder} is damaged .*; going on from step 10. {folder / file}"
        )
        with pytest.warns(UserWarning, match=step):
            check_is(restore(folder), 10)
        assert sorted(p.name for p in folder.iterdir()) == ["10", "damaged-20"]
    check_is(restore(folder), 10)  # and no warning again


def test_bytes_of_the_metadata(saved, tmp_path):
    """No JSON that still reads is taken for what was saved, another format or an old one."""
    folder = shutil.copytree(saved / "20", tmp_path / "20")
    path = folder / "run/metadata"
    data = path.read_bytes()
    for i in range(0, len(data), 3):
        path.write_bytes(data[:i] + bytes([data[i] ^ (1 << i % 8)]) + data[i + 1 :])
        with pytest.raises(metadata.DamagedError, match="20/run/metadata"):
            metadata.read(folder)
    path.write_bytes(data)
    assert metadata.read(folder)["run"] == {"step": 20}


def test_folders_that_are_no_steps(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "a")
    (folder / "30").mkdir()
    (folder / "040").mkdir()
    (folder / "notes").mkdir()
    (folder / "50").write_text("a file")
    with pytest.warns(UserWarning, match="step 30 .*30/run/metadata is missing"):
        check_is(restore(folder), 20)
    check_is(restore(folder), 20)  # and no warning again


def test_arrays_gone(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "a")
    shutil.rmtree(folder / "20/arrays")
    with pytest.warns(UserWarning, match="step 20 .*20/arrays"):
        check_is(restore(folder), 10)


def test_refused_if_no_step_reads(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "a")
    for step in (10, 20):
        empty(folder / str(step) / "run/metadata")
    for _ in range(2):  # nothing has been moved
        with pytest.raises(ValueError, match=r"no step .* can be read: step 20: .*; step 10: "):
            restore(folder)


@pytest.mark.smoke
def test_format(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "a")
    path = folder / "20/run/metadata"
    changed = json.loads(path.read_bytes()) | {"format": 99}
    changed.pop("sha256")
    path.write_text(json.dumps(changed | {"sha256": metadata._hash(changed)}))
    with pytest.raises(ValueError, match="format 99, this jaxnets reads format 1"):
        restore(folder)
    path.write_text(json.dumps({"history": [], "step": 20, "best_step": 20}))
    with pytest.raises(ValueError, match="has no format version"):
        restore(folder)


@pytest.mark.parametrize("moment", ["write", "rename", "rmtree"])
def test_cut_while_it_saves(moment, saved, tmp_path, monkeypatch):
    """The step before, or the new one, is whole; and the next save clears up."""
    folder = shutil.copytree(saved, tmp_path / "a")

    def killed(path, *_, **options):
        if not options:  # of rmtree, the removal of an old step
            raise KeyboardInterrupt

    module = {"write": metadata, "rename": os, "rmtree": shutil}[moment]
    monkeypatch.setattr(module, moment, killed)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 30)
    monkeypatch.undo()
    (folder / ".lock").unlink(missing_ok=True)
    lock._held.clear()
    check_is(restore(folder), 30 if moment == "rmtree" else 20)
    save(folder, 40)
    assert sorted(p.name for p in folder.iterdir())[1:] == ["40"]


def test_a_higher_step_in_the_folder_is_no_silence(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "a")
    with pytest.raises(RuntimeError, match=r"step 15 was not saved in .*: it has step 20"):
        save(folder, 15)


@pytest.mark.parametrize("devices", [2, pytest.param(8, marks=pytest.mark.smoke)])
def test_split_arrays(devices, tmp_path):
    """Restored to where they were, whole or split, and on another number of devices."""
    P = jax.sharding.PartitionSpec  # noqa: N806

    def on(count):
        mesh = jax.make_mesh((count,), ("d",), devices=jax.devices()[:count])
        place = {"split": P("d"), "whole": P()}
        return {
            name: jax.device_put(
                jnp.arange(16.0).reshape(8, 2), jax.sharding.NamedSharding(mesh, spec)
            )
            for name, spec in place.items()
        } | {"count": jnp.int32(3)}

    checkpoints = Checkpoints(tmp_path, SETUP)
    checkpoints.save(1, on(devices), None, {})
    for count in (devices, 1, 4):
        like = on(count)
        values, _, _ = checkpoints.restore(like, None)
        for name, expected in like.items():
            assert values[name].sharding == expected.sharding
            assert values[name].committed == expected.committed
            np.testing.assert_array_equal(values[name], expected)
    checkpoints.close()


def test_one_run_at_a_time(tmp_path):
    first = Checkpoints(tmp_path, SETUP)
    with pytest.raises(RuntimeError, match="another run, of this process, is using the folder"):
        Checkpoints(tmp_path, SETUP)
    code = (
        "import os, pathlib, sys; from jaxnets.checkpoints.lock import FolderLock\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "try: FolderLock(folder)\n"
        "except RuntimeError as error: print(error, flush=True)\n"
        "input(); FolderLock(folder); os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path.resolve())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as elsewhere:
        assert f"another run, process {os.getpid()} on " in elsewhere.stdout.readline()
        first.close()
        assert os.listdir(tmp_path) == []
        elsewhere.communicate("\n")  # takes it and is killed
        assert elsewhere.returncode == -9
    assert os.listdir(tmp_path) == [".lock"]
    Checkpoints(tmp_path, SETUP).close()


def test_folder(tmp_path, monkeypatch, users_checks):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for folder in ("~/run", Path("~/run")):
        Checkpoints(folder, SETUP).close()
    assert os.listdir(tmp_path) == ["run"]
    for folder in ("gs://bucket/run", "s3://bucket", Path("gs://bucket/run"), ""):
        with pytest.raises(ValueError, match="folder must be a local path"):
            Checkpoints(folder, SETUP)
    with pytest.raises(TypeError, match="folder must be a path, got 3"):
        Checkpoints(3, SETUP)
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/run", "/proc/self/run"):
        with pytest.raises(OSError, match="folder must be one that can be made and written to"):
            Checkpoints(folder, SETUP)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="folder must be one that can be made and written to"):
        Checkpoints(tmp_path, SETUP)
    tmp_path.chmod(0o755)
