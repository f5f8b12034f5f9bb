"""The reference in docs/api names every public name, and no other; each has an example."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import jaxnets

API = Path(__file__).parents[1] / "docs" / "api"
PACKAGES = sorted(module.name for module in pkgutil.iter_modules(jaxnets.__path__))


def _public(package: str) -> list[str]:
    return importlib.import_module(f"jaxnets.{package}").__all__


def _named(page: Path) -> list[str]:
    return re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(), re.MULTILINE)


def _found(name: str):
    package, _, last = name.rpartition(".")
    return getattr(importlib.import_module(package), last)


@pytest.mark.smoke
def test_every_module_can_be_imported():
    for module in pkgutil.walk_packages(jaxnets.__path__, "jaxnets."):
        importlib.import_module(module.name)


def test_every_package_has_a_page():
    assert sorted(page.stem for page in API.iterdir()) == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_a_page_names_every_public_name_once(package):
    named = _named(API / f"{package}.rst")
    assert len(named) == len(set(named))
    missing = {f"jaxnets.{package}.{name}" for name in _public(package)} - set(named)
    assert not missing


@pytest.mark.smoke
@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_page_names_is_there(package):
    named = _named(API / f"{package}.rst")
    assert not [name for name in named if not name.startswith(f"jaxnets.{package}.")]
    for name in named:
        _found(name)  # an error that says which is not


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_an_example(package):
    public = {name: _found(f"jaxnets.{package}.{name}") for name in _public(package)}
    described = {name: inspect.getdoc(what) or "" for name, what in public.items()}
    assert not [name for name, words in described.items() if ">>>" not in words]
