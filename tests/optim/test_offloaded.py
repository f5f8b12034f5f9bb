"""Tables in the host's memory: the same numbers, and only rows go to the device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import optim
from jaxnets.kernels import SparseRows, VocabSharding, gather_rows
from tests.inputs import ones

OLD = jax.__version_info__ < (0, 12)
RNG = np.random.default_rng(0)
VOCAB = 5000
TABLES = {
    "weight": RNG.normal(size=(VOCAB, 8)).astype(np.float32),
    "bias": RNG.normal(size=VOCAB).astype(np.float32),
}


@pytest.mark.skipif(OLD, reason="memory spaces are in JAX's types from 0.12 on")
@pytest.mark.parametrize(
    ("optimizer", "in_one_program"),
    [(optim.rowwise_adagrad(0.1), False), (optim.lazy_adamw(0.1), True)],
)
def test_steps_are_those_of_tables_on_the_device(optimizer, in_one_program):
    def loss(rows, local_ids):
        return (jnp.tanh(rows["weight"][local_ids]).sum(-1) * rows["bias"][local_ids]).sum()

    def gradients(tables, ids, **options):
        row_ids, rows, local_ids = gather_rows(tables, ids, **options)
        value, rows = jax.value_and_grad(loss)(rows, local_ids)
        return value, {name: SparseRows(row_ids, values) for name, values in rows.items()}

    @partial(jax.jit, donate_argnums=(0, 1))
    def on_device(tables, state, ids):
        value, gradient = gradients(tables, ids)
        updates, state = optimizer.update(gradient, state, tables)
        return optim.apply_updates(tables, updates), state, value

    from_host = jax.jit(partial(gradients, offloaded=True))

    def on_host(tables, state, ids):
        value, gradient = from_host(tables, ids)
        return *optim.offloaded_update(optimizer, gradient, state, tables), value

    tables = jax.tree.map(jnp.array, TABLES)
    wanted = (tables, optimizer.init(tables))
    host = optim.offload(TABLES)
    got = (host, optim.offloaded_init(optimizer, host))
    compiled = from_host.lower(host, np.zeros((2, 20), np.int32)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < TABLES["weight"].nbytes / 4
    if in_one_program:  # not donated
        assert int(jax.jit(on_host)(*got, np.zeros((2, 20), np.int32))[1].step) == 1
    for _ in range(3):
        ids = RNG.integers(0, VOCAB, (2, 20)).astype(np.int32)
        *wanted, value = on_device(*wanted, ids)
        *got, same = on_host(*got, ids)
        np.testing.assert_allclose(same, value, rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), got, wanted)
    assert int(got[1].step) == 3
    for leaf in jax.tree.leaves((got[0], got[1].tables)):
        assert leaf.sharding.memory_kind == "pinned_host"
    ids[1, 3] = VOCAB
    assert np.isnan(from_host(got[0], ids)[0])
    nothing = gather_rows(got[0], np.zeros(0, np.int32), offloaded=True)
    assert nothing.rows["weight"].shape == (0, 8)


def test_bad_input():
    table = ones((4, 2))
    if OLD:
        for refused in (
            lambda: gather_rows(table, [1], offloaded=True),
            lambda: optim.offload(table),
            lambda: optim.offloaded_init(optim.sgd(0.1), table),
        ):
            with pytest.raises(NotImplementedError, match=r"need jax >= 0\.12"):
                refused()
        return
    sharding = VocabSharding(jax.make_mesh((1,), ("vocab",)), "vocab")
    with pytest.raises(ValueError, match="offloaded must be False with a sharding"):
        gather_rows(table, [1], sharding=sharding, offloaded=True)
    with pytest.raises(TypeError, match="one by rows alone"):
        optim.offloaded_init(optax.adam(0.1), table)
    host = optim.offload(table)
    state = optim.offloaded_init(optim.sgd(0.1), host)
    with pytest.raises(TypeError, match="must be SparseRows"):
        optim.offloaded_update(optim.sgd(0.1), table, state, host)
    rows = SparseRows([1], ones((1, 2)))
    with pytest.raises(ValueError, match="each of the 1 tables"):
        optim.offloaded_update(optim.sgd(0.1), [rows, rows], state, [host, host])
