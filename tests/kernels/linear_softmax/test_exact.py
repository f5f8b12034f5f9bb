"""linear_softmax_cross_entropy against the equation written plainly, value and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets.kernels import Tiles, linear_softmax_cross_entropy
from jaxnets.kernels.linear_softmax import reference
from tests.exact_loss import exact_loss
from tests.inputs import on_device
from tests.slopes import assert_backward
from tests.with_bias import with_bias


def problem(tokens=(3, 7), features=5, vocab_size=29, dtype=jnp.float64, seed=0):
    draw = np.random.default_rng(seed)  # of NumPy, which compiles nothing
    shapes = (*tokens, features), (vocab_size, features), (vocab_size,)
    hidden, weight, bias = (on_device(draw.normal(size=shape), dtype) for shape in shapes)
    labels = on_device(draw.integers(0, vocab_size, tokens))
    return hidden, weight, bias, labels, on_device(draw.uniform(size=tokens), dtype)


def close(actual, expected, dtype, depth):
    """To rounding: an error of eps a term, growing as a random walk over ``depth`` terms, x 16."""
    tolerance = 16 * float(jnp.finfo(dtype).eps) * depth**0.5
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, atol=tolerance * (np.abs(expected).max() + 1.0))


def derived(where, *functions):
    """Values and gradients of each function of the same arrays, by one program."""
    return jax.jit(lambda *arrays: [jax.value_and_grad(f, where)(*arrays) for f in functions])


EACH = np.linspace(0.5, 2.0, 21).reshape(3, 7)
SMOOTHED, SQUARED = {"label_smoothing": 0.2}, {"z_loss": 1e-2}
CAPPED, WARM, WARM_EACH = {"soft_cap": 2.0}, {"temperature": 1.5}, {"temperature": EACH}
# Options, reduction, with the log-sum-exp, tiles: of one pass and of two, any two options are met
# in every state of both, every reduction, and tiles that hold all, some, or just what there is.
CASES = {
    "one pass": ({}, "mean", False, (128, 1024)),
    "one pass, smoothed, squared, warm": (
        {**SMOOTHED, **SQUARED, **WARM}, "sum", False, (4, 8)
    ),
    "one pass, squared, capped": ({**SQUARED, **CAPPED}, "mean", False, (5, 29)),
    "one pass, capped, warm": ({**CAPPED, **WARM_EACH}, "sum", False, (1, 7)),
    "one pass, smoothed": (SMOOTHED, "mean", False, (128, 1024)),
    "two passes": ({}, "none", False, (4, 8)),
    "two passes, squared, capped, warm": (
        {**SQUARED, **CAPPED, **WARM_EACH}, "none", True, (5, 29)
    ),
    "two passes, smoothed, capped, warm": (
        {**SMOOTHED, **CAPPED, **WARM}, "mean", False, (1, 7)
    ),
    "two passes, smoothed, squared, warm": (
        {**SMOOTHED, **SQUARED, **WARM}, "sum", True, (128, 1024)
    ),
    "two passes, smoothed, squared, capped": (
        {**SMOOTHED, **SQUARED, **CAPPED}, "none", False, (4, 8)
    ),
}  # fmt: skip
COTANGENT, OF_Z = np.random.default_rng(9).normal(size=(2, 3, 7))


def test_the_reference_is_the_equation_by_hand(x64):
    """And the gradients by hand are its slopes, by differences that compile nothing."""
    hidden, weight, bias, labels, weights = map(np.array, problem())
    bias[11], labels[labels == 11] = -np.inf, 0
    arrays = hidden, weight, bias, 0.5 + weights

    def theirs(options, hidden, weight, bias, temperature):
        return reference.linear_softmax_cross_entropy(
            hidden, weight, jnp.asarray(labels), bias=bias, temperature=temperature, **options
        )

    every = [{}, {"label_smoothing": 0.2, "z_loss": 1e-2, "soft_cap": 3.0}]
    found = jax.jit(lambda *arrays: [theirs(options, *arrays) for options in every])(*arrays)
    for options, values in zip(every, found, strict=True):

        def by_hand(hidden, weight, bias, temperature, options=options):
            return exact_loss(hidden, weight, labels, bias, temperature=temperature, **options)

        *expected, backward = by_hand(*arrays)
        jax.tree.map(lambda a, e: close(a, e, jnp.float64, 29), values, tuple(expected))
        assert_backward(by_hand, arrays, backward(COTANGENT, OF_Z), (COTANGENT, OF_Z))


@functools.cache
def derivative(case):
    """Of one loss of a case: the loss, the log-sum-exps if asked for, and the gradients.

    One program for any arrays: hidden, weight, bias, tokens' weights, temperature and labels.
    """
    options, reduction, with_log_sum_exp, tiles = CASES[case]

    def ours(hidden, weight, bias, weights, temperature, labels):
        found = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, token_weights=weights, reduction=reduction,
            tiles=Tiles(*tiles), return_log_sum_exp=with_log_sum_exp, **{**options, **temperature},
        )  # fmt: skip
        loss, z = found if with_log_sum_exp else (found, jnp.zeros(weights.shape))
        value = (loss * COTANGENT).sum() if reduction == "none" else 3 * loss
        return value + jnp.where(weights == 0, 0, z * OF_Z).sum(), (loss, z)

    return jax.jit(jax.value_and_grad(ours, (0, 1, 2, 3, 4), has_aux=True))


def temperature_of(case):
    options = CASES[case][0]
    return {name: options[name] for name in options if name == "temperature"}


def by_hand(case, hidden, weight, bias, weights, labels):
    """The value of ``derivative`` and its gradients, in NumPy."""
    options, reduction, with_log_sum_exp, _ = CASES[case]
    temperature = temperature_of(case)
    losses, z, backward = exact_loss(hidden, weight, labels, bias, **options)
    weights, of_z = np.asarray(weights), OF_Z * with_log_sum_exp * (np.asarray(weights) != 0)
    total = weights.sum()
    factors = {"none": COTANGENT, "sum": 3, "mean": 3 / total}[reduction]
    value = (factors * losses * weights).sum()
    d_weights = factors * losses - (value / total if reduction == "mean" else 0)
    *gradients, d_temperature = backward(factors * weights, of_z)
    if np.ndim(temperature.get("temperature", 1.0)) == 0:
        d_temperature = d_temperature.sum()
    of_temperature = dict.fromkeys(temperature, d_temperature)
    return value + (z * of_z).sum(), (*gradients, d_weights, of_temperature)


def some_out():
    """Arrays with a tile of classes out and one more; the same with tokens left out, spoiled."""
    hidden, weight, bias, labels, weights = map(np.array, problem())
    bias[:8] = bias[20] = -np.inf  # 0, too, the label that stands in for one that is left out
    labels = 8 + labels % 12
    weights[0, [1, 4]] = weights[2, 2] = 0
    fine = hidden, weight, bias, weights, labels
    hidden, labels = hidden.copy(), labels.copy()
    hidden[0, 1], hidden[0, 4] = np.nan, np.inf
    labels[0, 1], labels[0, 4], labels[2, 2] = -100, 32, 29
    return fine, (hidden, weight, bias, weights, labels)


@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_equation(x64, case):
    """That of a temperature too, which is traced; and with classes and tokens that are out.

    A class of bias -inf is out, and a token of weight 0 leaves no trace.
    """
    program, temperature = derivative(case), temperature_of(case)
    hidden, weight, bias, labels, weights = problem()
    fine, spoiled = some_out()
    plain = hidden, weight, bias, weights, labels
    for arrays, clean in ((plain, plain), (spoiled, fine)):
        *floating, labels = arrays
        (value, _), found = program(*floating, temperature, labels)
        wanted, expected = by_hand(case, *clean)
        kept = np.asarray(clean[3]) != 0
        assert np.isfinite(found[3]).all()
        assert not np.asarray(found[0])[~kept].any()
        found, expected = ((*g[:3], np.where(kept, g[3], 0), g[4]) for g in (found, expected))
        jax.tree.map(
            lambda a, e: close(a, e, jnp.float64, 29 * 21), (value, found), (wanted, expected)
        )


@pytest.mark.parametrize("case", ["one pass, smoothed, squared, warm", "two passes"])
def test_values_without_gradients_and_labels_that_are_known(x64, case):
    """Outside of ``jit`` a label out of range is no error where its token is left out."""
    fine, (hidden, weight, bias, weights, labels) = some_out()
    options, reduction, _, tiles = CASES[case]
    loss = linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, token_weights=weights, reduction=reduction,
        tiles=Tiles(*tiles), **options,
    )  # fmt: skip
    losses, _, _ = exact_loss(*fine[:2], fine[4], bias, **options)
    wanted = losses * weights
    close(loss, wanted if reduction == "none" else wanted.sum(), jnp.float64, 29 * 21)


@pytest.mark.smoke
def test_float32_agrees_with_optax():
    hidden, weight, bias, labels, _ = problem((300,), 64, 1500, jnp.float32)
    weight = np.asarray(weight) / 8

    def theirs(hidden, weight, bias):
        logits = hidden @ weight.T + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def ours(hidden, weight, bias):
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias)

    actual = jax.value_and_grad(ours, (0, 1, 2))(hidden, weight, bias)  # outside of jit
    (expected,) = derived((0, 1, 2), theirs)(hidden, weight, bias)
    jax.tree.map(lambda a, e: close(a, e, jnp.float32, 300), actual, expected)


# In bfloat16 two passes are tested by test_narrow_gradient.py, in float16 one by test_shift.py.
@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [(jnp.bfloat16, "mean"), (jnp.float16, "none")],
)
def test_half_precision_is_accumulated_in_float32(dtype, reduction):
    hidden, weight, _, labels, _ = problem((64,), 32, 3000, jnp.float32)
    hidden, weight = (np.asarray(a).astype(dtype) for a in (hidden, np.asarray(weight) / 6))

    def ours(hidden, weight):
        loss = linear_softmax_cross_entropy(
            hidden, weight, labels, reduction=reduction, tiles=Tiles(64, 1000)
        )
        assert loss.dtype == jnp.float32
        return loss.mean()

    ((value, gradients),) = derived((0, 1), ours)(hidden, weight)
    losses, _, backward = exact_loss(hidden, weight, labels)
    # The inputs are exact in float32 and so is the accumulation; only the softmax and the result
    # are rounded to half precision, once each.
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)
    for gradient, exact in zip(gradients, backward(1 / losses.size)[:2], strict=True):
        assert gradient.dtype == dtype
        error = np.abs(np.asarray(gradient, np.float32) - exact).max() / np.abs(exact).max()
        assert error < 2 * jnp.finfo(dtype).eps


def test_ignored_tokens_leave_no_trace(x64):
    hidden, weight, bias, labels, _ = problem((8,))
    labels, hidden = np.array(labels), np.array(hidden)
    labels[[2, 5]], hidden[2] = -1, np.nan
    kept = np.array([0, 1, 3, 4, 6, 7])

    def ours(hidden, weight, bias, labels, **options):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, ignore_index=-1, **options
        )

    program = derived((0, 1, 2), ours)
    (actual,) = program(hidden, weight, bias, labels)
    losses, _, backward = exact_loss(hidden[kept], weight, labels[kept], bias)
    d_kept, *others = backward(1 / len(kept))[:3]
    d_hidden = np.zeros_like(hidden)
    d_hidden[kept] = d_kept
    expected = losses.mean(), (d_hidden, *others)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 300), actual, expected)
    each, total = (
        np.asarray(ours(hidden, weight, bias, labels, reduction=how)) for how in ("none", "sum")
    )
    close(each[kept], losses, jnp.float64, 300)
    close(total, losses.sum(), jnp.float64, 300)
    assert each[2] == each[5] == 0
    ((nothing, gradients),) = program(hidden, weight, bias, np.full(8, -1))
    assert nothing == 0
    assert not any(np.asarray(g).any() for g in gradients)


def test_vmap(x64):
    hidden, weight, bias, labels, _ = problem((4, 6))

    def gradient(hidden, labels):
        return jax.grad(
            lambda w: linear_softmax_cross_entropy(
                hidden, w, labels, bias=bias, tiles=Tiles(vocab_tile=8)
            )
        )(weight)

    batched = jax.jit(jax.vmap(gradient))(hidden, labels)
    for one, each, true in zip(batched, hidden, labels, strict=True):
        close(one, exact_loss(each, weight, true, bias)[2](1 / 6)[1], jnp.float64, 200)


def test_extreme_logits_stay_finite():
    hidden = jnp.array([[1e4, 0.0], [-1e4, 1.0]], jnp.float32)
    weight = jnp.array([[1.0, 0], [-1, 0], [0, 1]], jnp.float32)

    def loss(hidden, weight):
        return linear_softmax_cross_entropy(
            hidden, weight, jnp.array([0, 0]), tiles=Tiles(vocab_tile=1)
        )

    ((value, gradients),) = derived((0, 1), loss)(hidden, weight)
    np.testing.assert_allclose(value, 1e4)  # (0 + 2e4) / 2
    assert all(np.isfinite(g).all() for g in gradients)


@settings(max_examples=3, deadline=None)
@given(
    tokens=st.integers(1, 9),
    vocab_size=st.integers(1, 40),
    token_tile=st.integers(1, 10),
    vocab_tile=st.integers(1, 41),
    reduction=st.sampled_from(["sum", "none"]),
)
def test_any_shape_and_tile(tokens, vocab_size, token_tile, vocab_tile, reduction):
    with jax.enable_x64(True):
        hidden, weight, bias, labels, _ = problem((tokens,), 3, vocab_size)

        def ours(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden,
                weight,
                labels,
                bias=bias,
                tiles=Tiles(token_tile=token_tile, vocab_tile=vocab_tile),
                reduction=reduction,
            ).sum()

        ((value, gradients),) = derived((0, 1, 2), ours)(hidden, weight, bias)
    losses, _, backward = exact_loss(hidden, weight, labels, bias)
    close(value, losses.sum(), jnp.float64, 400)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 400), gradients, backward(1)[:3])


@pytest.mark.smoke
def test_lowers_for_accelerators():
    hidden, weight, bias, labels, _ = problem((64,), 16, 100, jnp.float32)
    loss = jax.value_and_grad(with_bias(linear_softmax_cross_entropy), (0, 1, 2))
    exported = jax.export.export(jax.jit(loss), platforms=["tpu", "cuda"])(
        hidden, weight, bias, labels
    )
    assert exported.platforms == ("tpu", "cuda")
