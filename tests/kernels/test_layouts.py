"""``features_first=True``: a table [features, vocab] gives what its transpose does, uncopied."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    Tiles,
    checked_loss,
    compiling_for,
    linear_softmax_cross_entropy,
    linear_top_k,
    nce_loss,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests.fixed_samples import fixed_samples

TOKENS, FEATURES, VOCAB = 7, 5, 601
DRAW = np.random.default_rng(0)  # of NumPy, which compiles nothing
HIDDEN, WEIGHT, BIAS = (
    jnp.asarray(DRAW.normal(size=shape), jnp.float32)
    for shape in ((TOKENS, FEATURES), (VOCAB, FEATURES), (VOCAB,))
)
LABELS = jnp.asarray(DRAW.integers(0, VOCAB, TOKENS))
TILES = Tiles(token_tile=3, vocab_tile=128)


def same(function, tolerance, plain=None):
    """``function(hidden, weight, bias, features_first)`` in both layouts, and its gradients.

    ``plain``: another that is known to be the same where the features come last.
    """

    @jax.jit
    def both(hidden, weight, bias):
        return [
            jax.value_and_grad(lambda *a, of=of, ff=ff: of(*a, ff).sum(), (0, 1, 2))(
                hidden, table, bias
            )
            for of, table, ff in ((plain or function, weight, False), (function, weight.T, True))
        ]

    (value, (hidden, weight, bias)), turned = both(HIDDEN, WEIGHT, BIAS)
    assert turned[1][1].shape == (FEATURES, VOCAB)
    wanted = value, hidden, np.transpose(weight), bias
    for a, b in zip(jax.tree.leaves(turned), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


OPTIONS = [
    {},
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"reduction": "none", "label_smoothing": 0.1, "soft_cap": 3.0},
    {"temperature": np.linspace(0.5, 2.0, TOKENS, dtype=np.float32), "reduction": "sum"},
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

    def loss(hidden, weight, bias, features_first, implementation="pallas"):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, features_first=features_first,
            implementation=implementation, **options,
        )  # fmt: skip

    with compiling_for(platform, interpret=True):
        same(loss, 1e-4, partial(loss, implementation="tiled"))


@pytest.mark.parametrize(
    ("loss", "per_token"),
    [
        (sampled_softmax_cross_entropy, False),
        (sampled_softmax_cross_entropy, True),
        (nce_loss, True),
        (negative_sampling_loss, False),
    ],
)
def test_sampled_losses(loss, per_token):
    ids = np.random.default_rng(1).integers(0, VOCAB, (TOKENS, 16) if per_token else 16)
    samples = fixed_samples(VOCAB, LABELS, ids)

    def value(hidden, weight, bias, features_first):
        return loss(hidden, weight, LABELS, samples, bias=bias, features_first=features_first)

    same(value, 1e-5)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_sampled_softmax_in_the_kernel(platform):
    samples = fixed_samples(VOCAB, LABELS, np.arange(130) ** 2 % VOCAB)

    def value(hidden, weight, bias, features_first, implementation="pallas"):
        return sampled_softmax_cross_entropy(
            hidden, weight, LABELS, samples, bias=bias, features_first=features_first,
            implementation=implementation,
        )  # fmt: skip

    with compiling_for(platform, interpret=True):
        same(value, 1e-4, partial(value, implementation="gathered"))


def test_top_k_and_checked_loss():
    found = linear_top_k(
        HIDDEN, np.transpose(WEIGHT), 9, bias=BIAS, features_first=True, tiles=TILES
    )
    wanted = linear_top_k(HIDDEN, WEIGHT, 9, bias=BIAS, tiles=TILES)
    np.testing.assert_array_equal(found.ids, wanted.ids)
    np.testing.assert_allclose(found.logits, wanted.logits, rtol=1e-6)
    loss = jax.jit(checked_loss(linear_softmax_cross_entropy), static_argnames="features_first")
    error, _ = loss(
        HIDDEN,
        np.transpose(WEIGHT),
        np.where(np.arange(TOKENS) == 2, VOCAB, LABELS),
        features_first=True,
    )
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
