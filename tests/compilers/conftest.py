import pytest

from benchmarks.compilers.run import missing
from benchmarks.compilers.worker import Worker


@pytest.fixture(scope="session")
def worker():
    """A process that compiles: one for each of pytest's.

    `make test` installs what it needs on Linux on x86-64, and leaves its tests out elsewhere:
    libtpu and the CUDA plugin have wheels for nothing else.
    """
    if absent := missing():
        pytest.fail(f"not installed: {', '.join(absent)}; run make compilers")
    with Worker() as started:
        yield started
