"""``docs/support.md`` says what is so: each of its cells is tried again."""

import pytest

from tests.support import matrix

CELLS = matrix.rows_of(matrix.PAGE.read_text())


def test_the_page_has_every_function_and_column():
    assert list(CELLS) == list(matrix.SUBJECTS)
    columns = [name for _, name, _ in matrix.COLUMNS]
    assert all(list(row) == columns for row in CELLS.values())


def test_every_public_function_is_in_it():
    """By name; samplers are there by what they are for, and the rest is no function of arrays."""
    import inspect

    from jaxnets import kernels

    not_of_arrays = {"compiling_for", "explain", "tune", "xla_only"}
    listed = " ".join(matrix.SUBJECTS)
    for name in kernels.__all__:
        if inspect.isfunction(getattr(kernels, name)) and name not in not_of_arrays:
            assert name in listed, f"{name} is not in tests/support/matrix.py"


# A function's cells one after the other: they share its programs.
@pytest.mark.parametrize("column", [name for _, name, _ in matrix.COLUMNS])
@pytest.mark.parametrize("name", matrix.SUBJECTS)
def test_cell(name, column):
    (experiment,) = [function for _, other, function in matrix.COLUMNS if other == column]
    assert experiment(matrix.SUBJECTS[name], column) == CELLS[name][column]
