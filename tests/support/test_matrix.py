"""``docs/support.md`` says what is so, and in a training loop too: each function in all its cells.

In a loop: one compile, the same numbers for the same arrays, no tracer that escapes.
"""

import contextlib
import gc
import inspect
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import kernels
from tests.support import matrix
from tests.support.experiments import Programs, compiled_for

CELLS = matrix.rows_of(matrix.PAGE.read_text())
RUN = (*matrix.DTYPES, *matrix.TRANSFORMATIONS)


def test_the_page_has_every_function_and_column():
    assert list(CELLS) == list(matrix.SUBJECTS)
    assert all(list(row) == list(matrix.COLUMNS) for row in CELLS.values())


def test_every_public_function_is_in_it():
    """By name; samplers are there by what they are for, and the rest is no function of arrays."""
    not_of_arrays = {"compiling_for", "explain", "tune", "xla_only"}
    listed = " ".join(matrix.SUBJECTS)
    for name in kernels.__all__:
        if inspect.isfunction(getattr(kernels, name)) and name not in not_of_arrays:
            assert name in listed, f"{name} is not in tests/support/subjects.py"


class Compiles(logging.Handler):
    """Counts the programs that JAX compiles, or loads from its cache on disk."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        if "Finished XLA compilation" in record.getMessage():
            self.names.append(record.getMessage())


@pytest.fixture
def compiles():
    handler, logger = Compiles(), logging.getLogger("jax._src.dispatch")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


@contextlib.contextmanager
def checking_new_tracers():
    """``jax.checking_leaks``, which searches the whole heap at each end of a trace: here what is
    new, since no tracer of these traces can be older."""
    gc.freeze()
    try:
        with jax.checking_leaks():
            yield
    finally:
        gc.unfreeze()


LEAKED = []


def test_a_tracer_that_escapes_is_found():
    with checking_new_tracers(), pytest.raises(Exception, match="Leaked"):
        jax.make_jaxpr(lambda a: LEAKED.append(a + 1) or a)(1.0)
    LEAKED.clear()


# One test for all of a function's cells, which share its programs.
@pytest.mark.parametrize("name", matrix.SUBJECTS)
def test_function(name, compiles):
    """The cells of its row; one compile; the same numbers bit by bit by programs traced anew.

    Called eagerly, as in a notebook, its own jit must find its program again. Leaks are looked for
    where it is traced anew and lowered for the platforms.
    """
    subject = matrix.SUBJECTS[name]
    programs = Programs(subject)
    with compiled_for(subject):
        jax.block_until_ready(programs.function(*programs.arrays))
        assert compiles.names
        compiles.names.clear()
        for seed in range(1, 3):
            later = [np.asarray(a) for a in subject.arrays(jnp.float32, seed)]
            jax.block_until_ready(programs.function(*later))
        assert not compiles.names
        assert matrix.outcomes(programs, RUN) == {column: CELLS[name][column] for column in RUN}
    with checking_new_tracers():
        if not subject.pallas:
            same_numbers_anew(programs, compiles)
        lowered = matrix.outcomes(programs, matrix.PLATFORMS)
    assert lowered == {column: CELLS[name][column] for column in matrix.PLATFORMS}


def same_numbers_anew(programs, compiles):
    """The outputs, and the gradients where there are any, where nothing is known of the first."""
    if programs.subject.differentiable:
        _, program, first = programs.derivatives
    else:
        program, first = programs.function, programs.function(*programs.arrays)
    jax.clear_caches()
    compiles.names.clear()
    again = program(*programs.arrays)
    assert compiles.names
    jax.tree.map(np.testing.assert_array_equal, again, first)
