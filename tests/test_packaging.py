"""However the sources were got, they give the same wheel: jaxnets with all its kernels, or none."""

import ast
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
import jax.numpy as jnp
import jaxnets
from jaxnets.kernels import linear_softmax_cross_entropy
loss = linear_softmax_cross_entropy(jnp.ones((2, 3)), jnp.zeros((10, 3)), jnp.arange(2))
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


def build(kind, tree):
    run(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", ".", cwd=tree)
    return built(kind, tree)


def build_by_hook(kind, tree):
    """What ``build`` asks of the backend, in one process and not three."""
    command = f"import setuptools.build_meta; setuptools.build_meta.build_{kind}('dist')"
    run(sys.executable, "-c", command, cwd=tree)
    return built("sdist" if kind == "sdist" else "wheel", tree)


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


@pytest.fixture
def tree(tmp_path):
    return copy_to(tmp_path)


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
def source(repository):
    """The sdist, built as a user builds it."""
    return build("sdist", repository)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """A wheel of the sdist, built as a user builds it."""
    return build("wheel", unpacked(source, tmp_path_factory.mktemp("wheel") / "got"))


def unpacked(source, to):
    with tarfile.open(source) as file:
        file.extractall(to.parent, filter="data")
    (to.parent / f"jaxnets-{jaxnets.__version__}").rename(to)
    assert not (to / "jaxnets/kernels").exists()
    return to


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


@pytest.mark.parametrize("form", [clone, archive, clone_without_links])
def test_wheel_holds_every_file_of_both_folders(form, repository, tmp_path):
    got = tmp_path / "got"
    form(repository, got)
    assert files_of(build_by_hook("wheel", got)) == files_of_both_folders(repository)


def test_wheel_of_the_sdist_holds_every_file_of_both_folders(repository, wheel):
    assert files_of(wheel) == files_of_both_folders(repository)


def test_sdist_holds_the_library_and_what_speaks_of_it(source):
    with tarfile.open(source) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"jaxnets", "jaxnets.egg-info", "kernels"}
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


def without_a_module(tree):
    (tree / "kernels/dispatch.py").unlink()
    return ["jaxnets.kernels.dispatch is not there, and jaxnets.kernels imports it"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (unlisted, "wheel"),
        (unlisted, "sdist"),  # which would be whole by its own list
        (renamed, "wheel"),
        (without_kernels, "wheel"),
        (without_a_module, "wheel"),
    ],
)
def test_build_of_less_than_the_library_fails(change, kind, tree):
    messages = change(tree)
    with pytest.raises(AssertionError) as failed:
        build_by_hook(kind, tree)
    for message in messages:
        assert message in str(failed.value)
    assert not list(tree.glob("dist/*"))


def test_files_of_an_earlier_build_stay_out(tree):
    stale = tree / "build/lib/jaxnets/kernels/renamed_since.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert "jaxnets/kernels/renamed_since.py" not in files_of(build_by_hook("wheel", tree))


@pytest.fixture
def environment(tmp_path):
    """A new environment, with the development environment's packages but not its jaxnets."""
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # The path files of what is added by a path file are not read: an editable jaxnets stays out.
    packages = [path for path in sys.path if path.endswith("-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    return tmp_path / "venv/bin/python", site


def test_installed_wheel(wheel, environment, tmp_path):
    python, site = environment
    zipfile.ZipFile(wheel).extractall(site)
    where = run(python, "-W", "error", "-c", ONE_LOSS, cwd=tmp_path)
    assert where.startswith(f"{site}/jaxnets/kernels/")


@pytest.mark.parametrize("link", [True, False])
def test_editable_install(link, tree, environment, tmp_path):
    if not link:
        (tree / "jaxnets/kernels").unlink()
        (tree / "jaxnets/kernels").write_text("../kernels")
    python, site = environment
    zipfile.ZipFile(build_by_hook("editable", tree)).extractall(site)
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
