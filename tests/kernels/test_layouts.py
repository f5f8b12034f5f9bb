"""``features_first=True``: a table [features, vocab] gives what its transpose does, uncopied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    LogUniform,
    Tiles,
    checked_loss,
    compiling_for,
    draw_samples,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)

TOKENS, FEATURES, VOCAB = 7, 5, 601
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = jax.random.normal(KEYS[0], (TOKENS, FEATURES))
WEIGHT = jax.random.normal(KEYS[1], (VOCAB, FEATURES))
BIAS = jax.random.normal(KEYS[2], (VOCAB,))
LABELS = jax.random.randint(KEYS[3], (TOKENS,), 0, VOCAB)
TILES = Tiles(token_tile=3, vocab_tile=128)


def same(function, tolerance):
    """``function(hidden, weight, bias, features_first)`` in both layouts, and its gradients."""
    derived = [
        jax.jit(jax.value_and_grad(lambda *a, ff=ff: function(*a, ff).sum(), (0, 1, 2)))
        for ff in (False, True)
    ]
    value, (hidden, weight, bias) = derived[0](HIDDEN, WEIGHT, BIAS)
    turned = derived[1](HIDDEN, WEIGHT.T, BIAS)
    assert turned[1][1].shape == (FEATURES, VOCAB)
    for a, b in zip(jax.tree.leaves(turned), (value, hidden, weight.T, bias), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"reduction": "none", "label_smoothing": 0.1, "soft_cap": 3.0},
    {"temperature": jnp.linspace(0.5, 2.0, TOKENS), "reduction": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_exact_loss(options):
    def loss(hidden, weight, bias, features_first):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, features_first=features_first, tiles=TILES, **options
        )

    same(loss, 1e-5)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("options", OPTIONS[1:3], ids=str)
def test_exact_loss_in_the_kernel(platform, options, monkeypatch):
    """In chunks of the table, the last of which is moved back inside it."""
    monkeypatch.setattr("jaxnets.kernels.linear_softmax.pallas._CHUNK", 512 * TOKENS)

    def loss(hidden, weight, bias, features_first):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, features_first=features_first,
            implementation="pallas", **options,
        )  # fmt: skip

    with compiling_for(platform, interpret=True):
        same(loss, 1e-4)


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("loss", [sampled_softmax_cross_entropy, nce_loss, negative_sampling_loss])
def test_sampled_losses(loss, per_token):
    samples = draw_samples(LogUniform(VOCAB), KEYS[0], 16, LABELS, per_token=per_token)

    def value(hidden, weight, bias, features_first):
        return loss(hidden, weight, LABELS, samples, bias=bias, features_first=features_first)

    same(value, 1e-5)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_sampled_softmax_in_the_kernel(platform):
    samples = draw_samples(LogUniform(VOCAB), KEYS[0], 130, LABELS)

    def value(hidden, weight, bias, features_first):
        return sampled_softmax_cross_entropy(
            hidden, weight, LABELS, samples, bias=bias, features_first=features_first,
            implementation="pallas",
        )  # fmt: skip

    with compiling_for(platform, interpret=True):
        same(value, 1e-4)


def test_top_k_and_checked_loss():
    found = linear_top_k(HIDDEN, WEIGHT.T, 9, bias=BIAS, features_first=True, tiles=TILES)
    wanted = linear_top_k(HIDDEN, WEIGHT, 9, bias=BIAS, tiles=TILES)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-6)
    loss = jax.jit(checked_loss(linear_softmax_cross_entropy), static_argnames="features_first")
    error, _ = loss(HIDDEN, WEIGHT.T, LABELS.at[2].set(VOCAB), features_first=True)
    assert f"labels must lie in [0, {VOCAB}), got {VOCAB}" in error.get()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_no_copy_of_the_table(reduction):
    """At a size where a copy is 8 MB, the temporary memory is the other layout's."""

    def temporary(features_first):
        def loss(hidden, weight, labels):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, features_first=features_first, reduction=reduction
            ).sum()

        shape = (64, 32_768) if features_first else (32_768, 64)
        arrays = (
            jax.ShapeDtypeStruct((256, 64), jnp.float32),
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct((256,), jnp.int32),
        )
        compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(True) < temporary(False) + 1_000_000
