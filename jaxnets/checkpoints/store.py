"""A run's checkpoints in a folder."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices

from jaxnets.checkpoints import metadata
from jaxnets.checkpoints.arrays import as_saved, describe, first_difference, placed_like
from jaxnets.checkpoints.lock import FolderLock
from jaxnets.checkpoints.metadata import DamagedError

KEPT = 2


class Checkpoints:
    """The last two checkpoints of a run in a folder: its state, its best, and its history.

    A step is a folder: ``STEP/arrays`` has the arrays, by Orbax, and ``STEP/run/metadata`` is JSON
    of the format's version, what the run was asked for, its history, the name, shape and dtype of
    each array of the state, and the SHA-256 of every file and of this JSON. It is written under
    another name, and renamed when it is whole. A run has the folder for itself until ``close``.

    Args:
      folder: a local path; ``~`` is the home folder.
      setup: JSON that a run which goes on must have the same.

    Raises:
      ValueError: ``folder`` is not a local path.
      RuntimeError: another run is using it.
      OSError: it cannot be made or written to.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> checkpoints = Checkpoints(tempfile.mkdtemp(), {"rate": 0.1})
      >>> checkpoints.save(5, {"weight": jnp.ones(2)}, {}, {"history": []})
      >>> state, best, run = checkpoints.restore({"weight": jnp.zeros(2)}, {})
      >>> state["weight"].tolist(), run
      ([1.0, 1.0], {'history': []})
      >>> checkpoints.close()
    """

    def __init__(self, folder: Path | str, setup: Mapping[str, Any]):
        self._folder, self._setup = _local(folder), dict(setup)
        # All processes of a run share its folder; the first holds it, and renames and removes.
        self._first = jax.process_index() == 0
        self._lock = FolderLock(self._folder) if self._first else None
        self._orbax = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def close(self) -> None:
        """Gives the folder back."""
        self._orbax.close()
        if self._lock is not None:
            self._lock.release()

    def save(self, step: int, state: Any, best: Any, run: Mapping[str, Any]) -> None:
        """Saves ``state`` and ``best``, trees of arrays, and ``run``, which is JSON.

        Raises:
          RuntimeError: the folder has this step or a later one.
        """
        latest = max(self._steps(), default=-1)
        if latest >= step:
            raise RuntimeError(f"step {step} was not saved in {self._folder}: it has step {latest}")
        arrays = as_saved({"state": state, "best": best})
        unfinished = self._folder / "unfinished"
        self._on_first(shutil.rmtree, unfinished, ignore_errors=True)
        self._orbax.save(unfinished / "arrays", args=ocp.args.StandardSave(arrays))
        content = {"setup": self._setup, "run": dict(run), "arrays": describe(arrays["state"])}
        self._on_first(metadata.write, unfinished, content)
        self._on_first(os.rename, unfinished, self._folder / str(step))
        self._on_first(self._remove_old, unfinished)

    def restore(self, state: Any, best: Any) -> tuple[Any, Any, dict] | None:
        """State, best and run of the newest step that reads; None: the folder has no steps.

        ``state`` and ``best`` have the structure and the placement that are wanted. Steps that are
        damaged are put aside as ``damaged-STEP``, with a warning.

        Raises:
          ValueError: what is there is of another run, or no step can be read.
        """
        damaged: dict[int, DamagedError] = {}
        for step in self._steps():
            folder = self._folder / str(step)
            try:
                saved = metadata.read(folder)
                metadata.check_files(folder, saved["files"])
            except DamagedError as error:
                damaged[step] = error
                continue
            wanted = as_saved({"state": state, "best": best})
            self._check_same_run(step, saved, wanted)
            self._on_first(self._put_aside, damaged)
            for number, why in damaged.items():
                warnings.warn(
                    f"step {number} in the folder {self._folder} is damaged and was put aside as "
                    f"damaged-{number}; going on from step {step}. {why}",
                    stacklevel=4,
                )
            shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, wanted)
            arrays = self._orbax.restore(folder / "arrays", args=ocp.args.StandardRestore(shapes))
            arrays = placed_like(arrays, {"state": state, "best": best})
            return arrays["state"], arrays["best"], saved["run"]
        if damaged:
            each = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
            raise ValueError(f"no step in the folder {self._folder} can be read: {each}")
        return None

    def _steps(self) -> list[int]:
        """The newest first."""
        names = [entry.name for entry in self._folder.iterdir() if entry.is_dir()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))[::-1]

    def _remove_old(self, unfinished: Path) -> None:
        for step in self._steps()[KEPT:]:
            os.rename(self._folder / str(step), unfinished)  # never half a step by its own name
            shutil.rmtree(unfinished)

    def _put_aside(self, steps: Iterable[int]) -> None:
        for step in steps:
            aside = self._folder / f"damaged-{step}"
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(self._folder / str(step), aside)

    def _on_first(self, function: Any, *args: Any, **options: Any) -> None:
        """Calls it in one process, and all go on when it has returned."""
        if self._first:
            function(*args, **options)
        sync_global_devices("checkpoints")

    def _check_same_run(self, step: int, saved: Mapping[str, Any], wanted: Any) -> None:
        where = f"step {step} in the folder {self._folder}"
        for name, value in self._setup.items():
            old = saved["setup"].get(name)
            if old != value:
                raise ValueError(
                    f"{name} must be {old!r} as in {where}, got {value!r}: go on as the run began, "
                    "or start anew in another folder"
                )
        different = first_difference(saved["arrays"], describe(wanted["state"]))
        if different is not None:
            name, old, new = different
            whose = "optimizer" if name.startswith("optimizer") else "model"
            raise ValueError(
                f"{where} is of another {whose}: {name} is {old} there, and {new} here; start anew "
                "in another folder"
            )


def _local(folder: Path | str) -> Path:
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"folder must be a path, got {folder!r}")
    path = os.fspath(folder)
    if not path or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", path):
        raise ValueError(f"folder must be a local path, got {path!r}: save locally, and copy")
    return Path(path).expanduser().resolve()
