import gc
import os
from pathlib import Path

# Compiling is most of the tests' time. So every program is kept, for the other worker and the next
# run, and LLVM optimizes little, which changes no equation; `make test` runs the smoke tests with
# all optimizations too. The environment tells the processes that a test starts.
_SETTINGS = {
    # The vendors' plugins are here for tests/compilers, and would look for their devices.
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
for _name, _value in _SETTINGS.items():
    os.environ.setdefault(_name, _value)

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# Eight devices for what is split over devices; whatever is not runs on the first, as it would.
jax.config.update("jax_num_cpu_devices", 8)


class Doctests:
    """Fixtures of doctests, which lie in no folder of this conftest: registered as a plugin."""

    @pytest.fixture(autouse=True)
    def cheap_parameters_in_doctests(self, request, monkeypatch):
        if isinstance(request.node, pytest.DoctestItem):
            from tests.draws import draw_by_numpy

            draw_by_numpy(monkeypatch)


def pytest_configure(config):
    config.pluginmanager.register(Doctests())


@pytest.hookimpl(trylast=True)
def pytest_collection_finish():
    """What is imported stays, so the garbage collector need not go through it again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


STRICT_MODES = {
    "jax_numpy_rank_promotion": "raise",
    "jax_numpy_dtype_promotion": "strict",
    "jax_debug_nans": True,
}


@pytest.fixture(params=STRICT_MODES)
def strict_mode(request):
    """Each of JAX's strict modes in turn: what a function does inside must pass under them too."""
    before = getattr(jax.config, request.param)
    jax.config.update(request.param, STRICT_MODES[request.param])
    yield request.param
    jax.config.update(request.param, before)


@pytest.fixture
def strict_modes():
    """All of JAX's strict modes at once, where a function passes under them together."""
    before = {name: getattr(jax.config, name) for name in STRICT_MODES}
    for name, value in STRICT_MODES.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def users_checks():
    """Lets bad input reach our own checks: in tests jaxtyping's would refuse it first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def loops(monkeypatch):
    """Leaves the loops of recurrent layers loops: short ones, written out, compile for longer."""
    from jaxnets.kernels.recurrent import xla_chunk, xla_chunk_size

    monkeypatch.setattr(xla_chunk, "UNROLLED", 0)
    monkeypatch.setattr(xla_chunk_size, "WRITTEN_OUT", ())


_MAPS = Path("/proc/self/maps")
_MOST_MAPS = 4_000  # with some 300 MB of programs


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Frees the programs that were compiled, once they are many.

    Linux limits how many places one process maps, to 65,530; elsewhere nothing tells their number.
    What a module leaves, small programs above all, others would load again.
    """
    yield
    if not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") > _MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def cheap_parameters():
    """Parameters drawn by NumPy: see tests/draws.py."""
    from tests.draws import draw_by_numpy

    with pytest.MonkeyPatch.context() as patch:
        draw_by_numpy(patch)
        yield
