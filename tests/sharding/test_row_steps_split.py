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

OPTIMIZERS = {
    "sgd": optim.sgd(0.3),
    "momentum": optim.momentum(0.3),
    "adagrad": optim.adagrad(0.3),
    "rowwise_adagrad": optim.rowwise_adagrad(0.3),
    "lazy_adam": optim.lazy_adam(0.3),
    "rowwise_adam": optim.rowwise_adam(0.3),
    "ftrl": optim.ftrl(0.3, l1=0.01),
}


def row_update(optimizer, gradients, state, tables):
    updates, state = optimizer.update(gradients, state, tables)
    return optim.apply_updates(tables, updates), state


def row_steps(tables, states, *arrays, sharding=None):
    """A step of each optimizer, all of them by the gradient that the first one's tables have."""
    update = partial(optim.sharded_update, sharding) if sharding else row_update
    value, gradients = row_gradients(next(iter(tables.values())), *arrays, sharding=sharding)
    found = {
        name: update(OPTIMIZERS[name], gradients, states[name], own) for name, own in tables.items()
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
    tables = {"weight": weight, "bias": bias}
    states = jax.jit(lambda tables: {n: each.init(tables) for n, each in OPTIMIZERS.items()})(
        tables
    )
    found = [(None, dict.fromkeys(OPTIMIZERS, tables), states)]
    step = jax.jit(row_steps)
    for labels, samples in batches():
        found.append(step(*found[-1][1:], hidden, labels, samples))
    return found[1:]


# How the tables are split is the same to every optimizer: over one axis all of them, over several
# one whose state is like the table, one with a number a row, one with a count of steps; and a step
# outside of jit. The gradient is of the first one's tables, in the order of the names.
@pytest.mark.parametrize(
    ("names", "split", "jitted", "steps"),
    [
        (tuple(OPTIMIZERS), "vocab and tokens", True, 3),
        (("adagrad", "lazy_adam", "rowwise_adagrad"), "vocab over all", True, 3),
        (("lazy_adam",), "vocab and tokens", False, 1),
    ],
)
def test_row_sparse_steps(names, split, jitted, steps):
    """Losses, tables and every array of the optimizers' states."""
    sharding = SHARDINGS[split](make_mesh())
    hidden, weight, bias, _ = problem()
    layout = NamedSharding(sharding.mesh, sharding.table_spec)
    one = jax.device_put({"weight": weight, "bias": bias}, layout)
    tables = dict.fromkeys(names, one)
    states = jax.jit(
        lambda one: {name: optim.sharded_init(sharding, OPTIMIZERS[name], one) for name in names}
    )(one)
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
