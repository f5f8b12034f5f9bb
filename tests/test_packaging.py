"""However the sources were got, they give the same wheel: jaxnets with all its kernels, or none."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import jaxnets

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]

ONE_LOSS = """
import importlib.util
from importlib import metadata
import numpy as np
import jaxnets
from jaxnets.kernels import linear_softmax_cross_entropy
loss = linear_softmax_cross_entropy(np.ones((2, 3), "f"), np.zeros((10, 3), "f"), np.arange(2))
assert abs(float(loss) - 2.302585) < 1e-5
assert jaxnets.__version__ == metadata.version("jaxnets")
for name in ("kernels", "benchmarks", "examples", "tests"):
    assert importlib.util.find_spec(name) is None, name
print(linear_softmax_cross_entropy.__code__.co_filename)
"""


def run(*command, cwd):
    # git without the user's settings, nor in the repository whose hook may be running the tests.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=ours | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


BUILDS = """
import contextlib, json, os, sys
import setuptools.build_meta
for kind, tree in json.loads(sys.argv[1]):
    os.chdir(tree)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            getattr(setuptools.build_meta, f"build_{kind}")("dist")
            failed = ""
        except SystemExit as error:
            failed = str(error)
    print(json.dumps(failed))
"""


def build_by_hook(*builds):
    """What ``build`` asks of the backend, for all in one process; why each failed, or nothing."""
    named = json.dumps([(kind, str(tree)) for kind, tree in builds])
    return list(map(json.loads, run(sys.executable, "-c", BUILDS, named, cwd=ROOT).splitlines()))


def built(kind, tree):
    (file,) = (tree / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return file


def files_of(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist() if ".dist-info/" not in name}


def copy_to(folder):
    """A copy of the tree as it is now, committed or not."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "results")
    return shutil.copytree(ROOT, folder / "tree", symlinks=True, ignore=left_out)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """One that all tests read; what is built in it is not committed."""
    tree = copy_to(tmp_path_factory.mktemp("repository"))
    run("git", "init", "--quiet", cwd=tree)
    run("git", "add", "--all", cwd=tree)
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    run("git", *author, "commit", "--quiet", "--message=all", cwd=tree)
    return tree


@pytest.fixture(scope="module")
def distribution(repository):
    """The sdist, and a wheel of what it unpacks to, as ``build`` makes them."""
    assert build_by_hook(("sdist", repository)) == [""]
    sdist = built("sdist", repository)
    with tarfile.open(sdist) as file:
        file.extractall(repository.parent, filter="data")
    tree = repository.parent / sdist.name.removesuffix(".tar.gz")
    assert build_by_hook(("wheel", tree)) == [""]
    return sdist, built("wheel", tree)


def clone(repository, to):
    run("git", "clone", "--quiet", repository, to, cwd=repository)
    assert (to / "jaxnets/kernels").is_symlink()


def clone_without_links(repository, to):
    run("git", "-c", "core.symlinks=false", "clone", "--quiet", repository, to, cwd=repository)
    assert (to / "jaxnets/kernels").read_text() == "../kernels"


def archive(repository, to):
    run("git", "archive", "--format=zip", f"--output={to}.zip", "HEAD", cwd=repository)
    zipfile.ZipFile(f"{to}.zip").extractall(to)
    assert (to / "jaxnets/kernels").read_text() == "../kernels"


def files_of_both_folders(repository):
    return {
        f"{parent}{path.relative_to(repository).as_posix()}": path.read_bytes()
        for folder, parent in (("jaxnets", ""), ("kernels", "jaxnets/"))
        for path in (repository / folder).rglob("*")
        if path.is_file()
    }


def files_under(tree):
    """What git keeps there."""
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.parts
    }


def test_wheel_holds_every_file_of_both_folders_and_none_of_an_earlier_build(repository, tmp_path):
    trees = {form: tmp_path / form.__name__ for form in (clone, archive, clone_without_links)}
    for form, tree in trees.items():
        form(repository, tree)
    # So that a wheel of one is that of the other.
    assert files_under(trees[archive]) == files_under(trees.pop(clone_without_links))
    for tree in trees.values():
        stale = tree / "build/lib/jaxnets/kernels/renamed_since.py"
        stale.parent.mkdir(parents=True)
        stale.touch()
    assert build_by_hook(*(("wheel", tree) for tree in trees.values())) == ["", ""]
    for tree in trees.values():
        assert files_of(built("wheel", tree)) == files_of_both_folders(repository)


def test_wheel_of_the_sdist_holds_every_file_of_both_folders(repository, distribution):
    assert files_of(distribution[1]) == files_of_both_folders(repository)


def test_sdist_holds_the_library_and_what_speaks_of_it(distribution):
    with tarfile.open(distribution[0]) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"jaxnets", "jaxnets.egg-info", "kernels"}
    assert "jaxnets/kernels" not in names
    assert names > {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml"}


def unlisted(tree):
    (tree / "kernels/extra").mkdir()
    (tree / "kernels/extra/new.py").touch()
    return ["jaxnets.kernels.extra holds modules, and tool.setuptools.packages does not list it"]


def renamed(tree):
    (tree / "kernels/rows").rename(tree / "kernels/row")
    return [
        "jaxnets.kernels.row holds modules, and tool.setuptools.packages does not list it",
        "jaxnets.kernels.rows is in tool.setuptools.packages, and has no __init__.py",
    ]


def without_kernels(tree):
    shutil.rmtree(tree / "kernels")
    return ["jaxnets.kernels is in tool.setuptools.packages, and has no __init__.py"]


def without_a_name(tree):
    checks = tree / "kernels/checks.py"
    checks.write_text(checks.read_text("utf-8").replace("as_integers", "as_whole"))
    return ["jaxnets.kernels.checks.as_integers is not there, and jaxnets."]


def without_a_module(tree):
    (tree / "kernels/dispatch.py").unlink()
    return ["jaxnets.kernels.dispatch is not there, and jaxnets.kernels imports it"]


def test_build_of_less_than_the_library_fails(tmp_path):
    cases = [
        (unlisted, "wheel"),
        (unlisted, "sdist"),  # which would be whole by its own list
        (renamed, "wheel"),
        (without_kernels, "wheel"),
        (without_a_module, "wheel"),
        (without_a_name, "wheel"),
    ]
    builds, messages = [], []
    for number, (change, kind) in enumerate(cases):
        tree = copy_to(tmp_path / str(number))
        messages.append(change(tree))
        builds.append((kind, tree))
    for failed, wanted, (_, tree) in zip(build_by_hook(*builds), messages, builds, strict=True):
        for message in wanted:
            assert message in failed
        assert not list(tree.glob("dist/*"))


def environment(folder):
    """A new environment, with the development environment's packages but not its jaxnets."""
    venv.create(folder / "venv")
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    # The path files of what is added by a path file are not read: an editable jaxnets stays out.
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    return folder / "venv/bin/python", site


def test_installed_wheel(distribution, tmp_path):
    python, site = environment(tmp_path)
    zipfile.ZipFile(distribution[1]).extractall(site)
    where = run(python, "-W", "error", "-c", ONE_LOSS, cwd=tmp_path)
    assert where.startswith(f"{site}/jaxnets/kernels/")


def test_editable_install(tmp_path):
    """With the link, and where it is a file."""
    trees = {link: copy_to(tmp_path / str(link)) for link in (True, False)}
    (trees[False] / "jaxnets/kernels").unlink()
    (trees[False] / "jaxnets/kernels").write_text("../kernels")
    assert build_by_hook(*(("editable", tree) for tree in trees.values())) == ["", ""]
    for link, tree in trees.items():
        python, site = environment(tree.parent)
        zipfile.ZipFile(built("wheel", tree)).extractall(site)
        where = run(python, "-W", "error", "-c", ONE_LOSS, cwd=tmp_path)
        assert where.startswith(f"{tree}/{'jaxnets/' * link}kernels/")


def test_dependencies_are_what_is_imported():
    declared = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["grain"]
    imported = set()
    for folder in ("jaxnets", "kernels"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Import):
                    imported.update(alias.name.partition(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    imported.add(node.module.partition(".")[0])
    names = {re.match(r"\w+", requirement).group() for requirement in declared}  # orbax-checkpoint
    assert imported - {"jaxnets"} - sys.stdlib_module_names == names - {"jaxlib"}


def test_citation_names_the_version():
    assert f"\nversion: {jaxnets.__version__}\n" in (ROOT / "CITATION.cff").read_text()
