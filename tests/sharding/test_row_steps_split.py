"""Row-sparse steps on eight devices: equal to those on one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from jaxnets import optim
from tests.fixed_samples import fixed_samples
from tests.sharding.row_steps import row_gradients
from tests.sharding.split import SHARDINGS, VOCAB, close, make_mesh, problem

# With the tables that it moves. One axis and two are two ways to be split, to every optimizer the
# same: only a state like the table, and one with a number a row, are asked for both.
BOTH = ("weight", "bias")
OPTIMIZERS = {
    "lazy_adam": (optim.lazy_adam(0.3), BOTH),
    "rowwise_adagrad": (optim.rowwise_adagrad(0.3), BOTH),
    "sgd": (optim.sgd(0.3), ("weight",)),
    "momentum": (optim.momentum(0.3), ("bias",)),
    "adagrad": (optim.adagrad(0.3), ("bias",)),
    "rowwise_adam": (optim.rowwise_adam(0.3), ("weight",)),
    "ftrl": (optim.ftrl(0.3, l1=0.01), ("weight",)),
}


def held(arrays, names=OPTIMIZERS):
    """The tables of each optimizer."""
    return {name: {table: arrays[table] for table in OPTIMIZERS[name][1]} for name in names}


def row_update(optimizer, gradients, state, tables):
    updates, state = optimizer.update(gradients, state, tables)
    return optim.apply_updates(tables, updates), state


def row_steps(tables, states, *arrays, sharding=None):
    """A step of each optimizer, by the gradient that the first one with both tables has."""
    update = partial(optim.sharded_update, sharding) if sharding else row_update
    value, gradients = row_gradients(max(tables.values(), key=len), *arrays, sharding=sharding)
    of_each = held(gradients, tables)
    found = {
        name: update(OPTIMIZERS[name][0], of_each[name], states[name], own)
        for name, own in tables.items()
    }
    return value, *({name: pair[part] for name, pair in found.items()} for part in range(2))


@cache
def batches():
    """Labels and samples of three steps."""
    labels = [(problem()[3] + 7 * step) % VOCAB for step in range(3)]
    draw = np.random.default_rng(0)
    return [(a, fixed_samples(VOCAB, a, draw.permutation(VOCAB)[:48])) for a in labels]


@cache
def steps_on_one_device():
    """The loss, and each optimizer's tables and state, after each step."""
    hidden, weight, bias, _ = problem()
    tables = held({"weight": weight, "bias": bias})

    @jax.jit
    def first_states(tables):
        return {name: OPTIMIZERS[name][0].init(own) for name, own in tables.items()}

    found = [(None, tables, first_states(tables))]
    step = jax.jit(row_steps)
    for labels, samples in batches():
        found.append(step(*found[-1][1:], hidden, labels, samples))
    return found[1:]


# How the tables are split is the same to every optimizer: over one axis all of them, over several
# one whose state is like the table, with a count of steps, and one with a number a row; and a step
# outside of jit.
@pytest.mark.parametrize(
    ("names", "split", "jitted", "steps"),
    [
        (tuple(OPTIMIZERS), "vocab and tokens", True, 3),
        (("lazy_adam", "rowwise_adagrad"), "vocab over all", True, 3),
        (("lazy_adam",), "vocab and tokens", False, 1),
    ],
)
def test_row_sparse_steps(names, split, jitted, steps):
    """Losses, tables and every array of the optimizers' states."""
    sharding = SHARDINGS[split](make_mesh())
    hidden, weight, bias, _ = problem()
    layout = NamedSharding(sharding.mesh, sharding.table_spec)
    tables = held(jax.device_put({"weight": weight, "bias": bias}, layout), names)

    @jax.jit
    def first_states(tables):
        return {
            name: optim.sharded_init(sharding, OPTIMIZERS[name][0], own)
            for name, own in tables.items()
        }

    states = first_states(tables)
    for leaf in jax.tree.leaves([state.tables for state in states.values()]):
        assert leaf.sharding.is_equivalent_to(layout, leaf.ndim)
    step = partial(row_steps, sharding=sharding)
    step = jax.jit(step) if jitted else step
    for (labels, samples), wanted in zip(batches()[:steps], steps_on_one_device(), strict=False):
        got, tables, states = step(tables, states, hidden, labels, samples)
        value, *others = wanted
        close((got, tables, states), (value, *({n: x[n] for n in names} for x in others)))


def test_a_dense_gradient_is_no_rows():
    sharding, table = SHARDINGS["vocab only"](make_mesh()), jnp.ones((8, 2))
    state = optim.sharded_init(sharding, optim.sgd(0.1), table)
    with pytest.raises(TypeError, match=r"must be SparseRows for each table, got \(8, 2\)"):
        optim.sharded_update(sharding, optim.sgd(0.1), table, state, table)
    chain = optax.chain(optim.clip_by_global_norm(1.0), optim.sgd(0.1))
    with pytest.raises(
        TypeError, match=r"optimizer must be one by rows alone, .* whose state is tuple"
    ):
        optim.sharded_init(sharding, chain, table)
