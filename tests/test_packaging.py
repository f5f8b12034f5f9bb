"""The wheel holds jaxnets and jaxnets.kernels, and works in a fresh virtual environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ONE_LOSS = """
import jax, jax.numpy as jnp
from jaxnets.kernels import linear_softmax_cross_entropy
loss = linear_softmax_cross_entropy(jnp.ones((2, 3)), jnp.zeros((10, 3)), None, jnp.arange(2))
assert abs(float(loss) - 2.302585) < 1e-5
import importlib.util
for name in ("kernels", "benchmarks", "tests"):
    assert importlib.util.find_spec(name) is None, name
"""


@pytest.mark.slow
def test_wheel_in_a_fresh_environment(tmp_path):
    def run(*command):
        done = subprocess.run(
            [str(part) for part in command], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    run(sys.executable, "-m", "build", "--wheel", "--outdir", tmp_path / "dist", ROOT)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "jaxnets",
        next(name for name in names if ".dist-info" in name).split("/")[0],
    }
    assert "jaxnets/kernels/linear_softmax/api.py" in names
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel)
    run(python, "-W", "error", "-c", ONE_LOSS)
