"""Row-sparse gradients and optimizers against their dense twins."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxnets import optim
from jaxnets.kernels import (
    LogUniform,
    SparseRows,
    draw_samples,
    gather_rows,
    rows_from_dense,
    sampled_softmax_cross_entropy,
    to_dense,
)
from jaxnets.kernels.rows import distinct
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device, ones

VOCAB, FEATURES = 50, 3


def test_gathered_rows_stand_for_the_table():
    table = {
        "weight": np.random.default_rng(0).normal(size=(VOCAB, FEATURES)).astype(np.float32),
        "bias": np.arange(VOCAB, dtype=np.float32),
    }
    ids = (on_device([[4, 9], [4, 0]]), on_device([49, 9]))
    found = jax.jit(gather_rows)(table, ids)
    row_ids, rows, local = jax.tree.map(np.asarray, found)
    assert row_ids[:4].tolist() == [0, 4, 9, 49]
    assert (np.diff(row_ids) > 0).all()
    assert (row_ids[4:] >= VOCAB).all()
    for name in table:
        for one, here in zip(ids, local, strict=True):
            np.testing.assert_array_equal(rows[name][here], table[name][one])


@pytest.mark.parametrize("slots", [4, 0.1])
def test_the_first_of_each_id_is_marked(monkeypatch, slots):
    """Of any ids, and where most of them share a slot of the hash with others."""
    monkeypatch.setattr(distinct, "_SLOTS_PER_ID", slots)
    ids = np.random.default_rng(0).integers(-50, 50, 300).astype(np.int32)
    ids[::5], ids[::7], ids[::11] = 2**31 - 1, -(2**31), ids[::11] << 27
    wanted = np.zeros(300, bool)
    wanted[np.unique(ids, return_index=True)[1]] = True
    found = jax.jit(lambda ids: distinct.first_of_each(ids))(ids)  # traced anew
    np.testing.assert_array_equal(found, wanted)
    assert distinct.first_of_each(jnp.zeros(0, int)).shape == (0,)


def test_an_id_out_of_range_gives_nan_under_jit():
    table = ones((VOCAB, FEATURES))

    @jax.jit
    def loss(labels):
        samples = fixed_samples(VOCAB, [3, 4], np.arange(8))
        _, rows, (own, ids) = gather_rows(table, (labels, samples.ids))
        return sampled_softmax_cross_entropy(
            ones((2, FEATURES)), rows, own, samples._replace(ids=ids), reduction="none"
        )

    assert np.isnan(loss(on_device([3, VOCAB]))).tolist() == [False, True]
    assert np.isnan(loss(on_device([-1, 3]))).tolist() == [True, False]


@pytest.mark.smoke
def test_gradient_as_rows_is_the_dense_gradient(x64):
    draw = np.random.default_rng(1)
    weight, hidden = (draw.normal(size=(size, FEATURES)) for size in (VOCAB, 6))
    labels = draw.integers(0, VOCAB, 6)
    samples = fixed_samples(VOCAB, labels, draw.integers(0, VOCAB, 8))

    @jax.jit
    def every(hidden, weight, labels, samples):
        gradient = jax.grad(sampled_softmax_cross_entropy, 1)
        dense = gradient(hidden, weight, labels, samples)
        row_ids, rows, (own, ids) = gather_rows(weight, (labels, samples.ids))
        values = gradient(hidden, rows, own, samples._replace(ids=ids))
        again = rows_from_dense(dense, 20)
        return dense, to_dense(SparseRows(row_ids, values), VOCAB), again, to_dense(again, VOCAB)

    dense, by_rows, again, dense_again = every(hidden, weight, labels, samples)
    np.testing.assert_allclose(by_rows, dense, rtol=1e-12, atol=1e-15)
    np.testing.assert_array_equal(dense_again, dense)
    assert len(set(again.ids.tolist())) == 20


_all_rows = jax.jit(lambda dense: rows_from_dense(dense, VOCAB))


def gradients(steps, all_rows):
    """Row gradients that touch some rows at each step, or every row."""
    draw = np.random.default_rng(0)
    for _ in range(steps):
        dense = draw.normal(size=(VOCAB, FEATURES))
        if not all_rows:
            dense *= draw.random((VOCAB, 1)) < 0.2
        dense = jnp.asarray(dense)
        yield dense, _all_rows(dense)


TWINS = [
    ("sgd", optim.sgd(0.1), optax.sgd(0.1), False),
    ("adagrad", optim.adagrad(0.1), optax.adagrad(0.1), False),
    ("momentum", optim.momentum(0.1, 0.9), optax.sgd(0.1, momentum=0.9), True),
    ("lazy_adam", optim.lazy_adam(0.1), optax.adam(0.1), True),
]


@pytest.mark.parametrize(
    ("ours", "theirs", "all_rows"),
    [
        pytest.param(*t[1:], id=t[0], marks=pytest.mark.smoke if t[0] == "lazy_adam" else ())
        for t in TWINS
    ],
)
def test_optimizers_equal_their_dense_twins(x64, ours, theirs, all_rows):
    table = jnp.asarray(np.random.default_rng(99).normal(size=(VOCAB, FEATURES)))
    dense_table = table
    state, dense_state = ours.init(table), theirs.init(table)

    @jax.jit
    def step(rows, state, table, dense, dense_state, dense_table):
        updates, state = ours.update(rows, state)
        dense_updates, dense_state = theirs.update(dense, dense_state, dense_table)
        dense_table = optax.apply_updates(dense_table, dense_updates)
        return state, optim.apply_updates(table, updates), dense_state, dense_table

    for dense, rows in gradients(6, all_rows):
        state, table, dense_state, dense_table = step(
            rows, state, table, dense, dense_state, dense_table
        )
        np.testing.assert_allclose(table, dense_table, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "optimizer", [optim.momentum(0.1), optim.lazy_adamw(0.1), optim.lazy_lion(0.1)]
)
def test_lazy_optimizers_leave_untouched_rows(optimizer):
    table = ones((VOCAB, FEATURES))
    state = optimizer.init(table)
    for ids in ([3, 5], [5, 7]):  # outside of jit
        updates, state = optimizer.update(
            SparseRows(on_device(ids, np.int32), ones((2, FEATURES))), state, table
        )
        before = table
        table = optim.apply_updates(table, updates)
        changed = np.flatnonzero((np.asarray(table) != np.asarray(before)).any(1))
        assert changed.tolist() == ids


def test_rowwise_adagrad_equals_adagrad_on_one_feature(x64):
    table = jnp.asarray(np.random.default_rng(0).normal(size=(VOCAB, 1)))
    ours, theirs = optim.rowwise_adagrad(0.1), optim.adagrad(0.1)
    state, other_state, other = ours.init(table), theirs.init(table), table

    @jax.jit
    def step(rows, state, table, other_state, other):
        updates, state = ours.update(rows, state)
        other_updates, other_state = theirs.update(rows, other_state)
        other = optim.apply_updates(other, other_updates)
        return state, optim.apply_updates(table, updates), other_state, other

    for dense, _ in gradients(4, False):
        rows = _all_rows(np.asarray(dense)[:, :1])
        state, table, other_state, other = step(rows, state, table, other_state, other)
    np.testing.assert_allclose(table, other, rtol=1e-12)
    assert ours.init(ones((VOCAB, 8))).tables[0]["sum"].shape == (VOCAB,)


def test_a_dense_gradient_is_refused():
    optimizer, table = optim.sgd(0.1), ones((VOCAB, FEATURES))
    with pytest.raises(TypeError, match="gradients must be SparseRows"):
        optimizer.update(table, optimizer.init(table))


OPTIMIZERS = [
    optim.sgd(0.1), optim.momentum(0.1), optim.adagrad(0.1), optim.rowwise_adagrad(0.1),
    optim.lazy_adam(0.1), optim.lazy_adamw(0.1), optim.ftrl(0.1),
]  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_donated_step_copies_no_table(optimizer):
    """A step on 100,000 rows of 64 (26 MB) has few temporaries, and no copy of a table."""
    vocab_size = 100_000
    table = jax.ShapeDtypeStruct((vocab_size, 64), jnp.float32)
    state = jax.eval_shape(optimizer.init, table)

    def step(table, state, hidden, labels, key):
        samples = draw_samples(LogUniform(vocab_size), key, 32, labels)
        row_ids, rows, (own, ids) = gather_rows(table, (labels, samples.ids))
        gradient = jax.grad(sampled_softmax_cross_entropy, 1)(
            hidden, rows, own, samples._replace(ids=ids)
        )
        return update(table, state, row_ids, gradient)

    def update(table, state, row_ids, gradient):
        updates, state = optimizer.update(SparseRows(row_ids, gradient), state, table)
        return optim.apply_updates(table, updates), state

    if optimizer is OPTIMIZERS[0]:  # the loss of the others has the same gradient
        arrays = np.ones((16, 64), np.float32), np.arange(16), jax.random.key(0)
    else:
        step, arrays = update, (np.arange(48, dtype=np.int32), np.ones((48, 64), np.float32))
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(table, state, *arrays).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * table.size
    # The branch that races all classes holds a few numbers a class, and runs rarely.
    assert memory.temp_size_in_bytes < 32 * vocab_size
    assert f"copy(f32[{vocab_size},64]" not in compiled.as_text()
