"""The exact loss and top-k at their edges: integers, classes and tokens that are out, no tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    Tiles,
    VocabSharding,
    checked_loss,
    compiling_for,
    linear_softmax_cross_entropy,
    linear_top_k,
)
from tests.exact_loss import exact_loss
from tests.inputs import INTEGER_TYPES, changed

OUT = -jnp.inf
SMOOTHED = {"label_smoothing": 0.2, "z_loss": 1e-2, "temperature": 1.5}
OPTIONS = [{}, SMOOTHED, {**SMOOTHED, "soft_cap": 2.0}, {"z_loss": 1e-2, "soft_cap": 2.0}]


def problem(tokens=6, features=5, vocab_size=32, dtype=jnp.float32):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    hidden, weight = (
        jnp.asarray(draw.normal(size=(size, features)), dtype) for size in (tokens, vocab_size)
    )
    labels = jnp.asarray(draw.integers(8, vocab_size // 2, tokens))
    return hidden, weight, jnp.zeros(vocab_size, dtype), labels


def gradients(loss, *arrays):
    return jax.jit(jax.value_and_grad(loss, tuple(range(len(arrays)))))(*arrays)


def near(actual, expected, tolerance=1e-5):
    """In float32, sums of some 32 terms of order 1."""
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=tolerance), actual, expected)


def test_labels_of_any_integer_type():
    """Outside of jit, and as arguments of one program."""
    hidden, weight, bias, _ = problem(3, vocab_size=256)
    values = {d: np.array([0, 100, 127 if d == "int8" else 200]) for d in INTEGER_TYPES}
    labels = {d: values[d].astype(d) for d in INTEGER_TYPES}

    def loss(labels):
        return jax.value_and_grad(linear_softmax_cross_entropy)(hidden, weight, labels, bias=bias)

    traced = jax.jit(lambda labels: jax.tree.map(lambda each: loss(each)[0], labels))(labels)
    expected = {d: loss(jnp.asarray(values[d], jnp.int32)) for d in ("int8", "int16")}
    for dtype in INTEGER_TYPES:
        wanted = expected["int8" if dtype == "int8" else "int16"]
        near(loss(labels[dtype]), wanted, 0)
        near(traced[dtype], wanted[0], 1e-6)
    near(loss(values["int8"].tolist()), expected["int8"], 0)


@pytest.mark.parametrize("jitted", [False, True])
def test_an_ignored_label_is_no_other_label_modulo_256(jitted):
    hidden, weight, bias, _ = problem(2, vocab_size=256)

    def loss(labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, ignore_index=np.int64(-100), reduction="none"
        )

    loss = jax.jit(loss) if jitted else loss
    near(loss(np.array([156, 3], np.uint8)), loss(jnp.array([156, 3])), 0)
    assert float(loss(np.array([156, 3], np.uint8))[0]) > 0


@pytest.mark.parametrize(
    ("implementations", "options"),
    [
        (("two passes",), OPTIONS[0]),
        (("tiled", "pallas"), OPTIONS[1]),
        (("two passes",), OPTIONS[2]),
        (("tiled", "pallas"), OPTIONS[3]),
    ],
    ids=str,
)
def test_a_class_of_bias_minus_infinity_is_out(implementations, options):
    """Of the loss in one pass, in two and in the kernel, each with any option and without."""
    hidden, weight, bias, labels = problem()
    bias = np.array(bias)
    bias[:8] = bias[20] = OUT  # the first tile of classes, and one more

    def ours(implementation, hidden, weight, bias):
        loss = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, tiles=Tiles(token_tile=4, vocab_tile=8), **options,
            implementation="pallas" if implementation == "pallas" else None,
            return_log_sum_exp=implementation != "tiled",
        )  # fmt: skip
        return loss[0] + jnp.sin(loss[1]).sum() if isinstance(loss, tuple) else loss

    @jax.jit
    def every(*arrays):
        return {
            implementation: jax.value_and_grad(partial(ours, implementation), (0, 1, 2))(*arrays)
            for implementation in implementations
        }

    with compiling_for("gpu", interpret=True):
        found = every(hidden, weight, bias)
    losses, z, backward = exact_loss(hidden, weight, labels, bias, **options)
    both = losses.mean() + np.sin(z).sum(), backward(1 / 6, np.cos(z))[:3]
    for implementation, actual in found.items():
        alone = losses.mean(), backward(1 / 6)[:3]
        near(actual, alone if implementation == "tiled" else both)


def test_the_gradient_of_a_temperature_passes_over_classes_that_are_out():
    hidden, weight, bias, labels = problem()
    bias = changed(bias, 3, OUT)

    def ours(temperature, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, temperature=temperature, tiles=Tiles(vocab_tile=8)
        )

    each = np.linspace(0.5, 2.0, 6, dtype=np.float32)
    derived = jax.jit(jax.value_and_grad(ours, (0, 1)))
    for temperature in (np.float32(1.5), each):
        losses, _, backward = exact_loss(hidden, weight, labels, bias, temperature=temperature)
        _, _, d_bias, d_temperature = backward(1 / 6)
        d_temperature = d_temperature if temperature.ndim else d_temperature.sum()
        near(derived(temperature, bias), (losses.mean(), (d_temperature, d_bias)))
    near(
        linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, temperature=each.tolist()),
        losses.mean(),
    )
    spoiled = changed(each, 1, 0)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, temperature=spoiled)
    assert np.isnan(derived(spoiled, bias)[0])


def test_a_label_whose_class_is_out_costs_infinity_and_spoils_no_other_token():
    hidden, weight, bias, labels = problem()
    bias, labels = changed(bias, 0, OUT), changed(labels, 2, 0)

    def derived(options, hidden, weight, bias):
        def losses(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden,
                weight,
                labels,
                bias=bias,
                reduction="none",
                tiles=Tiles(vocab_tile=8),
                **options,
            )

        values, backward = jax.vjp(losses, hidden, weight, bias)
        return values, backward(jnp.ones(6))

    every = ({}, {"soft_cap": 2.0}, {"label_smoothing": 0.1})
    found = jax.jit(lambda *arrays: [derived(options, *arrays) for options in every])
    for values, (d_hidden, d_weight, d_bias) in found(hidden, weight, bias):
        assert np.isposinf(values).tolist() == [False, False, True, False, False, False]
        assert np.isfinite(d_hidden).all()
        assert not np.asarray(d_weight)[0].any()
        assert d_bias[0] == 0


# Every reduction, of one pass and of two, and each option in both.
LEAVING_OUT = [
    (OPTIONS[0], ("mean", "none")),
    (OPTIONS[1], ("sum", "log-sum-exp")),
    (OPTIONS[2], ("mean",)),
    (OPTIONS[3], ("sum",)),
]


@pytest.mark.parametrize(("options", "reductions"), LEAVING_OUT, ids=str)
def test_a_token_of_weight_0_leaves_no_trace(options, reductions):
    hidden, weight, bias, labels = map(np.array, problem())
    bias[0] = OUT  # the label that stands in for one that is left out
    left_out = np.array([1, 4])
    kept = np.array([0, 2, 3, 5])
    weights = np.ones(6, np.float32)
    weights[left_out] = 0
    bad_labels, bad_hidden = labels.copy(), hidden.copy()
    bad_labels[left_out] = -100, 32
    bad_hidden[left_out] = np.array([[np.nan], [np.inf]])

    def ours(reduction, hidden, weight, bias, weights, labels):
        result = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, token_weights=weights,
            tiles=Tiles(vocab_tile=8), **options,
            reduction="sum" if reduction == "log-sum-exp" else reduction,
            return_log_sum_exp=reduction == "log-sum-exp",
        )  # fmt: skip
        if reduction == "log-sum-exp":
            return result[0] + result[1][kept].sum()
        return result.sum()

    bad = bad_hidden, weight, bias, weights, bad_labels
    results = jax.jit(
        lambda *bad: [
            jax.value_and_grad(partial(ours, each), (0, 1, 2, 3))(*bad) for each in reductions
        ]
    )(*bad)
    losses, z, backward = exact_loss(hidden[kept], weight, labels[kept], bias, **options)
    for reduction, (value, found) in zip(reductions, results, strict=True):
        mean, with_z = reduction == "mean", reduction == "log-sum-exp"
        factor = 1 / len(kept) if mean else 1
        expected = factor * losses.sum()
        near(value, expected + with_z * z.sum())
        wanted = backward(factor, with_z)[:3], factor * (losses - mean * expected)
        found = jax.tree.map(np.asarray, found)
        near((found[0][kept], *found[1:3], found[3][kept]), (*wanted[0], wanted[1]))
        assert not found[0][left_out].any()
        assert np.isfinite(found[3]).all()
    near(ours(reductions[0], *bad), results[0][0])  # the labels known, and no error


@pytest.mark.parametrize("implementation", [None, "pallas"])
def test_a_large_bias_is_no_softmax_of_a_token_that_is_not_there(implementation):
    """Of tokens that fill up a tile, or that are left out, exp(bias) alone would overflow."""
    hidden, weight, bias, labels = problem(tokens=513)  # one more than the tokens of a tile
    bias = np.full_like(bias, 100)
    weights = changed(np.ones(513, np.float32), 3, 0)

    def ours(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, token_weights=weights, reduction="none",
            implementation=implementation,
        ).mean()  # fmt: skip

    losses, _, backward = exact_loss(hidden, weight, labels, bias)
    expected = (losses * weights).mean(), backward(weights / 513)[:3]
    with compiling_for("gpu", interpret=True):
        # The logits are some 100: rounded 100 times coarser than in the other tests.
        near(gradients(ours, hidden, weight, bias), expected, 1e-4)


def test_no_token_and_no_class_is_no_loss():
    hidden, weight, bias, labels = problem()
    for reduction in ("mean", "none"):

        def loss(hidden, weight, bias, reduction=reduction):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=jnp.zeros(6), reduction=reduction
            ).sum()

        for value in jax.tree.leaves(gradients(loss, hidden, weight, jnp.full_like(bias, OUT))):
            assert not np.asarray(value).any()


def test_what_overflows_costs_infinity_and_float16_does_not_by_a_temperature():
    hidden, weight = jnp.full((1, 1), 1e30), jnp.array([[1e30], [1.0]])
    for reduction in ("mean", "none"):
        loss = linear_softmax_cross_entropy(hidden, weight, [1], reduction=reduction)
        assert np.isposinf(loss).all()
    hidden, weight, _, labels = problem()
    hidden, weight = (4000 * hidden).astype(jnp.float16), (weight / 4000).astype(jnp.float16)
    for temperature in (0.01, np.linspace(0.01, 0.02, 6)):
        loss = linear_softmax_cross_entropy(hidden, weight, labels, temperature=temperature)
        losses, _, _ = exact_loss(hidden, weight, labels, temperature=temperature)
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)


def test_a_term_whose_factor_is_0_may_be_infinite():
    hidden, weight = jnp.full((1, 1), 2e19), jnp.ones((1, 1))
    for reduction in ("mean", "none"):  # one pass and two

        def loss(hidden, reduction=reduction):
            return linear_softmax_cross_entropy(
                hidden, weight, [0], z_loss=0, reduction=reduction
            ).sum()

        near(gradients(loss, hidden), (0.0, (jnp.zeros((1, 1)),)), 0)
    out = jnp.array([OUT, 0.0])
    smoothed = linear_softmax_cross_entropy(
        jnp.ones((1, 1)), jnp.ones((2, 1)), [0], bias=out, label_smoothing=1
    )
    near(smoothed, 0.0, 1e-6)  # the uniform part alone, of the one class that is in


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_tokens(reduction):
    hidden, weight, bias, labels = (a[:0] if i in (0, 3) else a for i, a in enumerate(problem()))

    def loss(hidden, weight, bias):
        loss, z = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, reduction=reduction, return_log_sum_exp=True
        )
        return loss.sum() + z.sum()

    for value in jax.tree.leaves(gradients(loss, hidden, weight, bias)):
        assert not np.asarray(value).any()
    assert linear_softmax_cross_entropy(hidden, weight, [], bias=bias) == 0
    assert [a.shape for a in linear_top_k(hidden, weight, 3, bias=bias)] == [(0, 3), (0, 3)]
    with pytest.raises(ValueError, match="weight"):
        linear_softmax_cross_entropy(hidden, weight[:0], labels)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_top_k_with_infinite_logits_and_nan_names_different_classes(dtype):
    """As of all logits at once, whatever the tile: the lower id first among equals."""
    rows = np.array([
        [OUT, OUT, 3, OUT, 1, OUT, OUT],
        [OUT] * 7,
        [np.nan] * 7,
        [2, np.nan, OUT, np.inf, 2, np.nan, 0],
    ])  # fmt: skip
    hidden, none = jnp.ones((2, 1), dtype), jnp.zeros((7, 1), dtype)
    for bias in rows:
        bias = jnp.asarray(bias, dtype)
        for k, tile in ((3, 1), (7, 3), (3, np.int64(100))):
            expected = jax.lax.top_k(np.broadcast_to(np.asarray(bias, np.float32), (2, 7)), k)
            found = linear_top_k(hidden, none, np.int64(k), bias=bias, tiles=Tiles(vocab_tile=tile))
            jax.tree.map(np.testing.assert_array_equal, tuple(found), tuple(expected))


@pytest.mark.smoke
def test_top_k_takes_no_notice_of_signs_of_nan_and_zero():
    """What comes of 0 times infinity has its sign bit set on x86."""
    bias = jnp.array([0.0, np.copysign(np.nan, -1), -0.0, OUT, 0.0, np.nan])
    for tile in (1, 4, 6):
        _, ids = linear_top_k(
            jnp.ones((1, 1)), jnp.zeros((6, 1)), 6, bias=bias, tiles=Tiles(vocab_tile=tile)
        )
        assert ids.tolist() == [[1, 5, 0, 2, 4, 3]]
        hidden, weight = jnp.array([[0.0, jnp.inf]]), changed(np.ones((6, 2)), (2, 1), 0)
        values, ids = linear_top_k(
            hidden, weight, 3, bias=changed(np.zeros(6), 4, OUT), tiles=Tiles(vocab_tile=tile)
        )
        assert ids.tolist() == [[2, 4, 0]]
        np.testing.assert_array_equal(values, [[np.nan, np.nan, np.inf]])


def test_strict_modes(strict_modes):
    """Ranks and types show while tracing; one pass and two are run."""
    hidden, weight, bias, labels = problem(dtype=jnp.bfloat16)
    bias = np.where(np.arange(32) < 8, np.float32(OUT), np.float32(0))
    weights = np.array([1, 0, 1, 1, 1, 1])

    def derived(options, reduction):
        def loss(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=weights, reduction=reduction,
                tiles=Tiles(token_tile=4, vocab_tile=12), **options,
            ).sum()  # fmt: skip

        return jax.value_and_grad(loss, (0, 1, 2))

    for case in ((OPTIONS[0], "mean"), (OPTIONS[0], "none"), (OPTIONS[1], "none")):
        jax.eval_shape(derived(*case), hidden, weight, bias)
    run = derived(OPTIONS[1], "mean"), derived(OPTIONS[2], "none")
    both = jax.jit(lambda *arrays: [function(*arrays) for function in run])
    for value in jax.tree.leaves(both(hidden, weight, bias)):
        assert np.isfinite(np.asarray(value, np.float32)).all()
    assert linear_top_k(hidden, weight, 3, bias=bias, tiles=Tiles(vocab_tile=5))[1].shape == (6, 3)


@pytest.mark.parametrize("dtype", ["uint8", pytest.param("int32", marks=pytest.mark.smoke)])
def test_checked_leaves_out_what_the_loss_does(dtype):
    hidden, weight, bias, labels = problem()
    labels = np.array(changed(labels, 0, 200), dtype)
    hidden = changed(hidden, 0, np.nan)
    loss = jax.jit(
        checked_loss(linear_softmax_cross_entropy), static_argnames=("ignore_index", "reduction")
    )
    for options in ({"ignore_index": 200}, {"token_weights": changed(np.ones(6), 0, 0)}):
        error, value = loss(hidden=hidden, weight=weight, bias=bias, labels=labels, **options)
        error.throw()
        assert jnp.isfinite(value)
    assert "got 200" in loss(hidden, weight, labels=labels, bias=bias)[0].get()
    with pytest.raises(TypeError, match="missing here: labels, weight"):
        checked_loss(lambda *a: a)(hidden)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_checked_around_a_sharded_loss(kind):
    kinds = (getattr(jax.sharding.AxisType, kind),)
    sharding = VocabSharding(jax.make_mesh((4,), ("vocab",), kinds), "vocab")
    hidden, weight, bias, labels = problem()
    loss = checked_loss(linear_softmax_cross_entropy)

    @jax.jit
    def jitted(hidden, weight, bias, labels):
        return loss(hidden, weight, labels, bias=bias, sharding=sharding)

    error, value = jitted(hidden, weight, bias, labels)
    error.throw()
    near(value, linear_softmax_cross_entropy(hidden, weight, labels, bias=bias))
    error, _ = jitted(hidden, weight, bias, changed(labels, 1, -3))
    assert "labels must lie in [0, 32), got -3" in error.get()
