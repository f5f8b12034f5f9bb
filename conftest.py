"""What the doctests share: they lie in no folder whose conftest is the tests'."""

import pytest


@pytest.fixture(autouse=True)
def cheap_parameters_in_doctests(request, monkeypatch):
    """Models' first parameters drawn by NumPy, as ``cheap_parameters`` does for tests."""
    if isinstance(request.node, pytest.DoctestItem):
        from tests.draws import draw_by_numpy  # as late as this: it imports jax

        draw_by_numpy(monkeypatch)
