import jax
import jaxtyping
import pytest

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
