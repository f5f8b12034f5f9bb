"""Rows, optimizers and clipping at their edges: an error where it is known, else NaN."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets import optim
from jaxnets.kernels import SparseRows, add_rows, gather_rows, rows_from_dense
from tests.inputs import on_device, ones

TABLE = ones((6, 2))


@pytest.mark.parametrize("ids", [[3, 1], [3, 3], [-1, 2]])
def test_ids_out_of_order_are_nan_under_jit(ids):
    def step(ids):
        rows, optimizer = SparseRows(ids, ones((2, 2))), optim.momentum(1.0)
        updates, _ = optimizer.update(rows, optimizer.init(TABLE))
        return add_rows(TABLE, rows), optim.apply_updates(TABLE, updates)

    for table in jax.jit(step)(on_device(ids)):
        assert np.isnan(table[on_device(ids)]).all()


def test_shapes_are_not_stretched(users_checks):
    optimizer = optim.lazy_adam(0.1)
    state = optimizer.init({"a": TABLE})
    with pytest.raises(ValueError, match=r"values must be \[2, ...\]"):
        SparseRows([1, 2], ones((1, 2)))
    narrow = SparseRows([1], ones((1, 1)))
    with pytest.raises(ValueError, match="of the shape of the table's rows"):
        add_rows(TABLE, narrow)
    with pytest.raises(ValueError, match="gradients must have values"):
        optimizer.update({"a": narrow}, state)
    with pytest.raises(ValueError, match="gradients must be SparseRows for each of the 1 tables"):
        optimizer.update({}, state)
    with pytest.raises(TypeError, match=r"rows must be SparseRows\(ids, values\), got list"):
        add_rows(TABLE, [1, 2])
    with pytest.raises(TypeError, match="table must be floating point as rows are"):
        add_rows(ones((6, 2), int), SparseRows([1], ones((1, 2))))
    with pytest.raises(TypeError, match="tables must be floating point"):
        optimizer.init(ones((6, 2), int))


def test_rows_of_zeros_name_no_row():
    optimizer = optax.chain(optax.set_to_zero(), optim.lazy_adam(0.1))
    state = optimizer.init(TABLE)
    before = state[1]._replace(tables=[{k: v + 1 for k, v in state[1].tables[0].items()}])
    updates, (_, after) = optimizer.update(SparseRows([1, 3], ones((2, 2))), (state[0], before))
    np.testing.assert_array_equal(optim.apply_updates(TABLE, updates), TABLE)
    jax.tree.map(np.testing.assert_array_equal, after.tables, before.tables)


@pytest.mark.parametrize("plain", [True, False])
def test_an_id_out_of_range_is_nan_by_plain_indexing(plain):
    def looked_up(table, ids):
        _, rows, local = gather_rows(table, ids)
        return rows[local]

    run = looked_up if plain else jax.jit(looked_up)
    table = np.arange(6, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    for ids in ([2, 77, -1, 5], [77] * 4, [0, 1, 2, 3, 4, 5, 6]):
        wanted = np.where((np.array(ids) >= 0) & (np.array(ids) < 6), ids, np.nan)
        np.testing.assert_array_equal(np.asarray(run(table, np.array(ids)))[:, 0], wanted)


def test_lists_and_numpy_arrays():
    row_ids, rows, (own, others) = gather_rows(np.ones((5, 2)), ([[3], [1]], np.uint8([3])))
    assert row_ids.tolist() == [1, 3, 7]
    assert rows.shape == (3, 2)
    assert (own.tolist(), others.tolist()) == ([[1], [0]], [1])
    np.testing.assert_array_equal(
        add_rows(np.ones((5, 1)), SparseRows([1], np.ones((1, 1))))[:2, 0], [1, 2]
    )


def test_no_rows_at_all():
    for shape, number in (((0, 2), 0), ((0, 2), 3), ((3, 0), 2)):
        rows = rows_from_dense(jnp.zeros(shape), number)
        assert rows.values.shape == (number, shape[1])
    assert gather_rows(ones((0, 2)), [])[1].shape == (0, 2)
    with pytest.raises(ValueError, match="tables must hold at least one row"):
        gather_rows(ones((0, 2)), [1])


@pytest.mark.parametrize(
    "make",
    [optim.sgd, optim.momentum, optim.adagrad, optim.rowwise_adagrad, optim.lazy_adam,
     optim.lazy_lion],
)  # fmt: skip
def test_traced_rates(make):
    rows = SparseRows([1], ones((1, 2)))

    @jax.jit
    def moved(rate):
        fixed, scheduled = make(rate), make(lambda step: rate)
        updates = [o.update(rows, o.init(TABLE), TABLE)[0].values for o in (fixed, scheduled)]
        return jnp.stack(updates)

    assert np.isfinite(moved(0.5)).all()
    for wrong in (-0.5, np.nan, np.inf):
        assert np.isnan(moved(wrong)).all()


def test_other_numbers(users_checks):
    for build, words in (
        (lambda: optim.momentum(0.1, 1.5), r"decay must be in \[0, 1\]"),
        (lambda: optim.lazy_adam(0.1, b1=1.0), r"b1 must be in \[0, 1\)"),
        (lambda: optim.lazy_adam(0.1, b2=float("nan")), r"b2 must be in \[0, 1\)"),
        (
            lambda: optim.adagrad(0.1, initial_accumulator_value=-1.0),
            "initial_accumulator_value must be",
        ),
        (lambda: optim.rowwise_adagrad(0.1, eps=-1.0), "eps must be a number of at least 0"),
    ):
        with pytest.raises(ValueError, match=words):
            build()
    optimizer, theirs = optim.adagrad(0.1, 0.0, 0.0), optax.adagrad(0.1, 0.0, 0.0)
    dense = on_device([[0.0], [2.0]])
    ours, _ = optimizer.update(SparseRows([0, 1], dense), optimizer.init(dense))
    np.testing.assert_allclose(ours.values, theirs.update(dense, theirs.init(dense))[0], rtol=1e-6)


@pytest.mark.parametrize("make", [optim.momentum, optim.adagrad, optim.lazy_adam])
def test_a_state_is_placed_as_its_table(make):
    placed = NamedSharding(jax.make_mesh((2,), ("vocab",)), P("vocab"))
    state = make(0.1).init(jax.device_put(TABLE, placed))
    assert {leaf.sharding.spec for leaf in jax.tree.leaves(state.tables)} == {placed.spec}


@pytest.mark.parametrize("jitted", [False, True])
def test_clipping_where_the_norm_or_a_reciprocal_overflows(jitted):
    clip = jax.jit(optim.clip_by_norm) if jitted else optim.clip_by_norm
    for value in (1e38, 3e38):
        clipped, norm = clip([on_device(np.full(50, value, np.float32)), on_device([3])], 1.0)
        np.testing.assert_allclose(clipped[0], 50**-0.5, rtol=1e-5)
        assert clipped[1].tolist() == [3]
        np.testing.assert_array_equal(norm, np.inf)
    np.testing.assert_allclose(clip([on_device([3e38])], 1.0)[1], 3e38, rtol=1e-6)
    tiny, norm = clip([on_device(np.full(50, 1e-35, np.float32))], 1e-35)
    np.testing.assert_allclose(norm, 50**0.5 * 1e-35, rtol=1e-5)
    np.testing.assert_allclose(tiny[0], 50**-0.5 * 1e-35, rtol=1e-5)
    if jitted:
        for wrong in (-1.0, 0.0, np.nan):
            assert np.isnan(clip([ones(2)], wrong)[0][0]).all()


def test_boxes_add_no_name_to_a_path():
    paths = []
    optimizer = optim.partition(
        optim.sgd(1.0), optax.sgd(1.0), lambda path: bool(paths.append(path))
    )
    boxed = linen.Partitioned(TABLE, ("vocab", None))
    parameters = {"value": TABLE, "boxed": boxed, "list": (nnx.Param(TABLE), {"value": TABLE})}
    state = optimizer.init(parameters)
    assert set(paths) == {("value",), ("boxed",), ("list", "0"), ("list", "1", "value")}
    with pytest.raises(
        TypeError, match=r"the gradient of \('value',\) is SparseRows, but is_table"
    ):
        optimizer.update({**parameters, "value": SparseRows([1], ones((1, 2)))}, state)
