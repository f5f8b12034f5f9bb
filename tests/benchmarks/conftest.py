"""What the tests of the suite share."""

import pytest


@pytest.fixture(autouse=True)
def _small_probes(monkeypatch):
    """The machine's limits are measured on small arrays: a test holds no time to a bar."""
    monkeypatch.setattr("benchmarks.limits._SIDE", 64)
    monkeypatch.setattr("benchmarks.limits._LENGTH", 4096)
