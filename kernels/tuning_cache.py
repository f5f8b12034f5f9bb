"""What was measured on the user's devices: a JSON file, keyed by device, sizes and versions.

The file is ``$JAXNETS_TUNING_CACHE``, or ``jaxnets/tuning.json`` in the user's cache folder. One
that is broken or not ours is ignored with a warning, and never written over.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_HEADER = {"library": "jaxnets", "format": 1}


class Measured(NamedTuple):
    """The fastest implementation, and its tiles (None: its own)."""

    implementation: str
    tiles: tuple[int, ...] | None


def cache_path() -> Path:
    """Where the cache is."""
    if named := os.environ.get("JAXNETS_TUNING_CACHE"):
        return Path(named)
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder) / "jaxnets" / "tuning.json"


def look_up(operation: str, dtype: Any, sizes: Mapping[str, Any]) -> Measured | None:
    """What was measured for an operation on this device; None: nothing."""
    entries = _entries(cache_path())
    entry = entries.get(_key(operation, dtype, sizes)) if entries else None
    if entry is None:
        return None
    tiles = entry["tiles"]
    return Measured(entry["implementation"], None if tiles is None else tuple(tiles))


def keep(
    operation: str, dtype: Any, sizes: Mapping[str, Any], fastest: Measured, seconds: float
) -> Path:
    """Writes one measurement into the cache, all at once, and returns its path.

    Raises:
      ValueError: the file there is not a cache of ours.
    """
    path = cache_path()
    try:
        entries = _read(path)
    except ValueError as error:
        raise ValueError(f"{path} must be a tuning cache of jaxnets or absent: {error}") from error
    entries[_key(operation, dtype, sizes)] = {**fastest._asdict(), "seconds": seconds}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({**_HEADER, "entries": entries}, file, indent=1)
    os.replace(file.name, path)
    forget()
    return path


def forget() -> None:
    """Has the next look-up read the file again."""
    _entries.cache_clear()


def _key(operation: str, dtype: Any, sizes: Mapping[str, Any]) -> str:
    device = jax.devices()[0]
    listed = ",".join(f"{name}={sizes[name]}" for name in sorted(sizes))
    parts = (
        f"{device.platform} {device.device_kind}",
        _versions(),
        operation,
        jnp.dtype(dtype).name,
    )
    return "|".join((*parts, listed))


@cache
def _versions() -> str:
    return f"jax {jax.__version__}, jaxnets {metadata.version('jaxnets')}"


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
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(str(error)) from error
    content = json.loads(text)  # its JSONDecodeError is a ValueError
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
