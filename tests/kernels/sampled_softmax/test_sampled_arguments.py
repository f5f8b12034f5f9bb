"""Arguments of sampled losses and samplers: ids and weights that are too wide, any keys, lists."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    LogUniform,
    Samples,
    Unigram,
    draw_samples,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    nce_loss,
    sampled_softmax_cross_entropy,
)
from tests.sampled_losses import sampled_loss

HIDDEN = np.cos(np.arange(12, dtype=np.float32)).reshape(4, 3)
WEIGHT = np.sin(np.arange(30, dtype=np.float32)).reshape(10, 3)
SAMPLES = jax.jit(lambda: Samples.from_candidates([1, 4, 7], [0, 1, 2, 3]))()


def loss(labels, **options):
    return sampled_softmax_cross_entropy(HIDDEN, WEIGHT, labels, SAMPLES, **options)


@pytest.mark.parametrize("index", [-1, -(2**63), 2**62, np.int64(-100), 10])
def test_ignore_index_of_any_size(index):
    labels = np.array([0, 1, index, 3])
    expected = loss([0, 1, 2, 3], token_weights=[1, 1, 0, 1])
    # Within jit; what passes its door as an argument JAX has cut to 32 bits.
    for ignoring in (loss, lambda *a, **o: jax.jit(lambda: loss(*a, **o))()):
        np.testing.assert_allclose(ignoring(labels, ignore_index=index), expected, rtol=1e-6)
    items = in_batch_softmax_cross_entropy(HIDDEN, HIDDEN, labels, ignore_index=index)
    expected = in_batch_softmax_cross_entropy(HIDDEN, HIDDEN, [0, 1, 2, 3], mask=[1, 1, 0, 1])
    np.testing.assert_allclose(items, expected, rtol=1e-6)


@pytest.mark.usefixtures("users_checks")
def test_ignore_index_is_an_integer():
    for wrong in (2.0, True):
        with pytest.raises(TypeError, match="ignore_index must be an integer"):
            loss([0, 1, 2, 3], ignore_index=wrong)
        with pytest.raises(TypeError, match="ignore_index must be an integer"):
            in_batch_softmax_cross_entropy(HIDDEN, HIDDEN, [0, 1, 2, 3], ignore_index=wrong)


def test_weights_of_64_bits_and_lists():
    exact = loss([0, 1, 2, 3], token_weights=jnp.array([2.0**33, 1, 0, 1]))
    for weights in (np.array([2**33, 1, 0, 1]), [2**33, 1, 0, 1]):
        assert loss([0, 1, 2, 3], token_weights=weights) == exact
    some = loss([0, 1, 2, 3], token_weights=[1, 1, 0, 1])
    traced = jax.jit(lambda one: loss([one - one, one, 2, 3], token_weights=[one, 1, 0, one]))
    np.testing.assert_allclose(traced(jnp.int32(1)), some, rtol=1e-6)
    queries = jax.jit(
        lambda one: in_batch_softmax_cross_entropy(
            HIDDEN, HIDDEN, [one, 1, 2, 3], token_weights=[1] * 4
        )
    )
    expected = in_batch_softmax_cross_entropy(HIDDEN, HIDDEN, [1, 1, 2, 3])
    np.testing.assert_allclose(queries(jnp.int32(1)), expected, rtol=1e-6)


@pytest.mark.usefixtures("users_checks")
def test_unclear_arguments_are_named():
    with pytest.raises(TypeError, match="token_weights must be numbers"):
        loss([0, 1, 2, 3], token_weights=["a"] * 4)
    for counts in (["a"], [[1], [2, 3]], None):
        with pytest.raises(ValueError, match=r"counts must be \[vocab\]"):
            Unigram.from_counts(counts)
    with pytest.raises(ValueError, match="log_expected_count must be logs of counts, got nan"):
        Samples.from_candidates([1], [2], [jnp.nan], [0.0])
    with pytest.raises(ValueError, match=r"labels_log_expected_count must be logs .* got inf"):
        Samples.from_candidates([1], [2], [0.0], [jnp.inf])
    kept = Samples.from_candidates([1, 2], [2], [0.0, jnp.nan], [0.0], mask=[1, 0])
    assert np.isposinf(kept.log_expected_count).tolist() == [False, True]


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg"])
def test_no_tokens_with_keys_of_any_implementation(implementation):
    key = jax.random.key(0, impl=implementation)
    labels = jnp.zeros((2, 0), jnp.int32)
    for unique in (True, False):
        samples = draw_samples(LogUniform(10), key, 3, labels, unique=unique, per_token=True)
        shapes = [x.shape for x in samples]
        assert shapes == [(2, 0, 3), (2, 0, 3), (2, 0), (2, 0)]
    with jax.default_prng_impl(implementation):
        old = draw_samples(
            LogUniform(10), jax.random.PRNGKey(0), 3, [1, 2], unique=False, per_token=True
        )
    assert old.ids.shape == (2, 3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_small_and_large_shares_in_batch(dtype):
    """exp(-18) is 0 in float16; and a share of 1 may come with a rounding."""
    log_p = jnp.array([-18.0, 1e-6, 0.0], dtype)
    samples = in_batch_samples([1, 2, 3], log_p)
    assert samples.log_expected_count.dtype == jnp.float32
    # 1 - (1-p)^3 is 3 p up to p^2.
    expected = [np.log(3) - 18, 0, 0]
    np.testing.assert_allclose(samples.log_expected_count, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("function", "shared"), [(sampled_softmax_cross_entropy, False), (nce_loss, True)]
)
def test_classes_out_by_their_bias(function, shared):
    """A bias of -infinity takes a sampled class out, of the gradients too."""
    bias = np.where(np.arange(10) >= 8, np.float32(-np.inf), np.float32(0))
    labels, fewer = jnp.array([0, 1, 2, 3]), Samples.from_candidates([1, 4], [0, 1, 2, 3])
    more = Samples.from_candidates([1, 8, 4, 9], [0, 1, 2, 3])
    if not shared:
        more, fewer = (s._replace(ids=np.tile(s.ids, (4, 1))) for s in (more, fewer))
        more, fewer = (
            s._replace(log_expected_count=np.zeros(s.ids.shape, np.float32)) for s in (more, fewer)
        )
    derivative = jax.jit(jax.value_and_grad(partial(function, bias=bias), (0, 1)))
    value, derived = derivative(HIDDEN, WEIGHT, labels, more)
    kind = "softmax" if function is sampled_softmax_cross_entropy else "nce"
    hits = {"remove_accidental_hits": function is sampled_softmax_cross_entropy}
    losses, backward = sampled_loss(
        kind, HIDDEN, WEIGHT, labels, fewer, np.where(np.isneginf(bias), 0, bias), **hits
    )
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-6)
    wanted = tuple(backward(1 / 4)[:2])
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-6), derived, wanted)
