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
from tests.with_bias import with_bias


def problem(tokens=(3, 7), features=5, vocab_size=29, dtype=jnp.float64, seed=0):
    draw = np.random.default_rng(seed)  # of NumPy, which compiles nothing
    shapes = (*tokens, features), (vocab_size, features), (vocab_size,)
    hidden, weight, bias = (jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes)
    labels = jnp.asarray(draw.integers(0, vocab_size, tokens))
    return hidden, weight, bias, labels, jnp.asarray(draw.uniform(size=tokens), dtype)


def close(actual, expected, dtype, depth):
    """To rounding: an error of eps a term, growing as a random walk over ``depth`` terms, x 16."""
    tolerance = 16 * float(jnp.finfo(dtype).eps) * depth**0.5
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, atol=tolerance * (np.abs(expected).max() + 1.0))


def derived(where, *functions):
    """Values and gradients of each function of the same arrays, by one program."""
    return jax.jit(lambda *arrays: [jax.value_and_grad(f, where)(*arrays) for f in functions])


SMOOTHED, SQUARED = {"label_smoothing": 0.2}, {"z_loss": 1e-2}
CAPPED, WARM = {"soft_cap": 2.0}, {"temperature": 1.5}
# Options, reduction, with the log-sum-exp, tiles: of one pass and of two, any two options are met
# in every state of both, every reduction, and tiles that hold all, some, or just what there is.
ONE_PASS = [
    ({}, "mean", False, (128, 1024)),
    ({**SMOOTHED, **SQUARED, **WARM}, "sum", False, (4, 8)),
    ({**SQUARED, **CAPPED}, "mean", False, (5, 29)),
    ({**CAPPED, **WARM}, "sum", False, (1, 7)),
    (SMOOTHED, "mean", False, (4, 8)),
]
TWO_PASSES = [
    ({}, "none", False, (4, 8)),
    ({**SQUARED, **CAPPED, **WARM}, "none", True, (5, 29)),
    ({**SMOOTHED, **CAPPED, **WARM}, "mean", False, (1, 7)),
    ({**SMOOTHED, **SQUARED, **WARM}, "sum", True, (128, 1024)),
    ({**SMOOTHED, **SQUARED, **CAPPED}, "none", False, (4, 8)),
]
COTANGENT = np.random.default_rng(9).normal(size=(3, 7))


def test_the_reference_is_the_equation_by_hand(x64):
    hidden, weight, bias, labels, weights = map(np.array, problem())
    bias[11], labels[labels == 11] = -np.inf, 0

    def theirs(options, *arrays):
        hidden, weight, bias, temperature = arrays
        losses, z = reference.linear_softmax_cross_entropy(
            hidden, weight, jnp.asarray(labels), bias=bias, temperature=temperature, **options
        )
        return (losses * COTANGENT + z * weights).sum(), (losses, z)

    every = [{}, {"label_smoothing": 0.2, "z_loss": 1e-2, "soft_cap": 3.0}]
    arrays = hidden, weight, bias, 0.5 + weights
    found = jax.jit(
        lambda *arrays: [
            jax.value_and_grad(functools.partial(theirs, options), (0, 1, 2, 3), has_aux=True)(
                *arrays
            )
            for options in every
        ]
    )(*arrays)
    for options, ((_, values), gradients) in zip(every, found, strict=True):
        *expected, backward = exact_loss(
            hidden, weight, labels, bias, temperature=arrays[3], **options
        )
        actual, wanted = (values, gradients), (tuple(expected), backward(COTANGENT, weights))
        jax.tree.map(lambda a, e: close(a, e, jnp.float64, 29 * 21), actual, wanted)


@pytest.mark.parametrize("case", ONE_PASS + TWO_PASSES, ids=str)
def test_value_and_gradients_equal_the_equation(x64, case):
    """That of a temperature too, which is traced; without gradients, one loss of each reduction."""
    options, reduction, with_log_sum_exp, tiles = case
    *arrays, labels, weights = problem()
    temperature = {name: options[name] for name in options if name == "temperature"}

    def ours(hidden, weight, bias, weights, temperature):
        found = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, token_weights=weights, reduction=reduction,
            tiles=Tiles(*tiles), return_log_sum_exp=with_log_sum_exp, **{**options, **temperature},
        )  # fmt: skip
        loss, z = found if with_log_sum_exp else (found, jnp.zeros(()))
        return ((loss * COTANGENT).sum() if reduction == "none" else 3 * loss) + jnp.sin(z).sum()

    arrays = *arrays, weights, temperature
    actual = jax.jit(jax.value_and_grad(ours, (0, 1, 2, 3, 4)))(*arrays)
    losses, z, backward = exact_loss(*arrays[:2], labels, arrays[2], **options)
    weights = np.asarray(weights)
    total = weights.sum()
    factors = {"none": COTANGENT, "sum": 3, "mean": 3 / total}[reduction]
    value = (factors * losses * weights).sum()
    d_weights = factors * losses - (value / total if reduction == "mean" else 0)
    *expected, d_temperature = backward(factors * weights, np.cos(z) * with_log_sum_exp)
    of_temperature = dict.fromkeys(temperature, d_temperature.sum())
    value += np.sin(z).sum() * with_log_sum_exp
    expected = value, (*expected, d_weights, of_temperature)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 29 * 21), actual, expected)
    if case in (ONE_PASS[0], ONE_PASS[1], TWO_PASSES[0]):
        close(jax.jit(ours)(*arrays), value, jnp.float64, 29)


@pytest.mark.smoke
def test_float32_agrees_with_optax():
    hidden, weight, bias, labels, _ = problem((300,), 64, 1500, jnp.float32)
    weight = weight / 8

    def theirs(hidden, weight, bias):
        logits = hidden @ weight.T + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def ours(hidden, weight, bias):
        return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias)

    actual = jax.value_and_grad(ours, (0, 1, 2))(hidden, weight, bias)  # outside of jit
    (expected,) = derived((0, 1, 2), theirs)(hidden, weight, bias)
    jax.tree.map(lambda a, e: close(a, e, jnp.float32, 300), actual, expected)


# In bfloat16 two passes are tested by test_narrow_gradient.py.
@pytest.mark.parametrize(
    ("dtype", "reduction"),
    [(jnp.bfloat16, "mean"), (jnp.float16, "mean"), (jnp.float16, "none")],
)
def test_half_precision_is_accumulated_in_float32(dtype, reduction):
    hidden, weight, _, labels, _ = problem((64,), 32, 3000, jnp.float32)
    hidden, weight = hidden.astype(dtype), (weight / 6).astype(dtype)

    def ours(hidden, weight):
        loss = linear_softmax_cross_entropy(hidden, weight, labels, reduction=reduction)
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


def test_ignored_and_weightless_tokens_leave_no_trace(x64):
    hidden, weight, bias, labels, _ = problem((8,))
    labels, hidden = np.array(labels), np.array(hidden)
    labels[[2, 5]], hidden[2] = -1, np.nan
    kept = np.array([0, 1, 3, 4, 6, 7])
    cases = (("mean", 0.1), ("sum", 0.0))

    def ours(case, hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden,
            weight,
            labels,
            bias=bias,
            ignore_index=-1,
            reduction=case[0],
            label_smoothing=case[1],
        )

    functions = [functools.partial(ours, case) for case in cases]
    found = derived((0, 1, 2), *functions)(hidden, weight, bias)
    for (reduction, smoothing), actual in zip(cases, found, strict=True):
        losses, _, backward = exact_loss(
            hidden[kept], weight, labels[kept], bias, label_smoothing=smoothing
        )
        factor = 1 / len(kept) if reduction == "mean" else 1
        d_kept, *others = backward(factor)[:3]
        d_hidden = np.zeros_like(hidden)
        d_hidden[kept] = d_kept
        expected = factor * losses.sum(), (d_hidden, *others)
        jax.tree.map(lambda a, e: close(a, e, jnp.float64, 300), actual, expected)
    losses = linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, ignore_index=-1, reduction="none"
    )
    assert losses[2] == 0
    assert losses[5] == 0
    nothing = linear_softmax_cross_entropy(
        hidden, weight, jnp.full(8, -1), bias=bias, ignore_index=-1
    )
    assert nothing == 0


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


def test_logits_are_never_whole_in_memory():
    """At a size where the logits take 67 MB: the temporaries stay below a 20th of naive's."""
    hidden = jax.ShapeDtypeStruct((2048, 64), jnp.float32)
    weight = jax.ShapeDtypeStruct((8192, 64), jnp.float32)
    labels = jax.ShapeDtypeStruct((2048,), jnp.int32)

    def memory(loss):
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(hidden, weight, labels).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    lean = Tiles(memory_mb=6)
    ours = memory(lambda h, w, y: linear_softmax_cross_entropy(h, w, y, tiles=lean))
    naive = memory(lambda h, w, y: reference.linear_softmax_cross_entropy(h, w, y)[0].mean())
    assert ours * 20 < naive


@pytest.mark.smoke
def test_lowers_for_accelerators():
    hidden, weight, bias, labels, _ = problem((64,), 16, 100, jnp.float32)
    loss = jax.value_and_grad(with_bias(linear_softmax_cross_entropy), (0, 1, 2))
    exported = jax.export.export(jax.jit(loss), platforms=["tpu", "cuda"])(
        hidden, weight, bias, labels
    )
    assert exported.platforms == ("tpu", "cuda")
