"""What was measured on the user's devices: a JSON file, keyed by device, sizes and versions.

The file is ``$JAXNETS_TUNING_CACHE``, or ``jaxnets/tuning.json`` in the user's cache folder: an
absolute ``$XDG_CACHE_HOME``, or ``.cache`` at home; a user without a home has none. A file that is
broken or not ours is ignored with a warning, and never written over.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxnets import __version__

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_HEADER = {"library": "jaxnets", "format": 1}
_unwritten: dict[str, dict[str, Any]] = {}  # entries that only this process has


class Measured(NamedTuple):
    """The fastest implementation, and its tiles (None: its own)."""

    implementation: str
    tiles: tuple[int, ...] | None


def cache_folder() -> Path | None:
    """The user's folder for what can be had again; None: there is none."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if folder.is_absolute():  # any other is to be ignored, says the XDG base directory standard
        return folder / "jaxnets"
    try:
        home = Path.home()
    except RuntimeError:  # no $HOME, and no account with one
        return None
    return home / ".cache" / "jaxnets" if home.is_absolute() else None


def cache_path() -> Path | None:
    """Where the cache is; None: nowhere."""
    if named := os.environ.get("JAXNETS_TUNING_CACHE"):
        return Path(os.path.expanduser(named))
    folder = cache_folder()
    return None if folder is None else folder / "tuning.json"


def look_up(operation: str, dtype: Any, sizes: Mapping[str, Any]) -> Measured | None:
    """What was measured for an operation on this device; None: nothing."""
    path = cache_path()
    entries = {**(_entries(path) if path else {}), **_unwritten}
    entry = entries.get(_key(operation, dtype, sizes)) if entries else None
    if entry is None:
        return None
    tiles = entry["tiles"]
    return Measured(entry["implementation"], None if tiles is None else tuple(tiles))


def check_writable() -> None:
    """Warn where :func:`keep` will have no place to write, before anything is measured.

    Raises:
      ValueError: the file there is not a cache of ours.
    """
    path = cache_path()
    if path is None:
        warnings.warn(
            "there is no folder for the tuning cache, and what is measured is lost with this "
            "process: set JAXNETS_TUNING_CACHE to a file",
            stacklevel=3,
        )
        return
    _read_ours(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        _warn_of_loss(path, error)


def keep(
    operation: str, dtype: Any, sizes: Mapping[str, Any], fastest: Measured, seconds: float
) -> Path | None:
    """Writes one measurement into the cache, all at once, and returns its path.

    Processes take turns. Where nothing can be written, a warning says so, this process alone
    remembers it, and None is returned.

    Raises:
      ValueError: the file there is not a cache of ours.
    """
    path = cache_path()
    key, entry = _key(operation, dtype, sizes), {**fastest._asdict(), "seconds": seconds}
    if path is None:
        _unwritten[key] = entry
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _turn(path):
            entries = _read_ours(path)
            entries[key] = entry
            _replace(path, json.dumps({**_HEADER, "entries": entries}, indent=1))
    except OSError as error:
        _warn_of_loss(path, error)
        _unwritten[key] = entry
        return None
    _unwritten.pop(key, None)
    _entries.cache_clear()
    return path


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time, by a lock on a file beside; none where the file system has no locks.

    The cache itself is replaced by each write, so that a lock on it would be one on an old file.
    """
    with open(path.with_name(path.name + ".lock"), "w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, text: str) -> None:
    """Another file in the place of ``path``, whole or not at all."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.close()
            os.replace(file.name, path)
        except OSError:
            os.unlink(file.name)
            raise


def _warn_of_loss(path: Path, error: OSError) -> None:
    warnings.warn(
        f"the tuning cache {path} cannot be written ({error}), and what is measured is lost with "
        "this process: set JAXNETS_TUNING_CACHE to a file that can",
        stacklevel=3,
    )


def _read_ours(path: Path) -> dict[str, Any]:
    try:
        return _read(path)
    except ValueError as error:
        raise ValueError(f"{path} must be a tuning cache of jaxnets or absent: {error}") from error


def forget() -> None:
    """Has the next look-up read the file again, and nothing else."""
    _entries.cache_clear()
    _unwritten.clear()


def _key(operation: str, dtype: Any, sizes: Mapping[str, Any]) -> str:
    device = jax.devices()[0]
    listed = ",".join(f"{name}={sizes[name]}" for name in sorted(sizes))
    parts = (
        f"{device.platform} {device.device_kind}",
        f"jax {jax.__version__}, jaxnets {__version__}",
        operation,
        jnp.dtype(dtype).name,
    )
    return "|".join((*parts, listed))


@cache
def _entries(path: Path) -> dict[str, Any]:
    try:
        return _read(path)
    except ValueError as error:
        warnings.warn(f"ignoring the tuning cache {path}: {error}", stacklevel=2)
        return {}


def _read(path: Path) -> dict[str, Any]:
    """The entries in the file; ``ValueError`` where it is not a cache of ours."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))  # what it raises is a ValueError
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict) or {name: content.get(name) for name in _HEADER} != _HEADER:
        raise ValueError(f"it does not say {_HEADER}")
    entries = content.get("entries")
    if not isinstance(entries, dict) or not all(map(_is_entry, entries.values())):
        raise ValueError("its entries are not of this format")
    return entries


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("implementation"), str):
        return False
    tiles = entry.get("tiles", "absent")
    whole = isinstance(tiles, list) and len(tiles) == 3
    return tiles is None or (whole and all(type(n) is int and n >= 16 for n in tiles))
