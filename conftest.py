import pytest


@pytest.fixture(autouse=True)
def cheap_parameters_in_doctests(request, monkeypatch):
    """As ``cheap_parameters`` of the tests: doctests are in no folder whose conftest is theirs."""
    if isinstance(request.node, pytest.DoctestItem):
        from tests.draws import draw_by_numpy  # as late as this: it imports jax

        draw_by_numpy(monkeypatch)
