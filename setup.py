"""Refuses a build that would not be whole; all else about the build stands in pyproject.toml.

setuptools leaves out a folder that nobody listed and does not look at what a module imports: it
would build without them, at exit status 0. This file is run before every wheel, sdist and editable
install. It reads the sources and imports none of them.
"""

import ast
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent


def sources(folders: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """The package, the name and the text of each module, whatever ``jaxnets/kernels`` is."""
    for root, folder in folders.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            package = ".".join((root, *path.parent.relative_to(ROOT / folder).parts))
            module = package if path.stem == "__init__" else f"{package}.{path.stem}"
            yield package, module, path.read_text("utf-8")


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Each name that a module takes from one of ours, after the module it is taken from."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("jaxnets."):
            yield from ((str(node.module), alias.name) for alias in node.names)


def faults(listed: set[str], folders: dict[str, str]) -> Iterator[str]:
    """What a build of these packages would lack, a line each."""
    found = [*sources(folders)]
    modules = {module: text for _, module, text in found}
    for package in sorted({package for package, _, _ in found} - listed):
        yield f"{package} holds modules, and tool.setuptools.packages does not list it"
    for package in sorted(listed - modules.keys()):
        yield f"{package} is in tool.setuptools.packages, and has no __init__.py"
    words = {module: {*re.findall(r"\w+", text)} for module, text in modules.items()}
    absent: dict[str, str] = {}
    for importer, text in modules.items():
        for module, name in imports(text):
            if module not in modules:
                absent.setdefault(module, importer)
            elif name not in words[module] and f"{module}.{name}" not in modules:
                absent.setdefault(f"{module}.{name}", importer)
    for name, importer in absent.items():
        yield f"{name} is not there, and {importer} imports it"


settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
if lines := [*faults(set(settings["packages"]), settings["package-dir"])]:
    raise SystemExit("\n".join(("jaxnets is not whole, and is not built:", *lines)))
# What an earlier build left here would go into this wheel too.
shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)
setup()
