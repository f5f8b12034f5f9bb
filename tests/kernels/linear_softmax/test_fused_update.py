"""A step of the exact loss whose table moves in the backward pass, against gradient and rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets import optim
from jaxnets.kernels import (
    SGD,
    RowwiseAdagrad,
    SparseRows,
    Tiles,
    linear_softmax_update,
)
from tests.exact_loss import exact_loss
from tests.inputs import changed, on_device
from tests.near import assert_near

TOKENS, FEATURES, VOCAB, RATE = 7, 6, 50, 0.5
TILES = Tiles(vocab_tile=16)  # the last is moved back over the one before


def problem(dtype):
    draw = np.random.default_rng(0)
    hidden, weight, bias = (
        on_device(draw.normal(size=shape), dtype)
        for shape in ((TOKENS, FEATURES), (VOCAB, FEATURES), VOCAB)
    )
    # The first and the last class, those that two tiles see, and one class twice.
    return hidden, weight, bias, np.array([0, VOCAB - 1, 34, 47, 20, 20, 33])


def test_sgd_is_the_gradient_s_with_every_option(x64):
    hidden, weight, bias, labels = problem(float)
    bias = changed(bias, 5, -np.inf)
    token_weights = np.array([1, 2, 0, 1, 0.5, 1, 1])
    labels[6] = -1
    options = {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 5.0}

    arrays = tuple(map(np.asarray, (hidden, weight, bias)))
    kept = token_weights * (labels >= 0)
    losses, _, backward = exact_loss(*arrays[:2], labels, arrays[2], **options)
    found = (losses * kept).sum() / kept.sum()
    by_hidden, *gradients = backward(kept / kept.sum())[:3]
    moved = [a - RATE * g for a, g in zip(arrays[1:], gradients, strict=True)]
    # What is left out may be anything.
    hidden, labels[2] = changed(hidden, 2, np.nan), 1_000_000
    step = jax.jit(
        functools.partial(
            linear_softmax_update, labels=labels, bias=bias, token_weights=token_weights,
            ignore_index=-1, features_first=True, tiles=TILES, **options,
        )
    )  # fmt: skip
    result = jax.tree.map(np.asarray, step(hidden, arrays[1].T, rule=SGD(RATE)))
    tolerance = 100 * VOCAB * 2.3e-16
    assert result.bias[5] == moved[1][5] == -jnp.inf
    fine = np.arange(VOCAB) != 5
    assert_near(
        (result.loss, result.hidden_gradient, result.weight.T, result.bias[fine]),
        (found, by_hidden, moved[0], moved[1][fine]), tolerance, 1,
    )  # fmt: skip
    assert result.state == SGD(RATE)


def test_rowwise_adagrad_is_the_optimizer_s_over_two_steps():
    hidden, weight, bias, labels = problem(jnp.float32)
    optimizer, tables = optim.rowwise_adagrad(RATE), [weight, bias]
    rule = RowwiseAdagrad(RATE, *(np.full(VOCAB, 0.1, np.float32) for _ in range(2)))
    step = jax.jit(
        lambda weight, bias, rule: linear_softmax_update(
            hidden, weight, labels, rule, bias=bias, reduction="sum", tiles=TILES
        )
    )

    @jax.jit
    def dense(gradients, tables, state):
        rows = [SparseRows(np.arange(VOCAB), gradient) for gradient in gradients]
        updates, state = optimizer.update(rows, state, tables)
        return optim.apply_updates(tables, updates), state

    state = optimizer.init(tables)
    for _ in range(2):
        result = step(*tables, rule)
        losses, _, backward = exact_loss(hidden, tables[0], labels, tables[1])
        found, (by_hidden, *gradients) = losses.sum(), backward(1)[:3]
        tables, state = dense([g.astype(np.float32) for g in gradients], tables, state)
        rule = result.state
        sums = [table["sum"] for table in state.tables]
        # An accumulator near 0.1 and gradients near 0: their quotient has the gradients' error.
        assert_near(
            (result.loss, result.hidden_gradient, result.weight, result.bias, *rule[1:3]),
            (found, by_hidden, *tables, *sums), 100 * VOCAB * 1.2e-7, 1,
        )  # fmt: skip
    assert rule.eps == np.float32(1e-7)


def test_half_precision_rounds_the_table_once():
    hidden, weight, bias, labels = problem(jnp.float32)
    half = np.asarray(weight).astype(jnp.bfloat16)
    step = jax.jit(
        functools.partial(
            linear_softmax_update, labels=labels, bias=bias, compute_dtype="bfloat16", tiles=TILES
        )
    )
    narrow, wide = (
        step(hidden, table, rule=SGD(RATE)) for table in (half, half.astype(np.float32))
    )
    assert (narrow.weight.dtype, wide.weight.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(narrow.weight, wide.weight.astype(jnp.bfloat16))
    np.testing.assert_array_equal(narrow.hidden_gradient, wide.hidden_gradient)
    assert narrow.hidden_gradient.dtype == jnp.float32
    losses, _, backward = exact_loss(hidden.astype(jnp.bfloat16), half, labels, bias)
    moved = np.asarray(half, np.float64) - RATE * backward(1 / TOKENS)[1]
    # The exponentials are rounded to bfloat16.
    assert_near((wide.loss, wide.weight), (losses.mean(), moved), 4 * 2**-8, 1)


def test_what_only_values_tell_is_nan():
    hidden, weight, bias, labels = problem(jnp.float32)

    @jax.jit
    def step(weight, labels, rate):
        return linear_softmax_update(hidden, weight, labels, SGD(rate), bias=bias, tiles=TILES)

    fine = step(weight, labels, RATE)
    wrong = step(weight, np.where(np.arange(TOKENS) == 3, VOCAB, labels), RATE)
    assert np.isnan(wrong.loss)
    np.testing.assert_array_equal(np.isnan(wrong.hidden_gradient).any(1), np.arange(TOKENS) == 3)
    np.testing.assert_array_equal(wrong.hidden_gradient[0], fine.hidden_gradient[0])
    assert np.isfinite(wrong.weight).all()
    for rate in (-1.0, np.inf):
        wrong = step(weight, labels, rate)
        assert np.isnan(wrong.weight).all()
        np.testing.assert_array_equal(wrong.loss, fine.loss)
        np.testing.assert_array_equal(wrong.hidden_gradient, fine.hidden_gradient)


def test_a_split_batch_moves_the_table_as_the_whole_does():
    hidden, weight, bias, labels = problem(jnp.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    rule = RowwiseAdagrad(RATE, *(np.full(VOCAB, 0.1, np.float32) for _ in range(2)))
    step = jax.jit(functools.partial(linear_softmax_update, ignore_index=20, tiles=TILES))
    arrays = hidden[:6], weight, labels[:6]  # of which one half has fewer that count
    specs = (P("data"), P(), P("data"))
    split = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)]
    with jax.set_mesh(mesh):
        got = step(*split, rule, bias=bias)
    # By hand: a row's accumulator gets the mean of its gradient's squares.
    kept = labels[:6] != 20
    losses, _, backward = exact_loss(hidden[:6], weight, labels[:6], bias)
    by_hidden, *gradients = backward(kept / kept.sum())[:3]
    moved = []
    for table, gradient in zip((weight, bias), gradients, strict=True):
        squares = gradient**2 if gradient.ndim == 1 else (gradient**2).mean(1)
        accumulator = (0.1 + squares).reshape(-1, *[1] * (gradient.ndim - 1))
        moved.append(table - RATE * gradient / np.sqrt(accumulator + 1e-7))
    wanted = losses[kept].mean(), by_hidden, *moved
    found = got.loss, got.hidden_gradient, got.weight, got.bias
    assert_near(found, wanted, 100 * VOCAB * 1.2e-7, 1)


def test_nothing_moves_without_tokens():
    _, weight, _, _ = problem(jnp.float32)
    result = linear_softmax_update(np.ones((0, FEATURES), np.float32), weight, [], SGD(RATE))
    assert result.loss == 0
    assert result.hidden_gradient.shape == (0, FEATURES)
    np.testing.assert_array_equal(result.weight, weight)


def test_no_gradient_of_the_table_is_ever_there():
    """A million classes of 128 features (512 MB), and no other array of that size."""
    vocab_size, features, tokens = 1_000_000, 128, 2048

    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    rule = RowwiseAdagrad(shape(), shape(vocab_size), eps=shape())
    step = jax.jit(
        lambda weight, rule, *tokens: linear_softmax_update(
            tokens[0], weight, tokens[1], rule, tiles=Tiles()
        ),
        donate_argnums=(0, 1),
    )
    compiled = step.lower(
        shape(vocab_size, features), rule, shape(tokens, features), np.zeros(tokens, np.int32)
    ).compile()
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * vocab_size * (features + 1)
    assert memory.temp_size_in_bytes < 100e6
    assert f"copy(f32[{vocab_size},{features}]" not in compiled.as_text()


def test_bad_input(users_checks):
    hidden, weight, bias, labels = problem(jnp.float32)
    accumulator = np.ones(VOCAB, np.float32)
    update = functools.partial(linear_softmax_update, hidden, weight, labels)
    bad = {
        "reduction must be 'mean' or 'sum', got 'none'": lambda: update(SGD(1), reduction="none"),
        "rule must be SGD or RowwiseAdagrad, got float": lambda: update(0.1),
        "rule.learning_rate must be a number of at least 0, got -1": lambda: update(SGD(-1)),
        r"rule.learning_rate must be a number .* got shape \(2,\)": lambda: update(
            SGD(np.ones(2))
        ),
        "rule.eps must be a number of at least 0, got nan": lambda: update(
            RowwiseAdagrad(1, accumulator, eps=np.nan)
        ),
        r"rule.accumulator must be \[vocab\] = \(50,\), got shape \(49,\)": lambda: update(
            RowwiseAdagrad(1, accumulator[1:])
        ),
        "rule.accumulator must be floating point, got int64": lambda: update(
            RowwiseAdagrad(1, accumulator.astype(int))
        ),
        "rule.bias_accumulator must be given with a bias": lambda: update(
            RowwiseAdagrad(1, accumulator), bias=bias
        ),
        "rule.bias_accumulator must be None without a bias": lambda: update(
            RowwiseAdagrad(1, accumulator, accumulator)
        ),
        "labels must lie in": lambda: linear_softmax_update(hidden, weight, labels + 1, SGD(1)),
        "label_smoothing must lie in": lambda: update(SGD(1), label_smoothing=2),
    }  # fmt: skip
    for message, call in bad.items():
        with pytest.raises((TypeError, ValueError), match=message):
            call()
