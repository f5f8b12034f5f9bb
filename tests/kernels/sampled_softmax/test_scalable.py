"""SCE: cross-entropy over buckets, against NumPy in float64 bucket by bucket."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import scalable_cross_entropy
from tests.exact_loss import exact_loss
from tests.near import assert_near

VOCAB, FEATURES, TOKENS, BUCKETS = 30, 4, 12, 5
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=(3, 4, FEATURES))
WEIGHT, BIAS = DRAW.normal(size=(VOCAB, FEATURES)), DRAW.normal(size=VOCAB)
BIAS[3] = -np.inf  # a class that is out
LABELS = DRAW.integers(4, VOCAB, (3, 4))
LABELS[1, 2] = -1
WEIGHTS = DRAW.uniform(0.5, 2, (3, 4))
WEIGHTS[2, 0] = 0
KEY = jax.random.key(3)


def in_numpy(hidden, weight, bias, labels, kept, buckets, per_bucket, classes):
    """Losses [tokens] by the equation, NaN for a token of no bucket, and backward of them."""
    hidden = np.where(kept[:, None], hidden, 0)
    shares = np.asarray(jax.random.normal(KEY, (buckets, len(hidden)), jnp.float32), np.float64)
    directions = shares @ hidden
    of_classes = np.where(np.isfinite(bias), directions @ weight.T, -np.inf)
    best, slopes = np.full(len(hidden), np.nan), np.zeros((len(hidden), len(weight)))
    for bucket in range(buckets):
        along = np.where(kept, directions[bucket] @ hidden.T, -np.inf)
        chosen = np.argsort(-of_classes[bucket], kind="stable")[:classes]
        for token in np.argsort(-along, kind="stable")[:per_bucket]:
            if not kept[token]:
                continue
            those = np.union1d(chosen, [labels[token]])
            logits = weight[those] @ hidden[token] + bias[those]
            loss = np.log(np.exp(logits).sum()) - logits[those == labels[token]][0]
            if not loss <= best[token]:
                best[token], slopes[token] = loss, 0
                slopes[token, those] = np.exp(logits - logits.max())
                slopes[token] /= slopes[token].sum()
                slopes[token, labels[token]] -= 1

    def backward(factors):
        d_logits = slopes * factors[:, None]
        return d_logits @ weight, d_logits.T @ hidden, d_logits.sum(0)

    return best, backward


def ours(hidden, weight, bias, reduction="mean", **options):
    return scalable_cross_entropy(
        hidden, weight, LABELS, KEY, bias=bias, token_weights=WEIGHTS, ignore_index=-1,
        num_buckets=BUCKETS, reduction=reduction, **options,
    )  # fmt: skip


def test_it_is_the_largest_loss_of_a_tokens_buckets(x64):
    sizes = {"tokens_per_bucket": 4, "classes_per_bucket": 6}

    def loss(hidden, weight, bias, **options):
        return ours(hidden, weight.T, bias, features_first=True, **sizes, **options)

    @jax.jit
    def program(*arrays):
        every = {"tokens_per_bucket": 99, "classes_per_bucket": 99, "reduction": "none"}
        return (
            jax.value_and_grad(loss, (0, 1, 2))(*arrays),
            loss(*arrays, reduction="none"),
            ours(*arrays, **every),
        )

    bad = np.where((LABELS == -1)[..., None] | (WEIGHTS == 0)[..., None], np.nan, HIDDEN)
    got, each, every = program(bad, WEIGHT, BIAS)
    exact, _, _ = exact_loss(HIDDEN, WEIGHT, np.maximum(LABELS, 4), BIAS)
    exact *= np.where(LABELS == -1, 0, WEIGHTS)
    kept = (LABELS != -1) & (WEIGHTS != 0)
    of_tokens = LABELS.reshape(-1), kept.reshape(-1)
    best, backward = in_numpy(HIDDEN.reshape(TOKENS, -1), WEIGHT, BIAS, *of_tokens, BUCKETS, 4, 6)
    factors = np.where(np.isnan(best), 0, WEIGHTS.reshape(-1))
    losses, (d_hidden, *others) = np.nan_to_num(best) * factors, backward(factors / factors.sum())
    wanted = losses.sum() / factors.sum(), (d_hidden.reshape(HIDDEN.shape), *others)
    assert_near(got, wanted, 1e-12)
    assert_near(each, losses.reshape(3, 4), 1e-12)
    assert (factors > 0).sum() < 10  # some tokens are in no bucket
    assert_near(every, exact, 1e-12)
    assert (np.asarray(each) <= np.asarray(exact) + 1e-12).all()


def test_a_bad_label_is_nan_and_memory_is_that_of_the_buckets():
    @jax.jit
    def step(hidden, weight, labels):
        return jax.value_and_grad(scalable_cross_entropy, (0, 1))(
            hidden, weight, labels, KEY, classes_per_bucket=64, mix=False
        )

    tokens, vocab = 1024, 32_768
    shapes = [((tokens, 8), jnp.float32), ((vocab, 8), jnp.float32), ((tokens,), jnp.int32)]
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        lowered = step.lower(*[jax.ShapeDtypeStruct(*each) for each in shapes])
    compiled = lowered.compile()
    assert compiled.memory_analysis().temp_size_in_bytes < tokens * vocab * 4 / 8
    arrays = [np.full(shape, vocab, dtype) for shape, dtype in shapes]
    assert np.isnan(compiled(*arrays)[0])


@pytest.mark.usefixtures("users_checks")
def test_wrong_arguments():
    for options, message in (
        ({"num_buckets": 0}, "num_buckets must be at least 1, got 0"),
        ({"classes_per_bucket": 0}, "classes_per_bucket must be at least 1, got 0"),
        ({"reduction": "max"}, "reduction must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            scalable_cross_entropy(HIDDEN, WEIGHT, LABELS, KEY, ignore_index=-1, **options)
    with pytest.raises(ValueError, match=r"labels must lie in \[0, vocab_size\)"):
        scalable_cross_entropy(HIDDEN, WEIGHT, LABELS, KEY)
    assert scalable_cross_entropy(HIDDEN[:0], WEIGHT, LABELS[:0], KEY) == 0
