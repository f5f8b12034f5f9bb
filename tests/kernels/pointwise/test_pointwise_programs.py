"""What the programs of the 1x1 convolution keep, copy and cost, and where they lower to."""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from jaxnets.kernels import pointwise_conv
from tests.kernels.pointwise.test_pointwise import problem, run


def test_a_gradient_keeps_only_inputs_and_outputs(x64):
    arrays = problem(dtype=np.float64)
    _, backward = jax.vjp(partial(run, activation="relu"), *arrays)
    inputs, kernel, _, outputs = arrays
    kept = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert kept <= inputs.size + kernel.size + outputs.size


def test_the_hlo_has_matmuls_and_no_convolution():
    arrays = problem(residual=False)

    def step(*arrays):
        outputs, backward = jax.vjp(run, *arrays)
        return backward(outputs)

    text = jax.jit(step).lower(*arrays).compile().as_text()
    assert text is not None
    assert " convolution(" not in text
    assert " dot(" in text


def test_channels_first_copies_no_activations():
    inputs, kernel = np.ones((4, 64, 32, 32), np.float32), np.ones((64, 32), np.float32)
    function = jax.jit(partial(pointwise_conv, channels_first=True))
    memory = function.lower(inputs, kernel).compile().memory_analysis()
    assert memory is not None
    # The kernel, repeated for each image, and the outputs before their bias at most.
    assert memory.temp_size_in_bytes <= 4 * 64 * 32 * 4 + 4 * 32 * 32 * 32 * 4
    assert memory.temp_size_in_bytes < inputs.nbytes


def test_channels_first_in_a_loop_costs_what_it_does_outside():
    """jax#12868: lax.conv took 16 s for two iterations in a loop, 3 ms outside."""
    inputs, kernel = jnp.asarray(np.ones((4, 64, 4096), np.float32)), np.eye(64, dtype=np.float32)
    convolve = partial(pointwise_conv, kernel=kernel, channels_first=True)
    rounds = 4

    @jax.jit
    def inside(inputs):
        return lax.fori_loop(0, rounds, lambda _, x: convolve(x), inputs)

    def outside(inputs):
        for _ in range(rounds):
            inputs = convolve(inputs)
        return inputs

    np.testing.assert_array_equal(inside(inputs), outside(inputs))

    def seconds(function):
        start = time.perf_counter()
        jax.block_until_ready(function(inputs))
        return time.perf_counter() - start

    # The best of many, in turn: other work on the machine only adds. Twice is far below 5,000
    # times, and far above the spread of the best.
    times = [(seconds(inside), seconds(outside)) for _ in range(15)]
    best_inside, best_outside = (min(column) for column in zip(*times, strict=True))
    assert best_inside < 2 * best_outside


@pytest.mark.parametrize("channels_first", [False, True])
def test_lowers_for(channels_first):
    inputs = np.ones((2, 8, 4, 8), np.float32)
    function = partial(pointwise_conv, channels_first=channels_first, activation="gelu")
    gradient = jax.grad(lambda *arrays: function(*arrays).sum(), (0, 1))
    kernel = np.ones((8, 3), np.float32)
    exported = export.export(jax.jit(gradient), platforms=["tpu", "cuda"])(inputs, kernel)
    assert exported.platforms == ("tpu", "cuda")


def test_a_large_widening_gradient_runs_in_tiles():
    """A loop in the compiled program, and none where the outputs are the narrower side."""
    wide, narrow = (np.ones((1, 20_000, features), np.float32) for features in (128, 8))

    def text(inputs, out):
        kernel = np.ones((inputs.shape[2], out), np.float32)
        step = jax.jit(jax.grad(lambda x, w: (pointwise_conv(x, w) ** 2).sum(), (0, 1)))
        return step.lower(inputs, kernel).compile().as_text()

    assert " while(" in text(narrow, 128)
    assert " while(" not in text(wide, 8)
