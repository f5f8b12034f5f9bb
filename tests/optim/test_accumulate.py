"""Several mini-batches are one batch, dense and by rows."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import optim
from jaxnets.kernels import SparseRows, rows_from_dense, to_dense
from tests.inputs import ones

VOCAB, FEATURES, EVERY, UPDATES, ROWS = 9, 2, 3, 4, 4


def num_rows(path):
    return ROWS if path == ("table",) else 0


def optimizer_by_rows():
    def schedule(n):
        return 0.1 / (n + 1)

    return optax.chain(
        optim.clip_by_global_norm(1.0),
        optim.partition(
            optim.lazy_adam(schedule), optax.adamw(schedule), lambda path: path == ("table",)
        ),
    )


def mini_batches():
    """Ids of rows, of which some fill up, their values, and dense gradients."""
    rng = np.random.default_rng(0)
    count = EVERY * UPDATES
    ids = np.stack([np.sort(rng.choice(VOCAB + 2, 3, replace=False)) for _ in range(count)])
    values = rng.normal(size=(count, 3, FEATURES)) * (ids < VOCAB)[..., None]
    return ids.astype(np.int32), values, rng.normal(size=(count, FEATURES))


def step_of(optimizer):
    def step(carry, batch):
        parameters, state = carry
        ids, values, dense = batch
        gradients = {"bias": dense, "table": SparseRows(ids, values)}
        updates, state = optimizer.update(gradients, state, parameters)
        parameters = optim.apply_updates(parameters, updates)
        return (parameters, state), parameters

    return step


def test_mini_batches_are_one_batch(x64):
    """In a donated program, in a scan; what is between the updates moves nothing."""
    inner = optimizer_by_rows()
    optimizer = optim.accumulate(inner, EVERY, num_rows)

    def small(parameters, state, batches):
        return jax.lax.scan(step_of(optimizer), (parameters, state), batches)

    def large(parameters, batches):
        def step(carry, batches):
            parameters, state = carry
            ids, values, dense = batches
            rows = [to_dense(SparseRows(*pair), VOCAB) for pair in zip(ids, values, strict=True)]
            gradients = {"bias": dense.mean(0), "table": rows_from_dense(sum(rows) / EVERY, VOCAB)}
            updates, state = inner.update(gradients, state, parameters)
            parameters = optim.apply_updates(parameters, updates)
            return (parameters, state), parameters

        batches = [a.reshape(UPDATES, EVERY, *a.shape[1:]) for a in batches]
        return jax.lax.scan(step, (parameters, inner.init(parameters)), batches)[1]

    parameters = {"bias": jnp.ones(FEATURES), "table": jnp.ones((VOCAB, FEATURES))}
    state, batches = optimizer.init(parameters), mini_batches()
    wanted = jax.jit(large)(parameters, batches)
    start = jax.tree.map(np.array, parameters)
    _, found = jax.jit(small, donate_argnums=(0, 1))(parameters, state, batches)
    for name, each in wanted.items():
        # After each mini-batch the parameters of the update before, to the bit.
        steps = np.concatenate([start[name][None], found[name]])
        updates = steps[::EVERY]
        np.testing.assert_array_equal(steps[:-1], updates[:-1].repeat(EVERY, 0))
        np.testing.assert_allclose(updates[1:], each, rtol=1e-12, atol=1e-14)
        assert (updates[1:] != updates[:-1]).any((1, 2) if name == "table" else 1).all()


def test_no_table_is_copied():
    """A donated step on 50,021 rows, whose optimizer reads the parameters too."""
    vocab_size = 50_021
    inner = optax.chain(optim.add_decayed_weights(0.1), optim.lazy_adam(0.1))
    optimizer = optim.accumulate(inner, EVERY, lambda path: ROWS)
    table = jax.ShapeDtypeStruct((vocab_size, FEATURES), jnp.float32)
    state = jax.eval_shape(optimizer.init, table)

    def step(table, state, ids):
        updates, state = optimizer.update(SparseRows(ids, ones((3, FEATURES))), state, table)
        return optim.apply_updates(table, updates), state

    program = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, np.arange(3)).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= 3 * 4 * table.size
    assert memory.temp_size_in_bytes < vocab_size
    assert not re.search(rf"copy\w*\(f32\[{vocab_size}", program.as_text())


def test_wrong_gradients(users_checks):
    parameters = {"bias": ones(FEATURES), "table": ones((VOCAB, FEATURES))}
    optimizer = optim.accumulate(optimizer_by_rows(), EVERY, num_rows)
    state = jax.eval_shape(optimizer.init, parameters)

    def update(bias, table):
        gradients = {"bias": bias, "table": table}
        return jax.eval_shape(optimizer.update, gradients, state, parameters)

    rows = SparseRows([1], ones((1, FEATURES)))
    for bias, table, error, words in (
        (ones(FEATURES), ones(1), TypeError, r"\('table',\) must be SparseRows, as"),
        (rows, rows, TypeError, r"\('bias',\) must be dense, as num_rows says, got SparseRows"),
        (ones(1), rows, ValueError, r"\('bias',\) must have the shape .* \(2,\), got \(1,\)"),
        (ones(FEATURES), SparseRows(np.arange(5), ones((5, FEATURES))), ValueError,
         r"must have values of at most \(4, 2\), as num_rows says, got \(5, 2\)"),
        (ones(FEATURES), SparseRows([1], ones((1, 1))), ValueError, r"got \(1, 1\)"),
    ):  # fmt: skip
        with pytest.raises(error, match=words):
            update(bias, table)
    with pytest.raises(ValueError, match=r"those of the 2 parameters .*, got 1 leaves"):
        optimizer.update(rows, state)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        optim.accumulate(optim.sgd(0.1), 0, num_rows)
    with pytest.raises(ValueError, match="num_rows must be at least 0, got -1"):
        optim.accumulate(optim.sgd(0.1), 2, lambda path: -1).init(parameters)
