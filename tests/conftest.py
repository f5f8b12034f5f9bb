import jax
import jaxtyping
import pytest


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


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
