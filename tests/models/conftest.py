import pytest

from tests.draws import draw_by_numpy


@pytest.fixture(autouse=True, scope="module")
def cheap_parameters():
    """Parameters drawn by NumPy: see tests/draws.py."""
    with pytest.MonkeyPatch.context() as patch:
        draw_by_numpy(patch)
        yield
