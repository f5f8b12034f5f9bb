"""Gradients by rows and dense ones in one tree: chains, groups, and the same numbers as optax's."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import optim
from jaxnets.kernels import SparseRows

VOCAB, FEATURES = 6, 3
LABELS = {"table": "table", "rest": "rest"}


def is_table(path):
    return path[0] == "table"


def drawn(seed=0, steps=()):
    """Parameters, or as many gradients of them."""
    rng = np.random.default_rng(seed)
    return {
        "table": rng.normal(size=(*steps, VOCAB, FEATURES)),
        "rest": {
            "bias": rng.normal(size=(*steps, FEATURES)),
            "kernel": rng.normal(size=(*steps, 2, FEATURES)),
        },
    }


def groups(table, rest):
    return optax.partition({"table": table, "rest": rest}, LABELS)


MASK = {"table": True, "rest": {"bias": False, "kernel": True}}
TWINS = {
    "clipped": (
        optax.chain(
            optim.clip_by_global_norm(1.0),
            optim.partition(optim.adagrad(0.1), optax.adamw(0.1), is_table),
        ),
        optax.chain(optax.clip_by_global_norm(1.0), groups(optax.adagrad(0.1), optax.adamw(0.1))),
    ),
    "decayed": (
        optax.chain(
            optim.scale(-2.0),
            optim.add_decayed_weights(0.3, lambda parameters: MASK),
            optim.partition(optim.momentum(0.1), optax.sgd(0.1), is_table),
        ),
        optax.chain(
            optax.scale(-2.0),
            optax.add_decayed_weights(0.3, MASK),
            groups(optax.sgd(0.1, momentum=0.9), optax.sgd(0.1)),
        ),
    ),
    "adamw": (
        optim.partition(optim.lazy_adamw(0.1, weight_decay=0.2), optax.sgd(0.1), is_table),
        groups(optax.adamw(0.1, weight_decay=0.2), optax.sgd(0.1)),
    ),
    "lion": (
        optim.partition(optim.lazy_lion(0.1, 0.8, 0.9, 0.2), optax.sgd(0.1), is_table),
        groups(optax.lion(0.1, 0.8, 0.9, weight_decay=0.2), optax.sgd(0.1)),
    ),
    "groups of optax": (
        optax.apply_if_finite(groups(optim.lazy_adam(0.1), optax.sgd(0.1)), 3),
        groups(optax.adam(0.1), optax.sgd(0.1)),
    ),
}


def steps_of(optimizer, parameters, gradients, by_rows):
    """The parameters after each step."""

    def step(carry, gradient):
        parameters, state = carry
        if by_rows:
            rows = SparseRows(jnp.arange(VOCAB, dtype=jnp.int32), gradient["table"])
            gradient = {**gradient, "table": rows}
        updates, state = optimizer.update(gradient, state, parameters)
        parameters = optim.apply_updates(parameters, updates)
        return (parameters, state), parameters

    return jax.lax.scan(step, (parameters, optimizer.init(parameters)), gradients)[1]


def test_where_all_rows_are_touched_chains_are_those_of_optax(x64):
    @jax.jit  # one program: compiling each of them is what this test would cost
    def run(parameters, gradients):
        return {
            name: [
                steps_of(optimizer, parameters, gradients, by_rows)
                for optimizer, by_rows in zip(pair, (True, False), strict=True)
            ]
            for name, pair in TWINS.items()
        }

    for name, (ours, theirs) in run(drawn(), drawn(1, (5,))).items():
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14, err_msg=name)


def test_rows_that_are_not_touched_do_not_decay_and_what_fills_up_is_0():
    parameters = jax.tree.map(jnp.ones_like, drawn())
    rows = SparseRows([2, VOCAB], jnp.array([[1.0] * FEATURES, [0.0] * FEATURES]))
    gradients = {"table": rows, "rest": jax.tree.map(jnp.zeros_like, parameters["rest"])}
    decay = optim.add_decayed_weights(0.5)
    updates, _ = decay.update(gradients, decay.init(parameters), parameters)
    assert updates["table"].ids.tolist() == [2, VOCAB]
    assert updates["table"].values[:, 0].tolist() == [1.5, 0.0]
    assert updates["rest"]["bias"].tolist() == [0.5] * FEATURES


def test_what_is_not_finite_is_left_out_and_rates_are_injected():
    """optax's wrappers, of an optimizer by rows."""
    table = jnp.zeros((VOCAB, FEATURES))
    # The dtype is what optax 0.2.5 takes from the first leaf, of the ids.
    sgd = optax.inject_hyperparams(optim.sgd, hyperparam_dtype=jnp.float32)
    optimizer = optax.apply_if_finite(sgd(learning_rate=1.0), 3)

    @jax.jit
    def step(table, state, value):
        rows = SparseRows(jnp.array([3]), jnp.full((1, FEATURES), value))
        updates, state = optimizer.update(rows, state, table)
        return optim.apply_updates(table, updates), state

    table, state = step(table, optimizer.init(table), np.float32(np.nan))
    np.testing.assert_array_equal(table, 0)
    assert state.total_notfinite == 1
    table, state = step(table, state, np.float32(2))
    state.inner_state.hyperparams["learning_rate"] = jnp.asarray(0.25)
    table, state = step(table, state, np.float32(2))
    np.testing.assert_array_equal(table[:, 0], [0, 0, 0, -2.5, 0, 0])


def test_wrong_links(users_checks):
    for build, words in (
        (lambda: optim.clip_by_global_norm(0.0), "limit must be above 0, got 0.0"),
        (lambda: optim.scale(np.inf), "factor must be a finite number, got inf"),
        (lambda: optim.add_decayed_weights(-1.0), "weight_decay must be a number of at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    rows = SparseRows([1], jnp.ones((1, FEATURES)))
    with pytest.raises(ValueError, match="parameters must be given, as optimizer"):
        optim.add_decayed_weights(0.1).update(rows, optax.EmptyState())
