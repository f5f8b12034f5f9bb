"""What a step's folder says of itself, so that damage is noticed and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT = 1
PLACE = Path("run/metadata")
UNVERSIONED = {"history", "step", "best_step"}  # what was saved before there was a format


class DamagedError(Exception):
    """A step that cannot be read; says which file and why."""


def write(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content``, which is JSON, with hashes of it and of every file in ``folder``."""
    files = {
        str(path.relative_to(folder)): _hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    metadata = {"format": FORMAT, "files": files, **content}
    path = folder / PLACE
    path.parent.mkdir()
    path.write_text(json.dumps(metadata | {"sha256": _hash(metadata)}))


def read(folder: Path) -> dict[str, Any]:
    """What ``write`` was given, and ``format`` and ``files``.

    Raises:
      DamagedError: this, or one of the files, is not what was written.
      ValueError: it is of another format.
    """
    path = folder / PLACE
    try:
        metadata = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (OSError, ValueError) as error:  # not JSON, not even text
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if not isinstance(metadata, dict):
        raise DamagedError(f"{path} is not what was saved")
    if set(metadata) == UNVERSIONED:
        raise ValueError(
            f"{path} has no format version: a jaxnets that is too old has saved it, without "
            "anything to check it by; start anew in another folder"
        )
    version, expected = metadata.get("format"), metadata.pop("sha256", None)
    whole = expected == _hash(metadata)
    if version != FORMAT:
        message = f"{path} has format {version!r}, this jaxnets reads format {FORMAT}"
        raise ValueError(message) if whole else DamagedError(message)
    if not whole:
        raise DamagedError(f"{path} has other bytes than were saved")
    return metadata


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Raises ``DamagedError`` if one of ``files``, by name, has not the hash that it had."""
    for name, expected in files.items():
        path = folder / name
        try:
            found = _hash_file(path)
        except FileNotFoundError:
            raise DamagedError(f"{path} is missing") from None
        except OSError as error:
            raise DamagedError(f"{path} cannot be read: {error}") from None
        if found != expected:
            raise DamagedError(f"{path} has other bytes than were saved")


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
