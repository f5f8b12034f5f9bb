"""Dropout of recurrent layers: of h, between layers, of the inputs; its masks and their share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnets.kernels import LSTMParameters, lstm, recurrent_layers
from tests.kernels.recurrent.test_recurrent import HIDDEN, assert_close, parameters, problem
from tests.near import assert_near


def test_dropout_is_unbiased_and_the_same_at_each_step():
    """h (1) -> mask h: over 4,000 rows the mean of the masks is 1 within five standard errors.

    The masks are independent, so the false-alarm rate is below 1e-6. The same mask at each step:
    with kernels that copy h to h, a unit that is dropped is zero from the first step on.
    """
    rows, share = 4000, 0.25
    big = 100.0
    # i = o = 1 and f = 0, so c = tanh(g) = tanh(h * mask), near the mask's 0 or tanh(1 / 0.75).
    bias = np.float32([big, -big, 0, big])
    weights = LSTMParameters(np.zeros((1, 4), np.float32), np.float32([[0, 0, 1, 0]]), bias)
    layer = jax.jit(functools.partial(lstm, recurrent_dropout=share))
    outputs, _ = layer(
        np.zeros((rows, 11, 1), np.float32), (np.zeros((rows, 1)), np.ones((rows, 1))), weights,
        key=jax.random.key(0),
    )  # fmt: skip
    outputs = np.asarray(outputs)[:, :, 0]
    masks = np.arctanh(np.arctanh(outputs[:, 0]))  # h = tanh(c)
    assert (np.isclose(masks, 0) | np.isclose(masks, 1 / (1 - share), rtol=1e-4)).all()
    assert abs(masks.mean() - 1) < 5 * (share / (1 - share) / rows) ** 0.5
    alive = outputs > 0
    assert (alive == alive[:, :1]).all()


def test_dropout_between_layers(x64):
    layers = [[parameters()], [parameters(features=HIDDEN)]]
    inputs = problem("lstm")[1]
    dropping = jax.jit(functools.partial(recurrent_layers, dropout=0.5))
    both = [dropping(inputs, None, layers, key=jax.random.key(seed))[0] for seed in (0, 0, 1)]
    dropped, again, other = map(np.asarray, both)

    @jax.jit
    def others(inputs, layers):
        lower, _ = recurrent_layers(
            inputs, None, layers[:1], dropout=0.5, key=jax.random.key(0)
        )  # none after the last layer
        plain = recurrent_layers(inputs, None, layers[:1])[0]
        return lower, plain, lstm(plain, None, *layers[1])[0]

    lower, plain, upper = others(inputs, layers)
    assert (dropped == again).all()
    assert not np.allclose(dropped, other)
    assert_close(lower, plain)
    assert not np.allclose(dropped, upper)


def test_dropout_of_the_inputs():
    """A dropped input is zero and a kept one scaled: an input kernel of ones shows which."""
    share, rows = 0.25, 4000
    weights = LSTMParameters(
        jnp.array([[0.0, 0, 1, 0]]), np.zeros((1, 4)), jnp.array([100.0, -100, 0, 100])
    )
    inputs = np.full((rows, 1, 1), 0.5, np.float32)
    layer = functools.partial(recurrent_layers, inputs, None, [[weights]])
    _, [[(c, _)]] = layer(input_dropout=share, key=jax.random.key(0))
    seen = np.arctanh(c)
    kept = np.isclose(seen, 0.5 / (1 - share))
    assert (kept | (seen == 0)).all()
    # Independent draws: within five standard errors, a false alarm below 1e-6.
    assert abs(float(kept.mean()) - (1 - share)) < 5 * (share * (1 - share) / rows) ** 0.5
    assert_near(layer(dropout=share, key=jax.random.key(0)), layer(), 0)
