"""What optax has not, against NumPy: FTRL, and Adam with a second moment a row."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import optim
from jaxnets.kernels import SparseRows, rows_from_dense
from tests.inputs import on_device, ones

VOCAB, FEATURES, STEPS = 7, 3, 6
L1 = 0.8


def gradients():
    """Dense ones, in which half of the rows are 0."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(STEPS, VOCAB, FEATURES)) * (rng.random((STEPS, VOCAB, 1)) < 0.5)


def steps_of(optimizer, table, gradients):
    """The table after each step, and the updates of what only fills up."""

    def step(carry, gradient):
        table, state = carry
        rows = rows_from_dense(gradient, VOCAB)
        updates, state = optimizer.update(rows, state, table)
        table = optim.apply_updates(table, updates)
        values = updates.values.reshape(VOCAB, -1)
        return (table, state), (table, jnp.where(rows.ids[:, None] < VOCAB, 0, values))

    return jax.lax.scan(step, (table, optimizer.init(table)), gradients)[1]


def algorithm_1(table, gradients, alpha, l1, l2, beta):
    """McMahan et al. 2013, as it stands there, but for the z that it starts from."""
    z, n, found = -table * (beta / alpha + l2) - np.sign(table) * l1, np.zeros_like(table), []
    for g in gradients:
        w = np.where(abs(z) <= l1, 0, -(z - np.sign(z) * l1) / ((beta + n**0.5) / alpha + l2))
        sigma = ((n + g**2) ** 0.5 - n**0.5) / alpha
        z, n = z + g - sigma * w, n + g**2
        w = np.where(abs(z) <= l1, 0, -(z - np.sign(z) * l1) / ((beta + n**0.5) / alpha + l2))
        found.append(w)
    return np.stack(found)


def adam_by_rows(table, gradients, rate, b1=0.9, b2=0.999, eps=1e-8):
    """Of touched rows; all steps count."""
    first, second, found = np.zeros_like(table), np.zeros(len(table)), []
    for i, g in enumerate(gradients, 1):
        on = g.any(1)
        first[on] = b1 * first[on] + (1 - b1) * g[on]
        second[on] = b2 * second[on] + (1 - b2) * (g[on] ** 2).mean(1)
        scale = (second[on, None] / (1 - b2**i)) ** 0.5 + eps
        table = table.copy()
        table[on] -= rate * first[on] / (1 - b1**i) / scale
        found.append(table)
    return np.stack(found)


def test_against_numpy(x64):
    table = np.random.default_rng(1).normal(size=(VOCAB, FEATURES))
    options = {"l1": L1, "l2": 0.3, "beta": 0.5}
    ftrl, adam = optim.ftrl(0.4, **options), optim.rowwise_adam(0.1)

    @jax.jit
    def run(table, gradients):
        column = gradients[..., 0] + 1  # every row is touched
        theirs = optax.adam(0.1)

        def dense(carry, gradient):
            table, state = carry
            updates, state = theirs.update(gradient, state)
            table = optax.apply_updates(table, updates)
            return (table, state), table

        optax_steps = jax.lax.scan(dense, (table[:, 0], theirs.init(table[:, 0])), column)[1]
        return {
            "from 0": steps_of(ftrl, jnp.zeros_like(table), gradients),
            "from the table": steps_of(ftrl, table, gradients),
            "by rows": steps_of(adam, table, gradients),
            "ours": steps_of(adam, table[:, 0], column),
        }, optax_steps

    given = gradients()
    steps, optax_steps = run(table, given)
    found = {name: each for name, (each, _) in steps.items()}
    assert not any(fillers.any() for _, fillers in steps.values())
    touched = given.any(2).cumsum(0)[..., None] > 0
    for name, start in {"from 0": 0 * table, "from the table": table}.items():
        wanted = algorithm_1(start, given, alpha=0.4, **options)
        np.testing.assert_allclose(found[name], wanted, rtol=1e-12, atol=1e-14)
    zeros = np.asarray(found["from 0"]) == 0
    assert (zeros == (algorithm_1(0 * table, given, 0.4, **options) == 0)).all()
    assert (zeros & touched).sum() > 5  # of these l1 made them
    assert (~zeros).sum() > 5
    np.testing.assert_allclose(found["by rows"], adam_by_rows(table, given, 0.1), rtol=1e-12)
    np.testing.assert_allclose(found["ours"], optax_steps, rtol=1e-12)


def test_a_bfloat16_table_of_ftrl_adds_no_roundings_up():
    """It is what float32 gives, rounded."""
    wide = on_device(np.zeros((VOCAB, FEATURES), np.float32))
    given = (0.01 * gradients()).astype(np.float32).repeat(20, 0)
    run = jax.jit(lambda table: steps_of(optim.ftrl(0.4), table, given)[0][-1])
    found, wanted = run(wide.astype(jnp.bfloat16)), run(wide)
    # The update is rounded to float32, and the sum with the table to bfloat16, once.
    np.testing.assert_allclose(found.astype(jnp.float32), wanted, rtol=2**-8)


def test_wrong_numbers(users_checks):
    for build, error, words in (
        (lambda: optim.ftrl(lambda step: 0.1), TypeError, "learning_rate must be a number, not a"),
        (lambda: optim.lazy_lion(0.1, lambda step: 0.9), TypeError, "b1 must be a number, not a"),
        (lambda: optim.ftrl(0.0), ValueError, "learning_rate must be a number above 0, got 0.0"),
        (lambda: optim.ftrl(0.1, beta=0.0), ValueError, "beta must be a number above 0, got 0.0"),
        (lambda: optim.ftrl(0.1, l1=-1.0), ValueError, "l1 must be a number of at least 0"),
        (lambda: optim.lazy_adamw(0.1, weight_decay=-1.0), ValueError, "weight_decay must be"),
        (lambda: optim.lazy_lion(0.1, b1=1.0), ValueError, r"b1 must be in \[0, 1\)"),
    ):
        with pytest.raises(error, match=words):
            build()
    table, rows = ones((VOCAB, FEATURES)), SparseRows([1], ones((1, FEATURES)))
    optimizer = optim.lazy_adamw(0.1)
    state = optimizer.init(table)
    with pytest.raises(ValueError, match="parameters must be given, as optimizer"):
        optimizer.update(rows, state)
    with pytest.raises(ValueError, match=r"of the shape of the table's rows, \(1,\), got \(3,\)"):
        optimizer.update(rows, state, table[:, :1])
    with pytest.raises(ValueError, match="parameters must be the 1 tables of gradients, got 2"):
        optimizer.update(rows, state, [table, table])
