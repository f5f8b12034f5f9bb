"""The Pallas kernels for TPU in the interpreter that finds races, which the plain one cannot."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxnets.kernels import (
    LSTMParameters,
    compiling_for,
    linear_softmax_cross_entropy,
    lstm,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.recurrence import steps
from tests.sampled_losses import sampled_loss
from tests.tape import array_of, gradients, tracked

pallas_call = pl.pallas_call


@pytest.fixture
def finding_races(monkeypatch):
    """Has every Pallas kernel that is interpreted run on a simulated TPU core with its memories."""

    def call(*args, interpret, **kwargs):
        assert interpret is True
        return pallas_call(*args, interpret=pltpu.InterpretParams(detect_races=True), **kwargs)

    monkeypatch.setattr(pl, "pallas_call", call)
    with compiling_for("tpu", interpret=True):
        yield
    pltpu.reset_tpu_interpret_mode_state()


def normal(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def plain_lstm(implementation, inputs, kernels):
    lengths = jnp.array([40, 7])
    results = lstm(
        inputs, None, LSTMParameters(*kernels), lengths=lengths, implementation=implementation
    )
    return (results.outputs**2).sum() + results.carry[0].sum()


def lstm_by_hand(inputs, kernels):
    carry = (np.zeros((2, 128)),) * 2
    arguments = tracked((inputs, carry, LSTMParameters(*kernels)))
    results = steps(*arguments, lengths=np.array([40, 7]))
    outputs, (c, h) = jax.tree.map(array_of, results)
    cotangents = 2 * outputs, (np.ones(c.shape), np.zeros(h.shape))
    of_inputs, _, of_kernels = gradients(results, cotangents, arguments)
    return (outputs**2).sum() + c.sum(), (of_inputs, tuple(of_kernels[:3]))


def exact(implementation, hidden, weight):
    labels = np.arange(len(hidden)) % len(weight)
    return linear_softmax_cross_entropy(hidden, weight, labels, implementation=implementation)


def exact_by_hand(hidden, weight):
    losses, _, backward = exact_loss(hidden, weight, np.arange(len(hidden)) % len(weight))
    return losses.mean(), backward(1 / len(hidden))[:2]


def sampled_by(loss, hidden, weight):
    labels = np.arange(len(hidden)) % len(weight)
    return loss(hidden, weight, labels, fixed_samples(len(weight), labels, 3 * np.arange(9)))


def sampled(implementation, hidden, weight):
    loss = partial(sampled_softmax_cross_entropy, implementation=implementation)
    return sampled_by(loss, hidden, weight)


def sampled_by_hand(hidden, weight):
    losses, backward = sampled_by(partial(sampled_loss, "softmax"), hidden, weight)
    return losses.mean(), backward(1 / len(hidden))[:2]


def pointwise(implementation, inputs, kernel):
    return (pointwise_conv(inputs, kernel, implementation=implementation) ** 2).sum()


def pointwise_by_hand(inputs, kernel):
    inputs, kernel = (np.asarray(a, np.float64) for a in (inputs, kernel))
    outputs = inputs @ kernel
    return (outputs**2).sum(), (
        2 * outputs @ kernel.T,
        2 * np.einsum("bpi,bpo->io", inputs, outputs),
    )


@pytest.mark.parametrize(
    ("function", "plain", "arguments"),
    [
        # 40 steps are several chunks of the grid: what a chunk prefetches could race.
        (plain_lstm, lstm_by_hand,
         (normal(2, 40, 3), (normal(3, 512) / 4, normal(128, 512) / 8, normal(512)))),
        (exact, exact_by_hand, (normal(5, 8), normal(300, 8))),
        (sampled, sampled_by_hand, (normal(5, 8), normal(30, 8))),
        (pointwise, pointwise_by_hand, (normal(2, 3, 8), normal(8, 5))),
    ],
    ids=["lstm", "exact", "sampled", "pointwise"],
)  # fmt: skip
def test_no_race_and_the_values_and_gradients_without(finding_races, function, plain, arguments):
    results = jax.jit(lambda *args: jax.value_and_grad(function, (1, 2))("pallas", *args))(
        *arguments
    )
    jax.block_until_ready(results)
    assert interpreter.races is not None  # it did look, and would have raised
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5),
                 results, plain(*arguments))  # fmt: skip


def test_a_race_would_be_found(finding_races):
    """The target is written while it is copied to: what the test above relies on."""

    def kernel(source, target, semaphore):
        copy = pltpu.make_async_copy(source, target, semaphore)
        copy.start()
        target[...] = jnp.zeros(target.shape, target.dtype)
        copy.wait()

    race = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32),
        scratch_shapes=[pltpu.SemaphoreType.DMA],
        interpret=True,
    )
    with pytest.raises(jax.errors.JaxRuntimeError, match="RACE DETECTED"):
        jax.block_until_ready(race(jnp.ones((8, 128))))
