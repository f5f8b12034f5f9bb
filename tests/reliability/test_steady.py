"""In a training loop: one compile, no tracer that escapes, the same numbers for the same key."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import LogUniform, Uniform, compiling_for, draw_samples, lstm, recurrent_layers
from jaxnets.kernels.recurrent.parameters import LSTMParameters
from tests.support.matrix import SUBJECTS, scalar

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


def program(subject):
    """The outputs, and a gradient where there is one; each call's is traced and compiled anew."""

    def loss(*arrays):
        outputs = subject.function(*arrays)
        return scalar(outputs), outputs

    if not subject.differentiable:
        return jax.jit(lambda *arrays: subject.function(*arrays))
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.parametrize("name", RUNNABLE)
def test_one_compile_and_the_same_numbers_again(name, compiles):
    """Called eagerly, as in a notebook, its own jit must find its program again.

    The numbers are the same bit by bit, in this process and after its programs are compiled anew.
    """
    subject = SUBJECTS[name]
    arrays = [subject.arrays(jnp.float32, seed) for seed in range(3)]
    derived = program(subject)
    jax.block_until_ready(subject.function(*arrays[0]))
    first = jax.tree.map(np.asarray, derived(*arrays[0]))
    compiles.names.clear()
    for step in arrays[1:]:
        jax.block_until_ready(subject.function(*step))
        jax.block_until_ready(derived(*step))
    assert not compiles.names
    again = program(subject)(*arrays[0])
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_tracer_escapes(name):
    subject = SUBJECTS[name]
    platform = subject.platforms[0] if subject.pallas else "cpu"
    with jax.checking_leaks(), compiling_for(platform, interpret=subject.pallas):

        def function(*arrays):  # traced anew, since leaks are looked for while tracing
            return scalar(subject.function(*arrays))

        traced = jax.grad(function) if subject.differentiable else function
        jax.make_jaxpr(traced)(*subject.arrays(jnp.float32))


PARAMETERS = LSTMParameters(jnp.ones((3, 8)) / 3, jnp.ones((2, 8)) / 2, jnp.zeros(8))
DRAWS = {
    "sample": lambda key: draw_samples(LogUniform(500), key, 20, jnp.arange(3)).ids,
    "sample for each token": lambda key: (
        draw_samples(Uniform(500), key, 20, jnp.arange(3), per_token=True).ids
    ),
    "recurrent dropout": lambda key: lstm(
        jnp.ones((4, 5, 3)), None, PARAMETERS, recurrent_dropout=0.5, key=key
    )[0],
    "dropout between layers": lambda key: recurrent_layers(
        jnp.ones((4, 5, 3)),
        None,
        [[PARAMETERS], [PARAMETERS._replace(input_kernel=jnp.ones((2, 8)))]],
        dropout=0.5,
        key=key,
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
