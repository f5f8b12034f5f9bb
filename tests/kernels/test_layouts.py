"""``features_first=True``: a table [features, vocab] is used as its transpose is, uncopied."""

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
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device
from tests.sampled_losses import sampled_loss

TOKENS, FEATURES, VOCAB = 7, 5, 601
DRAW = np.random.default_rng(0)  # of NumPy, which compiles nothing
HIDDEN, WEIGHT, BIAS = (
    on_device(DRAW.normal(size=shape), jnp.float32)
    for shape in ((TOKENS, FEATURES), (VOCAB, FEATURES), (VOCAB,))
)
LABELS = on_device(DRAW.integers(0, VOCAB, TOKENS))
TILES = Tiles(token_tile=3, vocab_tile=128)


def same(function, tolerance, wanted):
    """``function(hidden, weight, bias)`` of the turned table, and its gradients, as ``wanted``."""
    value, gradients = jax.jit(
        jax.value_and_grad(lambda *arrays: function(*arrays).sum(), (0, 1, 2))
    )(HIDDEN, WEIGHT.T, BIAS)
    assert gradients[1].shape == (FEATURES, VOCAB)
    total, (hidden, weight, bias) = wanted
    wanted = total, hidden, weight.T, bias
    for a, b in zip((value, *gradients), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def by_hand(reduction="mean", **options):
    losses, _, backward = exact_loss(HIDDEN, WEIGHT, LABELS, BIAS, **options)
    factor = 1 / TOKENS if reduction == "mean" else 1
    return factor * losses.sum(), backward(factor)[:3]


OPTIONS = [
    {"label_smoothing": 0.1, "z_loss": 0.01},
    {"reduction": "none", "label_smoothing": 0.1, "soft_cap": 3.0, "z_loss": 0.01},
]
EACH = {"temperature": np.linspace(0.5, 2.0, TOKENS, dtype=np.float32), "reduction": "sum"}


@pytest.mark.parametrize("options", [{**OPTIONS[0], **EACH}, OPTIONS[1]], ids=str)
def test_exact_loss(options):
    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, features_first=True, tiles=TILES, **options
        )

    same(loss, 1e-5, by_hand(**options))


@pytest.mark.parametrize(
    ("platform", "options"), [*zip(("gpu", "tpu"), OPTIONS, strict=True)], ids=str
)
def test_exact_loss_in_the_kernel(platform, options, monkeypatch):
    """In chunks of the table, the last of which is moved back inside it."""
    monkeypatch.setattr("jaxnets.kernels.linear_softmax.pallas._CHUNK", 512 * TOKENS)

    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, features_first=True, implementation="pallas",
            **options,
        )  # fmt: skip

    with compiling_for(platform, interpret=True):
        same(loss, 1e-4, by_hand(**options))


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

    def value(hidden, weight, bias):
        return loss(hidden, weight, LABELS, samples, bias=bias, features_first=True)

    kind, options = "softmax", {}
    if loss is not sampled_softmax_cross_entropy:
        kind, options = "nce", {"remove_accidental_hits": False}
        options["subtract_log_q"] = loss is nce_loss
    losses, backward = sampled_loss(kind, HIDDEN, WEIGHT, LABELS, samples, BIAS, **options)
    same(value, 1e-5, (losses.mean(), backward(1 / TOKENS)))


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_sampled_softmax_in_the_kernel(platform):
    samples = fixed_samples(VOCAB, LABELS, np.arange(130) ** 2 % VOCAB)

    def value(hidden, weight, bias):
        return sampled_softmax_cross_entropy(
            hidden, weight, LABELS, samples, bias=bias, features_first=True,
            implementation="pallas",
        )  # fmt: skip

    losses, backward = sampled_loss("softmax", HIDDEN, WEIGHT, LABELS, samples, BIAS)
    with compiling_for(platform, interpret=True):
        same(value, 1e-4, (losses.mean(), backward(1 / TOKENS)))


def test_top_k_and_checked_loss():
    found = linear_top_k(
        HIDDEN, np.transpose(WEIGHT), 9, bias=BIAS, features_first=True, tiles=TILES
    )
    logits = np.float64(HIDDEN) @ np.float64(WEIGHT).T + np.float64(BIAS)
    wanted = np.argsort(-logits)[:, :9]
    np.testing.assert_array_equal(found.ids, wanted)
    np.testing.assert_allclose(found.logits, np.take_along_axis(logits, wanted, 1), rtol=1e-6)
    loss = jax.jit(checked_loss(linear_softmax_cross_entropy), static_argnames="features_first")
    error, _ = loss(
        HIDDEN,
        np.transpose(WEIGHT),
        np.where(np.arange(TOKENS) == 2, VOCAB, LABELS),
        features_first=True,
    )
    assert f"labels must lie in [0, {VOCAB}), got {VOCAB}" in error.get()


@pytest.mark.parametrize(("reduction", "logits"), [("mean", 256 * 32_768), ("none", 0)])
def test_no_copy_of_the_table(reduction, logits):
    """At a size where a copy is 8 MB, the temporary memory is what the logits take that are kept.

    The means keep those of all classes, from the one pass in which they find the gradients.
    """

    def loss(hidden, weight, labels):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, features_first=True, reduction=reduction
        ).sum()

    shapes = (256, 64), (64, 32_768)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    labels = jax.ShapeDtypeStruct((256,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays, labels).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    assert 4 * logits < temporary < 4 * logits + 4_000_000
