"""In a training loop: one compile, no tracer that escapes, the same numbers for the same key."""

import contextlib
import gc
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LogUniform, Uniform, compiling_for, draw_samples, lstm, recurrent_layers
from jaxnets.kernels.recurrent.parameters import LSTMParameters
from tests.support.matrix import SUBJECTS, Programs, scalar

RUNNABLE = [name for name in SUBJECTS if "pallas" not in name]


class Compiles(logging.Handler):
    """Counts the programs that JAX compiles."""

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


def test_the_counter_counts(compiles):
    jax.jit(lambda a: a * 3 + 1)(jnp.ones(7)).block_until_ready()
    assert compiles.names


def numbers(subject, arrays):
    """The outputs, and the gradients where there are any, by programs that are traced anew.

    They are the matrix's own, so that no other has to be compiled.
    """
    programs = Programs(subject.function)
    gradients = programs.gradients(arrays) if subject.differentiable else ()
    return jax.tree.map(np.asarray, (programs.jitted(*arrays), gradients))


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_compile_and_the_same_numbers_again(name, compiles):
    """Called eagerly, as in a notebook, its own jit must find its program again.

    The numbers are the same bit by bit, in this process and after its programs are compiled anew.
    """
    subject = SUBJECTS[name]
    arrays = [subject.arrays(jnp.float32, seed) for seed in range(3)]
    jax.block_until_ready(subject.function(*arrays[0]))
    compiles.names.clear()
    for step in arrays[1:]:
        jax.block_until_ready(subject.function(*step))
    assert not compiles.names
    plain = [np.asarray(a) for a in arrays[0]]
    first, again = (numbers(subject, plain) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, again)


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


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_tracer_escapes(name):
    subject = SUBJECTS[name]
    platform = subject.platforms[0] if subject.pallas else "cpu"
    with checking_new_tracers(), compiling_for(platform, interpret=subject.pallas):

        def function(*arrays):  # traced anew, since leaks are looked for while tracing
            return scalar(subject.function(*arrays))

        traced = jax.grad(function) if subject.differentiable else function
        jax.make_jaxpr(traced)(*subject.arrays(jnp.float32))


def ones(*shape):
    return np.ones(shape, np.float32)


PARAMETERS = LSTMParameters(ones(3, 8) / 3, ones(2, 8) / 2, 0 * ones(8))
DRAWS = {
    "sample": lambda key: draw_samples(LogUniform(500), key, 20, np.arange(3)).ids,
    "sample for each token": lambda key: (
        draw_samples(Uniform(500), key, 20, np.arange(3), per_token=True, unique=False).ids
    ),
    "recurrent dropout": lambda key: lstm(
        ones(4, 5, 3), None, PARAMETERS, recurrent_dropout=0.5, key=key, implementation="reference"
    )[0],
    "dropout between layers": lambda key: recurrent_layers(
        ones(4, 5, 3),
        None,
        [[PARAMETERS], [PARAMETERS._replace(input_kernel=ones(2, 8))]],
        dropout=0.5,
        key=key,
        implementation="reference",
    )[0],
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_key_is_all_that_chance_depends_on(name):
    """Eagerly, under jit on another device and in x64; another key gives something else."""
    draw, keys = DRAWS[name], [jax.random.key(n) for n in range(2)]
    first = np.asarray(draw(keys[0]))
    with jax.default_device(jax.devices()[1]):
        there = jax.jit(draw)(keys[0])
    assert there.devices() == {jax.devices()[1]}
    np.testing.assert_allclose(there, first, rtol=1e-6)
    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.jit(lambda key: draw(key))(keys[0]), first, rtol=1e-6)
    assert not np.allclose(draw(keys[1]), first)
