"""Row gradients among optax's transformations: right, or refused by name; never other rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxnets import optim
from jaxnets.kernels import SparseRows, add_rows, gather_rows, rows_from_dense, to_dense
from tests.inputs import INTEGER_TYPES, on_device, ones

TABLE = on_device(np.zeros((10, 2), np.float32))


def rows():
    return SparseRows(np.array([3, 7]), np.full((2, 2), 2, np.float32))


def put(shape, ids, value):
    """Zeros but for rows of one value, by NumPy, which compiles nothing."""
    table = np.zeros(shape, np.float32)
    table[ids] = value
    return table


REFUSED = {
    "scale": optax.scale(0.5),
    "scale by an integer": optax.scale(-1),
    "schedule": optax.scale_by_schedule(lambda n: 0.5),
    "clip": optax.clip(1.0),
    "clip_by_global_norm": optax.clip_by_global_norm(1.0),
    "adam": optax.adam(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "ema": optax.ema(0.9),
    "adagrad": optax.adagrad(0.1),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("after", [False, True])
def test_optax_is_refused(name, after):
    ours = optim.sgd(1.0)
    optimizer = optax.chain(*((ours, REFUSED[name]) if after else (REFUSED[name], ours)))

    def step(gradient):
        state = optimizer.init(TABLE)
        updates, _ = optimizer.update(gradient, state, TABLE)
        return optim.apply_updates(TABLE, updates)

    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        step(rows())
    with pytest.raises((TypeError, ValueError, NotImplementedError)):
        jax.jit(step)(rows())


@pytest.mark.parametrize("function", [lambda g: 0.5 * g, lambda g: -g, lambda g: g + g])
def test_arithmetic_names_the_ids(function):
    with pytest.raises(TypeError, match=r"ids of jaxnets\.kernels\.SparseRows"):
        jax.tree.map(function, rows())
    with pytest.raises(TypeError, match=r"ids of jaxnets\.kernels\.SparseRows"):
        jax.jit(lambda gradient: jax.tree.map(function, gradient))(rows())


def test_the_norm_is_that_of_the_values():
    both = {"table": rows(), "bias": on_device([3.0])}
    norms = jax.jit(lambda *each: [optim.global_norm(one) for one in each])(rows(), both)
    np.testing.assert_allclose(norms, [4.0, 5.0], rtol=1e-6)
    with pytest.raises((TypeError, NotImplementedError)):
        optax.tree.norm(rows())


def test_what_composes():
    """Schedules, injected rates, masks and chains of one."""
    wanted = put((10, 2), [3, 7], -1)
    for optimizer in (
        optim.sgd(lambda n: 0.5),
        optax.chain(optax.zero_nans(), optim.sgd(0.5)),
        optax.inject_hyperparams(optim.sgd)(learning_rate=0.5),
        optax.partition({"rows": optim.sgd(0.5)}, lambda _: "rows"),
    ):
        state = optimizer.init(TABLE)
        updates, _ = jax.jit(optimizer.update)(rows(), state, TABLE)
        np.testing.assert_array_equal(optim.apply_updates(TABLE, updates), wanted)


def test_schedules_count_the_steps_as_optax_does():
    def schedule(n):
        return 0.1 / (n + 1)

    ours, theirs = optim.adagrad(schedule), optax.adagrad(schedule)
    table = dense = ones((5, 2))
    state, dense_state = ours.init(table), theirs.init(dense)

    @jax.jit
    def step(gradient, table, state, dense, dense_state):
        updates, state = ours.update(rows_from_dense(gradient, 5), state)
        dense_updates, dense_state = theirs.update(gradient, dense_state)
        table, dense = (
            optim.apply_updates(table, updates),
            optax.apply_updates(dense, dense_updates),
        )
        return table, state, dense, dense_state

    for i in range(4):
        gradient = np.random.default_rng(i).normal(size=(5, 2)).astype(np.float32)
        table, state, dense, dense_state = step(gradient, table, state, dense, dense_state)
    np.testing.assert_allclose(table, dense, rtol=1e-6)


OPTIMIZERS = {
    "sgd": (optim.sgd, optax.sgd, 0.01),
    "momentum": (optim.momentum, lambda r: optax.sgd(r, momentum=0.9), 0.01),
    "adagrad": (optim.adagrad, optax.adagrad, 0.01),
    "lazy_adam": (optim.lazy_adam, optax.adam, 0.01),
}


@pytest.mark.parametrize(
    ("name", "dtype"), list(zip(OPTIMIZERS, [jnp.bfloat16, jnp.float16] * 2, strict=True))
)
def test_half_precision_tables_move_as_optax_moves_float32_ones(name, dtype):
    """The table is rounded once a step; states and arithmetic are float32."""
    ours, theirs, rate = OPTIMIZERS[name]
    ours, theirs = ours(rate), theirs(rate)
    table = ones((6, 3), dtype)
    state, dense_state = ours.init(table), theirs.init(ones((6, 3)))
    assert all(leaf.dtype != dtype for leaf in jax.tree.leaves(state))
    dense = table

    @jax.jit
    def step(gradient, table, state, dense, dense_state):
        updates, state = ours.update(rows_from_dense(gradient, 6), state)
        wide = dense.astype(jnp.float32)
        moves, dense_state = theirs.update(gradient.astype(jnp.float32), dense_state, wide)
        dense = optax.apply_updates(wide, moves).astype(dtype)
        return optim.apply_updates(table, updates), state, dense, dense_state

    for i in range(5):
        gradient = np.random.default_rng(i).normal(size=(6, 3)).astype(dtype)
        table, state, dense, dense_state = step(gradient, table, state, dense, dense_state)
    assert table.dtype == dtype
    table, dense = (np.asarray(each, np.float32) for each in (table, dense))
    assert (table != 1).any()
    # The same arithmetic in float32; where its last bit decides a rounding, one of dtype's.
    np.testing.assert_allclose(table, dense, atol=float(jnp.finfo(dtype).eps))


def test_rates_are_checked(users_checks):
    for rate in (-1.0, float("nan"), jnp.inf, np.array([0.1, 0.2])):
        with pytest.raises(ValueError, match="learning_rate must be a number of at least 0"):
            optim.sgd(rate)


def test_steps_are_donated_and_strict(strict_modes):
    """Of every optimizer, each with a table of its own, in one program."""
    optimizers = {name: ours(0.1) for name, (ours, _, _) in OPTIMIZERS.items()}
    optimizers["rowwise_adagrad"] = optim.rowwise_adagrad(0.1)

    def step(optimizer, table, state, ids):
        row_ids, some, local = gather_rows(table, ids)
        gradient = jax.grad(lambda some: (some[local].astype(jnp.float32) ** 2).sum())(some)
        gradient, _ = optim.clip_by_norm(SparseRows(row_ids, gradient), 1.0)
        updates, state = optimizer.update(gradient, state)
        return optim.apply_updates(table, updates), state

    @partial(jax.jit, donate_argnums=(0, 1))
    def steps(tables, states, ids):
        moved = {
            name: step(optimizer, tables[name], states[name], ids)
            for name, optimizer in optimizers.items()
        }
        return tuple({name: pair[n] for name, pair in moved.items()} for n in range(2))

    tables = {name: ones((20, 4), jnp.bfloat16) for name in optimizers}
    states = {name: optimizer.init(tables[name]) for name, optimizer in optimizers.items()}
    for _ in range(2):
        tables, states = steps(tables, states, np.array([3, 3, 8]))
    for table in tables.values():
        moved = np.flatnonzero((np.asarray(table, np.float32) != 1).any(1))
        assert moved.tolist() == [3, 8]


def test_ids_of_any_integers():
    """Outside of jit of every type, under it of the narrowest and the widest."""
    table = np.arange(100.0, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    ids = np.array([90, 3, 90, 0])
    wanted = gather_rows(table, ids)
    assert wanted.row_ids.tolist()[:3] == [0, 3, 90]
    for dtype in INTEGER_TYPES:
        typed = ids.astype(dtype)
        jax.tree.map(np.testing.assert_array_equal, gather_rows(table, typed), wanted)
        traced = jax.eval_shape(gather_rows, table, typed)
        assert jax.tree.map(jnp.result_type, traced) == jax.tree.map(jnp.result_type, wanted)
        if dtype in ("int8", "uint32"):
            got = jax.jit(gather_rows)(table, typed)
            jax.tree.map(np.testing.assert_array_equal, got, wanted)
        some = SparseRows(np.array([3, 90], dtype), np.ones((2, 2), np.float32))
        assert some.ids.dtype == jnp.int32
        np.testing.assert_array_equal(to_dense(some, 100), put((100, 2), [3, 90], 1))


def test_ids_beyond_int32_are_out_of_range():
    ids = np.array([1, 2**32 + 1, 2**40])  # within jit: at its door JAX would cut them
    _, _, local = jax.jit(lambda table: gather_rows(table, ids))(ones((5, 1)))
    assert local.tolist() == [0, 3, 3]


def test_rows_are_checked(users_checks):
    for ids in ([7, 3], [3, 3], [-1, 3]):
        with pytest.raises(ValueError, match="ids must be distinct, sorted and at least 0"):
            SparseRows(ids, ones((2, 1)))
    with pytest.raises(TypeError, match="ids must be integers, got dtype float"):
        SparseRows([0.5], ones((1, 1)))
    with pytest.raises(ValueError, match=r"ids must be \[rows\]"):
        SparseRows([[1]], ones((1, 1)))


def test_rows_go_through_jax():
    gradient = rows()
    ids, values = jax.jit(lambda r: r._replace(values=2 * r.values))(gradient)
    assert ids.tolist() == [3, 7]
    assert values[0, 0] == 4
    (last,), stacked = jax.lax.scan(lambda c, _: (c, c[0]), (gradient,), None, length=3)
    assert last.ids.tolist() == [3, 7]
    assert jax.vmap(lambda r: r.values.sum())(stacked).tolist() == [8.0] * 3
    shape = jax.eval_shape(lambda r: add_rows(TABLE, r), gradient)
    assert shape.shape == TABLE.shape
    moved = jax.device_put(gradient, jax.devices()[1])
    assert moved.ids.tolist() == [3, 7]
    assert "ids" in repr(gradient)


def test_ids_behind_the_last_must_fit_int32():
    def gathered(vocab_size, count):
        table = jax.ShapeDtypeStruct((vocab_size, 1), jnp.float32)
        return jax.eval_shape(gather_rows, table, jax.ShapeDtypeStruct((count,), jnp.int32))

    assert gathered(2**31 - 1 - 64, 64)[0].shape == (64,)
    with pytest.raises(ValueError, match="so that those behind the last fit int32"):
        gathered(2**31 - 64, 65)


def test_no_ids():
    table = ones((5, 2))
    row_ids, some, local = gather_rows({"a": table}, (jnp.zeros((0, 3), jnp.int32), []))
    assert row_ids.shape == (0,)
    assert some["a"].shape == (0, 2)
    assert local[0].shape == (0, 3)
    optimizer = optim.lazy_adam(0.1)
    updates, _ = optimizer.update(SparseRows(row_ids, some["a"]), optimizer.init(table))
    np.testing.assert_array_equal(optim.apply_updates(table, updates), table)


def test_rows_from_dense_drops_none():
    dense = ones((4, 2))
    with pytest.raises(ValueError, match="num_rows must be at least 4, the rows not 0, got 3"):
        rows_from_dense(dense, 3)

    @jax.jit
    def both(dense):
        every = to_dense(rows_from_dense(dense, np.int64(6)), 4)
        return rows_from_dense(dense, 3).values, every

    too_few, every = both(dense)
    assert np.isnan(too_few).all()
    np.testing.assert_array_equal(every, dense)


@pytest.mark.parametrize(
    ("dtype", "value", "count"),
    [
        ("float16", 300.0, 1000),
        ("float32", 3e30, 10),
        ("float32", 1e-30, 10),
        ("bfloat16", 3e38, 4),
    ],
)
def test_norms_neither_overflow_nor_vanish(dtype, value, count):
    values = np.full((1, count), value, jnp.dtype(dtype))
    gradient = {"a": values[0], "b": SparseRows(np.array([1]), values)}
    exact = float(values[0, 0]) * (2 * count) ** 0.5

    @jax.jit
    def clipped(gradient, small):
        clipped, norm = optim.clip_by_norm(gradient, exact / 4)
        return norm, optim.global_norm(clipped), optim.clip_by_norm(small, value)[0]

    small = np.full(2, value / 1e3, np.float32)
    norm, after, same = clipped(gradient, small)
    if exact < 3.4e38:
        np.testing.assert_allclose(norm, exact, rtol=1e-5)
        np.testing.assert_allclose(after, exact / 4, rtol=2e-2)
    np.testing.assert_array_equal(same, small)


def test_norms_of_what_is_not_finite_and_of_nothing():
    for bad in (jnp.nan, jnp.inf):
        clipped, norm = optim.clip_by_norm([on_device([1.0, bad, 0.0])], 1.0)
        assert not np.isfinite(norm)
        assert np.isnan(clipped[0]).all()
    assert optim.clip_by_norm({}, 1.0)[1] == 0
    assert optim.clip_by_norm([on_device(np.zeros(3, np.float32))], 1.0)[0][0].tolist() == [0, 0, 0]
    for limit in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="limit must be above 0"):
            optim.clip_by_norm([ones(1)], limit)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.embedding = nnx.Embed(6, 2, rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])


def test_partition_sees_one_path_for_every_kind_of_tree():
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    seen = {}
    for kind, tree in (("state", state), ("pure", nnx.to_pure_dict(state))):
        paths = []
        optimizer = optim.partition(
            optax.sgd(1.0), optax.sgd(0.5), lambda path, paths=paths: bool(paths.append(path))
        )
        optimizer.init(tree)
        seen[kind] = set(paths)
    assert seen["state"] == seen["pure"]
    assert ("embedding", "embedding") in seen["pure"]
    assert ("blocks", "1", "kernel") in seen["pure"]


def test_partition_of_a_state_moves_the_table_by_rows():
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    pure = nnx.to_pure_dict(state)
    gradients = jax.tree.map(np.ones_like, pure)
    gradients["embedding"]["embedding"] = SparseRows(np.array([2]), np.ones((1, 2), np.float32))
    optimizer = optim.partition(
        optim.sgd(1.0), optax.sgd(0.5), lambda path: path[-1] == "embedding"
    )
    updates, _ = optimizer.update(gradients, optimizer.init(pure), pure)
    moved = optim.apply_updates(pure, updates)
    change = np.subtract(moved["embedding"]["embedding"], pure["embedding"]["embedding"])
    np.testing.assert_allclose(change, put((6, 2), 2, -1), atol=1e-6)
    change = np.subtract(moved["blocks"][1]["kernel"], pure["blocks"][1]["kernel"])
    np.testing.assert_allclose(change, -0.5, rtol=1e-5)
