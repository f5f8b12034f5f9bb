import os
from pathlib import Path

import jax
import jaxtyping
import pytest

# Compiling is most of the tests' time, and many of the programs are the same in two modules, in the
# other worker or in the last run: all are kept. By the environment, so tests' processes do too.
_CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parents[1] / ".pytest_cache" / "programs"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
for _name, _value in _CACHE.items():
    os.environ.setdefault(_name, _value)
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
# Eight devices for what is split over devices; whatever is not runs on the first, as it would.
jax.config.update("jax_num_cpu_devices", 8)


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
def users_checks():
    """Lets bad input reach our own checks: in tests jaxtyping's would refuse it first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Frees the programs that a module compiled: the system limits how many one process maps."""
    yield
    jax.clear_caches()
