import pytest

from benchmarks.compilers.run import missing
from benchmarks.compilers.worker import Worker


@pytest.fixture(scope="session")
def worker():
    """A process that compiles: one for each of pytest's.

    `make test` on Linux x86-64 installs the extra `compilers`, so there nothing is skipped. libtpu
    and the CUDA plugin have no wheels elsewhere.
    """
    if absent := missing():
        pytest.skip(f"not installed: {', '.join(absent)}")
    with Worker() as started:
        yield started
