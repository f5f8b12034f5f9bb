"""Log-probabilities, entropies and their gradients, against whole logits in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import Tiles, VocabSharding, linear_log_probs, linear_softmax_cross_entropy
from tests.exact_loss import exact_log_probs
from tests.inputs import changed, on_device
from tests.sharding.split import assert_traces
from tests.slopes import assert_backward

TOKENS, FEATURES, VOCAB = (2, 5), 4, 23
OPTIONS = [{}, {"temperature": 0.6}, {"soft_cap": 2.0, "temperature": "each"}]


def problem(vocab_size=VOCAB):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing
    shapes = (*TOKENS, FEATURES), (vocab_size, FEATURES), (vocab_size,)
    hidden, weight, bias = (on_device(draw.normal(size=s), jnp.float32) for s in shapes)
    return hidden, weight, bias, on_device(draw.integers(0, vocab_size, TOKENS))


def waves(shape):
    return np.sin(np.arange(3 * np.prod(shape), dtype=np.float32)).reshape(3, *shape)


def mixed(results):
    """Each number of the first three by a weight of its own."""
    factors = waves(results[0].shape)
    return sum((wave * result).sum() for wave, result in zip(factors, results[:3], strict=True))


@pytest.mark.parametrize(
    ("options", "features_first"),
    [
        pytest.param(OPTIONS[0], True, marks=pytest.mark.smoke),
        (OPTIONS[1], True),
        (OPTIONS[2], False),
    ],
    ids=str,
)
def test_values_and_gradients(x64, options, features_first):
    """And where a token is left out, which leaves no trace, and where a label is out of range."""
    hidden, weight, bias, labels = problem()
    hidden, weight, bias = (np.asarray(a, np.float64) for a in (hidden, weight, bias))
    bias[:7] = bias[20] = -np.inf  # the first tile of classes, and one more
    labels = 7 + np.asarray(labels) % 13
    each = np.linspace(0.5, 2.0, labels.size).reshape(labels.shape)
    tiles = Tiles(token_tile=3, vocab_tile=7)

    @jax.jit
    def program(hidden, weight, bias, temperature, labels):
        def loss(hidden, weight, bias, temperature):
            results = linear_log_probs(
                hidden, weight.T if features_first else weight, labels, bias=bias,
                features_first=features_first, tiles=tiles, ignore_index=-100,
                **{**options, "temperature": temperature},
            )  # fmt: skip
            return mixed(results), results

        return jax.grad(loss, (0, 1, 2, 3), has_aux=True)(hidden, weight, bias, temperature)

    scale = options.get("temperature", 1.0)
    arrays = hidden, weight, bias, each if scale == "each" else np.asarray(scale)
    wanted, backward = exact_log_probs(
        hidden, weight, labels, bias, **{**options, "temperature": arrays[3]}
    )
    out = np.zeros(TOKENS, bool)
    out[0, 1] = True
    spoiled = np.where(out[..., None], np.nan, hidden), *arrays[1:], np.where(out, -100, labels)
    for given, kept in (((*arrays, labels), np.ones(TOKENS, bool)), (spoiled, ~out)):
        got, found = program(*given)
        *expected, of_temperature = backward(*(kept * wave for wave in waves(TOKENS)))
        expected.append(of_temperature if scale == "each" else of_temperature.sum())
        for a, b in zip(found[:4], wanted, strict=True):
            np.testing.assert_allclose(a, np.where(kept, b, 0), rtol=1e-12, atol=1e-12)
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)
    _, found = program(*arrays, np.where(out, VOCAB, labels))
    np.testing.assert_array_equal(np.isnan(found.log_prob), out)
    assert np.isfinite(found.entropy).all()


def test_gradients_by_hand_are_slopes():
    """Of ``exact_log_probs``, by differences that compile nothing."""
    hidden, weight, bias, labels = problem()
    arrays = [np.asarray(a, np.float64) for a in (hidden, weight, bias)]

    def by_hand(hidden, weight, bias):
        (*results, _), backward = exact_log_probs(hidden, weight, labels, bias)
        return *results, backward

    *_, backward = by_hand(*arrays)
    assert_backward(by_hand, arrays, backward(*waves(TOKENS))[:3], waves(TOKENS))


@pytest.mark.parametrize("k", [1, 23])  # some, more than a tile has: over devices, below
def test_the_best_classes(k):
    """Equal logits in the order of their classes, classes that are out at the end."""
    hidden, weight, bias, labels = (2 * np.asarray(a) for a in problem())
    hidden, weight, bias = hidden.round(), weight.round(), bias.round()
    bias[[2, 20]] = -np.inf
    labels = np.where(np.isin(labels // 2, [2, 20]), 0, labels // 2)
    labels[1, 1] = -1

    def found(hidden, weight, bias):
        return linear_log_probs(
            hidden, weight, labels, bias=bias, top_k=k, ignore_index=-1, tiles=Tiles(vocab_tile=4)
        )

    got = jax.tree.map(np.asarray, jax.jit(found)(hidden, weight, bias))
    logits = hidden @ weight.T + bias
    wanted = np.argsort(-logits, -1, stable=True)[..., :k]
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    kept = labels != -1
    np.testing.assert_array_equal(got.top_ids, np.where(kept[..., None], wanted, 0))
    np.testing.assert_array_equal(got.top_ids[..., 0], got.argmax)
    values = np.where(kept[..., None], np.take_along_axis(log_p, wanted, -1), 0)
    np.testing.assert_allclose(got.top_log_probs, values, rtol=1e-5, atol=1e-5)


def test_without_jit():
    hidden, weight, bias, labels = problem()
    bad = changed(hidden, (0, 1), np.nan), changed(labels, (0, 1), -100)
    found = linear_log_probs(bad[0], weight, bad[1], bias=bias, ignore_index=-100)
    assert all(np.asarray(a)[0, 1] == 0 for a in found[:4])
    nothing = linear_log_probs(hidden[:0], weight, labels[:0], bias=bias, top_k=3)
    assert [a.shape for a in nothing] == [(0, 5)] * 4 + [(0, 5, 3)] * 2
    with pytest.raises(
        ValueError, match=r"labels must lie in \[0, vocab_size\) = \[0, 23\), got 23"
    ):
        linear_log_probs(hidden, weight, changed(labels, (1, 2), VOCAB), bias=bias)


@pytest.mark.parametrize("logit", [1e4, -1e4, 3e38])
def test_extreme_logits(logit):
    weight = jnp.array([[1.0, 0], [0, 1], [-1, 0]])
    found = linear_log_probs(jnp.array([[logit, 0.0]]), weight, [0], tiles=Tiles(vocab_tile=1))
    assert found.argmax.tolist() == [0 if logit > 0 else 2]
    assert np.isfinite(found.log_sum_exp).all()
    np.testing.assert_allclose(found.entropy, 0, atol=1e-6)


def test_bfloat16_is_accumulated_in_float32():
    hidden, weight, bias, labels = (
        np.asarray(a, jnp.bfloat16) if a.dtype == jnp.float32 else a for a in problem(900)
    )
    found = linear_log_probs(hidden, weight, labels, bias=bias)
    wide = [a.astype(np.float32) for a in (hidden, weight, bias)]
    wanted, _ = exact_log_probs(*wide[:2], labels, wide[2])
    for a, b in zip(found[:3], wanted[:3], strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_over_devices():
    explicit, auto = (
        VocabSharding(
            jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind, kind)), "vocab", "data"
        )
        for kind in (AxisType.Explicit, AxisType.Auto)
    )
    hidden, weight, bias, labels = problem(24)
    bias = changed(bias, slice(6), -np.inf)  # a whole shard is out
    labels = 6 + np.asarray(labels) % 18

    def results(hidden, weight, bias, sharding=None):
        return linear_log_probs(hidden, weight, labels, bias=bias, sharding=sharding, top_k=9)

    def derived(sharding):
        def loss(*arrays):
            found = results(*arrays, sharding)
            return mixed(found), found

        return jax.grad(loss, (0, 1, 2), has_aux=True)

    grads, got = jax.jit(derived(explicit))(hidden, weight, bias)
    assert_traces(derived(auto), (hidden, weight, bias), (grads, got))
    wanted, backward = exact_log_probs(hidden, weight, labels, bias)
    for a, b in zip(got[:4], wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads, backward(*waves(TOKENS))[:3], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    logits = np.asarray(hidden) @ np.asarray(weight).T + np.asarray(bias)
    best = np.argsort(-logits, -1, stable=True)[..., :9]
    assert got.top_ids.dtype == jnp.int32
    np.testing.assert_array_equal(got.top_ids, best)
    values = np.take_along_axis(logits, best, -1) - wanted[2][..., None]
    np.testing.assert_allclose(got.top_log_probs, values, rtol=1e-5, atol=1e-6)
    mean = jax.jit(lambda h: results(h, weight, bias).entropy.mean())
    rows = jax.device_put(hidden, jax.NamedSharding(explicit.mesh, jax.P("data")))
    np.testing.assert_allclose(mean(rows), wanted[1].mean(), rtol=1e-5)


SHAPES = (
    jax.ShapeDtypeStruct((2048, 256), jnp.float32),
    jax.ShapeDtypeStruct((16_384, 256), jnp.float32),
    jax.ShapeDtypeStruct((2048,), jnp.int32),
)


def temporaries(loss, *shapes):
    """The bytes that a value and its gradients take, and the program, without whole logits."""
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    assert not re.search(r"f32\[2048,16384\]", compiled.as_text())
    return compiled.memory_analysis().temp_size_in_bytes


def a_loss_a_token(hidden, weight, labels):
    return linear_softmax_cross_entropy(hidden, weight, labels, reduction="none").mean()


def test_memory_is_that_of_a_loss_a_token():
    """Within 1.2 of the loss with the reduction "none", with an entropy bonus and gradients."""

    def bonus(hidden, weight, labels):
        found = linear_log_probs(hidden, weight, labels)
        return -(found.log_prob + 0.01 * found.entropy).mean()

    assert temporaries(bonus, *SHAPES) < 1.2 * temporaries(a_loss_a_token, *SHAPES)


def test_bad_top_k(users_checks):
    hidden, weight, bias, labels = problem()
    for k, message in ((0, "top_k must be at least 1, got 0"), (24, r"\[1, 23\], got 24")):
        with pytest.raises(ValueError, match=message):
            linear_log_probs(hidden, weight, labels, bias=bias, top_k=k)
    with pytest.raises(TypeError, match="top_k must be an integer"):
        linear_log_probs(hidden, weight, labels, bias=bias, top_k=2.0)
