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
from tests.slopes import assert_slopes
from tests.with_bias import with_bias

OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 1e-2},
    {"soft_cap": 2.0},
    {"temperature": 0.7},
    {"label_smoothing": 0.2, "z_loss": 1e-2, "soft_cap": 3.0, "temperature": 1.5},
    {"label_smoothing": 0.2, "z_loss": 1e-2, "temperature": 1.5},
    {"z_loss": 1e-2, "soft_cap": 3.0},
]


def problem(tokens=(3, 7), features=5, vocab_size=29, dtype=jnp.float64, seed=0):
    draw = np.random.default_rng(seed)  # of NumPy, which compiles nothing
    shapes = (*tokens, features), (vocab_size, features), (vocab_size,)
    hidden, weight, bias = (jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes)
    labels = jnp.asarray(draw.integers(0, vocab_size, tokens))
    return hidden, weight, bias, labels, jnp.asarray(draw.uniform(size=tokens), dtype)


def plain(hidden, weight, bias, labels, weights, reduction, **options):
    losses, log_sum_exp = reference.linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, **options
    )
    if weights is not None:
        losses = losses * weights
    total = losses.size if weights is None else weights.sum()
    reduced = {"none": losses, "sum": losses.sum(), "mean": losses.sum() / total}[reduction]
    return reduced, log_sum_exp


def close(actual, expected, dtype, depth):
    """To rounding: an error of eps a term, growing as a random walk over ``depth`` terms, x 16."""
    tolerance = 16 * float(jnp.finfo(dtype).eps) * depth**0.5
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, atol=tolerance * (np.abs(expected).max() + 1.0))


def derived(where, *functions):
    """Values and gradients of each function of the same arrays, by one program."""
    return jax.jit(lambda *arrays: [jax.value_and_grad(f, where)(*arrays) for f in functions])


REDUCTIONS = ("mean", "sum", "none")
TILES = [(128, 1024), (4, 8), (5, 29), (1, 7)]
# None, and several options at once, with tiles in full; one alone with every other.
CASES = [
    (options, REDUCTIONS[(m + n) % 3], *tiles)
    for m, options in enumerate(OPTIONS)
    for n, tiles in enumerate(TILES)
    if len(options) != 1 or (m + n) % 2
]
COTANGENT = np.random.default_rng(9).normal(size=(3, 7))


@functools.cache
def expected_of(number):
    """The reference's values and gradients with options of this number, by reduction."""
    hidden, weight, bias, labels, weights = problem()

    def total(reduction):
        def theirs(hidden, weight, bias, weights):
            loss, _ = plain(hidden, weight, bias, labels, weights, reduction, **OPTIONS[number])
            return (loss * COTANGENT).sum() if reduction == "none" else 3 * loss

        return theirs

    results = derived((0, 1, 2, 3), *map(total, REDUCTIONS))(hidden, weight, bias, weights)
    return dict(zip(REDUCTIONS, results, strict=True))


@pytest.mark.parametrize(("options", "reduction", "token_tile", "vocab_tile"), CASES, ids=str)
def test_value_and_gradients_equal_the_reference(x64, options, reduction, token_tile, vocab_tile):
    arrays = problem()

    def ours(hidden, weight, bias, weights):
        loss = linear_softmax_cross_entropy(
            hidden, weight, arrays[3], bias=bias, token_weights=weights, reduction=reduction,
            tiles=Tiles(token_tile=token_tile, vocab_tile=vocab_tile), **options,
        )  # fmt: skip
        return (loss * COTANGENT).sum() if reduction == "none" else 3 * loss

    inputs = (*arrays[:3], arrays[4])
    expected = expected_of(OPTIONS.index(options))[reduction]
    without_gradient, actual = jax.jit(
        lambda *a: (ours(*a), jax.value_and_grad(ours, (0, 1, 2, 3))(*a))
    )(*inputs)
    close(without_gradient, expected[0], jnp.float64, 29)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 29 * 21), actual, expected)


@pytest.mark.parametrize("options", [o for o in OPTIONS if len(o) != 1], ids=str)
def test_log_sum_exp_is_returned_and_differentiable(x64, options):
    hidden, weight, bias, labels, _ = problem()

    def mix(loss, log_sum_exp):
        return loss + jnp.sin(log_sum_exp).sum()

    def ours(hidden, weight, bias):
        return mix(
            *linear_softmax_cross_entropy(
                hidden,
                weight,
                labels,
                bias=bias,
                return_log_sum_exp=True,
                tiles=Tiles(vocab_tile=8),
                **options,
            )
        )

    def theirs(hidden, weight, bias):
        return mix(*plain(hidden, weight, bias, labels, None, "mean", **options))

    actual, expected = derived((0, 1, 2), ours, theirs)(hidden, weight, bias)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 29 * 21), actual, expected)


@pytest.mark.parametrize(("smoothing", "reduction"), [(0.0, "mean"), (0.1, "none")])
def test_gradients_numerically(x64, smoothing, reduction):
    hidden, weight, bias, labels, weights = problem(tokens=(4,), features=3, vocab_size=7)

    def loss(hidden, weight, bias, weights, temperature):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, token_weights=weights, z_loss=0.01,
            label_smoothing=smoothing, temperature=temperature, reduction=reduction,
            tiles=Tiles(token_tile=2, vocab_tile=3),
        )  # fmt: skip

    assert_slopes(loss, (hidden, weight, bias, weights, 1.3), 1e-7)


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


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_half_precision_is_accumulated_in_float32(dtype, reduction):
    hidden, weight, _, labels, _ = problem((64,), 32, 3000, jnp.float32)
    hidden, weight = hidden.astype(dtype), (weight / 6).astype(dtype)

    def ours(hidden, weight):
        loss = linear_softmax_cross_entropy(hidden, weight, labels, reduction=reduction)
        assert loss.dtype == jnp.float32
        return loss.mean()

    def theirs(hidden, weight):
        return plain(hidden, weight, None, labels, None, "mean")[0]

    ((value, gradients),) = derived((0, 1), ours)(hidden, weight)
    wide = (hidden.astype(jnp.float32), weight.astype(jnp.float32))
    ((expected, expected_gradients),) = derived((0, 1), theirs)(*wide)
    # The inputs are exact in float32 and so is the accumulation; only the softmax and the result
    # are rounded to half precision, once each.
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert gradient.dtype == dtype
        exact = np.asarray(exact)
        error = np.abs(np.asarray(gradient, np.float32) - exact).max() / np.abs(exact).max()
        assert error < 2 * jnp.finfo(dtype).eps


def test_ignored_and_weightless_tokens_leave_no_trace(x64):
    hidden, weight, bias, labels, _ = problem((8,))
    labels, hidden = np.array(labels), np.array(hidden)
    labels[[2, 5]], hidden[2] = -1, np.nan
    kept = np.array([0, 1, 3, 4, 6, 7])
    functions = []
    for reduction, smoothing in (("mean", 0.1), ("sum", 0.0)):

        def ours(hidden, weight, bias, reduction=reduction, smoothing=smoothing):
            return linear_softmax_cross_entropy(
                hidden,
                weight,
                labels,
                bias=bias,
                ignore_index=-1,
                reduction=reduction,
                label_smoothing=smoothing,
            )

        def theirs(hidden, weight, bias, reduction=reduction, smoothing=smoothing):
            options = {"label_smoothing": smoothing}
            true = jnp.asarray(labels[kept])
            return plain(hidden[kept], weight, bias, true, None, reduction, **options)[0]

        functions += [ours, theirs]
    found = derived((0, 1, 2), *functions)(hidden, weight, bias)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 300), found[::2], found[1::2])
    losses = linear_softmax_cross_entropy(
        hidden, weight, labels, bias=bias, ignore_index=-1, reduction="none"
    )
    assert losses[2] == 0
    assert losses[5] == 0
    nothing = linear_softmax_cross_entropy(
        hidden, weight, jnp.full(8, -1), bias=bias, ignore_index=-1
    )
    assert nothing == 0


def test_vmap_equals_a_loop(x64):
    hidden, weight, bias, labels, _ = problem((4, 6))

    def gradient(hidden, labels):
        return jax.grad(
            lambda w: linear_softmax_cross_entropy(
                hidden, w, labels, bias=bias, tiles=Tiles(vocab_tile=8)
            )
        )(weight)

    one, batched = jax.jit(gradient), jax.jit(jax.vmap(gradient))(hidden, labels)
    for i in range(4):
        close(batched[i], one(hidden[i], labels[i]), jnp.float64, 200)


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


@settings(max_examples=8, deadline=None)
@given(
    tokens=st.integers(1, 9),
    vocab_size=st.integers(1, 40),
    token_tile=st.integers(1, 10),
    vocab_tile=st.integers(1, 41),
    reduction=st.sampled_from(["sum", "none"]),
)
def test_any_shape_and_tile(tokens, vocab_size, token_tile, vocab_tile, reduction):
    """Against the gradient by hand: that of a logit is its softmax, less 1 of the label."""
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
    hidden, weight, bias, labels = map(np.asarray, (hidden, weight, bias, labels))
    softmax = np.exp(hidden @ weight.T + bias)
    softmax /= softmax.sum(1, keepdims=True)
    of_labels = softmax[np.arange(tokens), labels]
    d_logits = softmax - np.eye(vocab_size)[labels]
    expected = d_logits @ weight, d_logits.T @ hidden, d_logits.sum(0)
    close(value, -np.log(of_labels).sum(), jnp.float64, 400)
    jax.tree.map(lambda a, e: close(a, e, jnp.float64, 400), gradients, expected)


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
    naive = memory(lambda h, w, y: plain(h, w, None, y, None, "mean")[0])
    assert ours * 20 < naive


@pytest.mark.smoke
def test_lowers_for_accelerators():
    hidden, weight, bias, labels, _ = problem((64,), 16, 100, jnp.float32)
    loss = jax.value_and_grad(with_bias(linear_softmax_cross_entropy), (0, 1, 2))
    exported = jax.export.export(jax.jit(loss), platforms=["tpu", "cuda"])(
        hidden, weight, bias, labels
    )
    assert exported.platforms == ("tpu", "cuda")
