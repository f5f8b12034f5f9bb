"""A row-sparse step on a bfloat16 table on CPU: the rows of it, and never the whole in float32."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets import optim
from jaxnets.kernels import SparseRows, add_rows, gather_rows, xla_only
from jaxnets.kernels.rows import in_place
from jaxnets.kernels.rows.dense import set_rows


@pytest.fixture(params=["here", "older"])
def jax_is(request, monkeypatch):
    """On one device, with this JAX, or as with one whose CPU backend converts a bfloat16 table."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    if request.param == "older":
        monkeypatch.setattr(in_place, "CONVERTS_BFLOAT16", True)


@pytest.mark.parametrize("jax_is", ["older"], indirect=True)
def test_numpy_puts_what_xla_puts(jax_is):
    draw = np.random.default_rng(0)
    table = draw.normal(size=(20, 3)).astype(jnp.bfloat16)
    ids = np.array([0, 7, 19, 20, 25], np.int32)  # the last two fill up
    values = draw.normal(size=(5, 3)).astype(np.float32)
    narrow, factors = values.astype(jnp.bfloat16), np.ones((2, 1, 1), np.float32)

    def run(table, ids, values, narrow, factors):
        rows = SparseRows(ids, values)

        def scaled(factor, values):
            total = add_rows(table, rows._replace(values=factor * values)).astype(jnp.float32)
            return (total**2).sum()

        return {
            "put": set_rows(table, rows),
            "added": add_rows(table, rows),
            "narrow": add_rows(table, rows._replace(values=narrow)),
            "random": add_rows(table, rows, key=jax.random.key(0)),
            "column": add_rows(table[:, 0], rows._replace(values=values[:, 0])),
            "out of order": set_rows(table, SparseRows(ids[::-1] - 21, values)),
            "mapped": jax.vmap(jax.grad(scaled, 1), (0, None))(factors, values),
        }

    arrays = (table, ids, values, narrow, factors)
    found = jax.jit(run)(*arrays)
    with xla_only():
        expected = jax.jit(lambda *arrays: run(*arrays))(*arrays)
    for name in expected:
        both = (np.asarray(tree[name], np.float32) for tree in (found, expected))
        np.testing.assert_array_equal(*both, err_msg=name)
    assert np.isnan(np.asarray(found["out of order"], np.float32)).any()


def test_a_step_converts_no_table(jax_is):
    table = jax.ShapeDtypeStruct((100_000, 16), jnp.bfloat16)
    optimizer = optim.sgd(0.1)

    def step(table, state, ids, key):
        row_ids, rows, local_ids = gather_rows(table, ids)
        gradient = jax.grad(lambda rows: (rows[local_ids].astype(jnp.float32) ** 2).sum())(rows)
        updates, state = optimizer.update(SparseRows(row_ids, gradient), state)
        return optim.apply_updates(table, updates, key=key), state

    state = jax.eval_shape(optimizer.init, table)
    arrays = np.arange(8, dtype=np.int32), jax.random.key(0)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, *arrays).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 2 * table.size
    assert memory.temp_size_in_bytes < table.size // 10
    # A conversion that is fused into a gather is of the gathered rows alone.
    written = r"= (\w+)\[100000,16\]\S* (?:fusion|copy|while|custom-call)\("
    assert re.findall(written, compiled.as_text()) == ["bf16"]
