"""The exact loss at its edges: integers, classes and tokens that are out, no tokens.

That what is out leaves no trace in any case of the loss, test_exact.py shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import Tiles, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss
from tests.inputs import INTEGER_TYPES, changed, on_device
from tests.kernels.linear_softmax import test_exact as exact
from tests.near import assert_near

OUT = -jnp.inf


def problem(tokens=6, features=5, vocab_size=32, dtype=jnp.float32):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    hidden, weight = (
        on_device(draw.normal(size=(size, features)), dtype) for size in (tokens, vocab_size)
    )
    labels = on_device(draw.integers(8, vocab_size // 2, tokens))
    return hidden, weight, jnp.zeros(vocab_size, dtype), labels


def near(actual, expected, tolerance=1e-5):
    """In float32, sums of some 32 terms of order 1."""
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=tolerance), actual, expected)


def of_case(case, bias, weights, temperature=None, labels=None):
    """What a program of test_exact.py gives: the value, losses, log-sum-exps, and gradients."""
    hidden, weight, _, own_labels, _ = exact.problem()
    temperature = exact.temperature_of(case) if temperature is None else temperature
    (value, (losses, z)), gradients = exact.derivative(case)(
        hidden, weight, bias, weights, temperature, own_labels if labels is None else labels
    )
    return value, losses, z, gradients


def test_labels_of_any_integer_type():
    """Outside of jit, and as arguments of one program."""
    hidden, weight, bias, _ = problem(3, vocab_size=256)
    values = {d: np.array([0, 100, 127 if d == "int8" else 200]) for d in INTEGER_TYPES}
    labels = {d: values[d].astype(d) for d in INTEGER_TYPES}

    def loss(labels):
        return jax.value_and_grad(linear_softmax_cross_entropy)(hidden, weight, labels, bias=bias)

    # Narrower than int32, wider, and of the same width.
    some = {d: labels[d] for d in ("int8", "uint8", "uint32", "int64")}
    traced = jax.jit(lambda labels: jax.tree.map(lambda each: loss(each)[0], labels))(some)
    expected = {d: loss(on_device(values[d], jnp.int32)) for d in ("int8", "int16")}
    for dtype in INTEGER_TYPES:
        wanted = expected["int8" if dtype == "int8" else "int16"]
        near(loss(labels[dtype]), wanted, 0)
        if dtype in some:
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
    near(loss(np.array([156, 3], np.uint8)), loss(np.array([156, 3], np.int32)), 0)
    assert float(loss(np.array([156, 3], np.uint8))[0]) > 0


@pytest.mark.parametrize("case", ["one pass, capped, warm", "two passes, squared, capped, warm"])
def test_a_temperature_of_0_is_found_out(x64, case):
    """Per token: an error where it is known, NaN under ``jit``; and a list is taken."""
    hidden, weight, bias, labels, weights = exact.problem()
    spoiled = changed(exact.EACH, (1, 2), 0)
    with pytest.raises(ValueError, match=r"temperature must be above 0, got 0\.0"):
        linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, temperature=spoiled)
    assert np.isnan(of_case(case, bias, weights, {"temperature": spoiled})[0])
    given = linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, temperature=exact.EACH.tolist()
    )
    losses, _, _ = exact_loss(hidden, weight, labels, bias, temperature=exact.EACH)
    np.testing.assert_allclose(given, losses.mean(), rtol=1e-12)


@pytest.mark.parametrize(
    "case",
    ["two passes", "two passes, squared, capped, warm", "two passes, smoothed, squared, capped"],
)
def test_a_label_whose_class_is_out_costs_infinity_and_spoils_no_other_token(x64, case):
    _, _, bias, labels, weights = exact.problem()
    bias, labels = changed(bias, 0, OUT), np.where(np.asarray(labels) == 0, 1, labels)
    labels[1, 3] = 0
    _, losses, _, (d_hidden, d_weight, d_bias, *_) = of_case(case, bias, weights, labels=labels)
    assert np.argwhere(np.isposinf(losses)).tolist() == [[1, 3]]
    assert np.isfinite(losses).sum() == losses.size - 1
    assert np.isfinite(d_hidden).all()
    assert not np.asarray(d_weight)[0].any()
    assert d_bias[0] == 0


@pytest.mark.parametrize("case", ["one pass, smoothed, squared, warm", "two passes"])
def test_a_large_bias_is_no_softmax_of_a_token_that_is_not_there(x64, case):
    """Of tokens that fill up a tile, or that are left out, exp(bias) alone would overflow."""
    hidden, weight, bias, labels, weights = exact.problem()
    bias, weights = np.full_like(bias, 1500), np.array(changed(weights, (0, 3), 0))
    value, _, _, gradients = of_case(case, bias, weights)
    wanted, expected = exact.by_hand(case, hidden, weight, bias, weights, labels)
    gradients, expected = ((*g[:3], np.where(weights == 0, 0, g[3])) for g in (gradients, expected))
    # The logits are some 1000, and rounded as those are.
    assert_near((value, gradients), (wanted, expected), 1e-11, 1.0)


@pytest.mark.parametrize("case", ["one pass", "two passes"])
def test_no_token_and_no_class_is_no_loss(x64, case):
    value, _, _, gradients = of_case(case, np.full(29, OUT), np.zeros((3, 7)))
    assert value == 0
    assert not any(np.asarray(gradient).any() for gradient in gradients[:3])


def test_what_overflows_costs_infinity_and_float16_does_not_by_a_temperature():
    hidden, weight = np.full((1, 1), 1e30, np.float32), np.array([[1e30], [1.0]], np.float32)
    for reduction in ("mean", "none"):
        loss = linear_softmax_cross_entropy(hidden, weight, [1], reduction=reduction)
        assert np.isposinf(loss).all()
    hidden, weight, _, labels = map(np.asarray, problem())
    hidden, weight = (4000 * hidden).astype(np.float16), (weight / 4000).astype(np.float16)
    for temperature in (0.01, np.linspace(0.01, 0.02, 6)):
        loss = linear_softmax_cross_entropy(hidden, weight, labels, temperature=temperature)
        losses, _, _ = exact_loss(hidden, weight, labels, temperature=temperature)
        np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)


def test_a_term_whose_factor_is_0_may_be_infinite():
    hidden, weight = np.full((1, 1), 2e19, np.float32), np.ones((1, 1), np.float32)

    @jax.jit
    def both(hidden):  # one pass and two
        return [
            jax.value_and_grad(
                lambda hidden, how=how: linear_softmax_cross_entropy(
                    hidden, weight, [0], z_loss=0, reduction=how
                ).sum()
            )(hidden)
            for how in ("mean", "none")
        ]

    near(both(hidden), [(0.0, np.zeros((1, 1)))] * 2, 0)
    out, one = np.float32([OUT, 0.0]), np.ones((1, 1), np.float32)
    smoothed = linear_softmax_cross_entropy(
        one, np.ones((2, 1), np.float32), [0], bias=out, label_smoothing=1
    )
    near(smoothed, 0.0, 1e-6)  # the uniform part alone, of the one class that is in


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_no_tokens(reduction):
    hidden, weight, bias, labels = map(np.asarray, problem())
    hidden, labels = hidden[:0], labels[:0]

    def loss(hidden, weight, bias):
        loss, z = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, reduction=reduction, return_log_sum_exp=True
        )
        return loss.sum() + z.sum()

    found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, weight, bias)
    for value in jax.tree.leaves(found):
        assert not np.asarray(value).any()
    assert linear_softmax_cross_entropy(hidden, weight, [], bias=bias) == 0
    with pytest.raises(ValueError, match="weight"):
        linear_softmax_cross_entropy(hidden, weight[:0], labels)


def test_strict_modes(x64, strict_modes):
    """Ranks and types show while tracing, of few bits; one pass and two are run."""
    hidden, weight, _, labels = problem(dtype=jnp.bfloat16)
    bias = np.where(np.arange(32) < 8, np.float32(OUT), np.float32(0))
    weights = np.array([1, 0, 1, 1, 1, 1])
    smoothed = {"label_smoothing": 0.2, "z_loss": 1e-2, "temperature": 1.5}

    def derived(options, reduction):
        def loss(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, token_weights=weights, reduction=reduction,
                tiles=Tiles(token_tile=4, vocab_tile=12), **options,
            ).sum()  # fmt: skip

        return jax.value_and_grad(loss, (0, 1, 2))

    for options, reduction in (
        ({}, "mean"), (smoothed, "mean"),
        ({**smoothed, "soft_cap": 2.0}, "none"),
    ):  # fmt: skip
        jax.eval_shape(derived(options, reduction), hidden, weight, bias)
    _, (*spoiled, labels) = exact.some_out()
    for case in ("one pass, smoothed, squared, warm", "two passes, smoothed, squared, capped"):
        found = exact.derivative(case)(*spoiled, exact.temperature_of(case), labels)
        assert all(np.isfinite(value).all() for value in jax.tree.leaves(found))
