"""Padded rows and any ids in the candidates of a batch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    negative_sampling_loss,
    sampled_softmax_cross_entropy,
)
from tests.sampled_losses import token_by_token

TRUE = np.array([1, 3, 4, 6])  # of eight rows
MASK = np.isin(np.arange(8), TRUE)


def normal(*shape):
    """Of NumPy, which compiles nothing."""
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(actual, expected):
    """Equal up to a few roundings of float32 in sums of at most 10 terms."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-6), actual, expected
    )


@pytest.mark.parametrize(("unique", "padding"), [(True, 9), (False, -100)])
def test_padded_labels_are_no_candidates(unique, padding):
    """As of the true ones alone, also where the log-counts are not used."""
    hidden, weight = normal(8, 4), normal(20, 4)
    log_p = np.log(np.random.default_rng(1).uniform(size=20).astype(np.float32) / 10)
    true = np.array([9, 5, 9, 12])
    labels = np.full(8, padding)
    labels[TRUE] = true
    padded_p = np.full(8, np.nan, np.float32)
    padded_p[TRUE] = log_p[true]
    hidden = np.where(MASK[:, None], hidden, np.float32(np.nan))
    samples = in_batch_samples(labels, padded_p, unique=unique, mask=MASK)
    alone = in_batch_samples(true, log_p[true], unique=unique)
    assert samples.tries == 4
    assert set(samples.ids.tolist()) == {5, 9, 12}
    kinds = {
        "softmax": (sampled_softmax_cross_entropy, {}),
        "nce": (
            negative_sampling_loss,
            {"subtract_log_q": False, "remove_accidental_hits": False},
        ),
    }
    for kind, (loss, options) in kinds.items():
        value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(
            hidden, weight, labels, samples, token_weights=MASK
        )
        wanted, (d_hidden, d_weight, *_), _ = token_by_token(
            kind, hidden[TRUE], weight, true[:, None], alone, np.zeros(20), np.ones(4),
            ignored=-100, **options,
        )  # fmt: skip
        found = np.asarray(gradients[0])
        close((value, found[TRUE], gradients[1]), (wanted, d_hidden, d_weight))
        assert not found[~MASK].any()


def test_a_batch_of_padding_alone():
    samples = in_batch_samples([-100, 7], [-1.0, jnp.nan], mask=[False, False])
    assert np.isposinf(samples.log_expected_count).all()
    empty = in_batch_samples([], jnp.zeros(0))
    assert empty.ids.shape == (0,)
    args = jnp.ones((2, 3)), jnp.ones((5, 3)), [-100, 7], samples
    assert sampled_softmax_cross_entropy(*args, token_weights=[0, 0]) == 0
    none = jnp.ones((0, 3)), jnp.ones((5, 3)), jnp.zeros(0, int), empty
    assert sampled_softmax_cross_entropy(*none) == 0


@pytest.mark.parametrize("ignore", [False, True])
def test_padded_rows_are_neither_queries_nor_items(ignore):
    hidden, items = normal(2, 8, 4)
    log_p = np.full(8, np.nan, np.float32)
    log_p[TRUE] = -1, -2, -1, -np.inf
    labels = np.full(8, -1)
    labels[TRUE] = [2, 5, 2, 2**40]
    weights = np.array([1.0, 2.0, 0.0, 4.0])
    all_weights = np.full(8, 5.0)
    all_weights[TRUE] = weights
    marked = {"ignore_index": -1} if ignore else {"mask": MASK.astype(np.uint8)}

    def padded(hidden, items):
        return in_batch_softmax_cross_entropy(
            hidden, items, labels, log_p, token_weights=all_weights, **marked
        )

    def plain(hidden, items):
        logits = hidden @ items.T - jnp.array([-1.0, -2.0, -1.0, 0.0])
        logits = logits.at[0, 2].set(-jnp.inf).at[2, 0].set(-jnp.inf)
        losses = -jnp.diagonal(jax.nn.log_softmax(logits))
        return (losses * weights).sum() / weights.sum()

    bad = [
        np.where(MASK[:, None], x, np.float32(fill))
        for x, fill in ((hidden, np.nan), (items, np.inf))
    ]
    bad[0][TRUE[2]] = np.nan  # a query of weight 0, whose item stays
    fine = hidden[TRUE]
    fine[2] = 0
    value, actual = jax.jit(jax.value_and_grad(padded, (0, 1)))(*bad)
    actual = [np.asarray(a) for a in actual]
    expected, wanted = jax.jit(jax.value_and_grad(plain, (0, 1)))(fine, items[TRUE])
    close((value, [a[TRUE] for a in actual]), (expected, list(wanted)))
    assert not any(a[~MASK].any() for a in actual)


def test_large_ids_of_items_are_not_merged():
    hidden, items = normal(2, 4, 3)
    hashes = [2**40 + 1, 2**41 + 1, 2**62 + 1, 2**40 + 1]  # equal in their lower 32 bits
    expected = in_batch_softmax_cross_entropy(hidden, items, jnp.array([0, 1, 2, 0]))
    unsigned = np.array(hashes, np.uint64) | np.uint64(2**63)
    for labels in (hashes, np.array(hashes), unsigned, unsigned.view(np.int64)):
        close(in_batch_softmax_cross_entropy(hidden, items, labels), expected)
    with jax.enable_x64(True):
        traced = jax.jit(in_batch_softmax_cross_entropy)(hidden, items, jnp.asarray(hashes[:2] * 2))
    close(traced, in_batch_softmax_cross_entropy(hidden, items, [0, 1, 0, 1]))
    with pytest.raises(ValueError, match="labels must lie in the range of int32"):
        in_batch_samples(np.array(hashes[:2]), jnp.zeros(2))
    with pytest.raises(TypeError, match="labels must be integer class ids"):
        in_batch_softmax_cross_entropy(hidden, items, [0.5, 1.0, 2.0, 3.0])


def test_no_items():
    none = jnp.ones((0, 3))
    value, derived = jax.value_and_grad(in_batch_softmax_cross_entropy, (0, 1))(none, none, [])
    assert value == 0
    assert [d.shape for d in derived] == [(0, 3), (0, 3)]


@pytest.mark.usefixtures("users_checks")
def test_in_batch_refuses():
    with pytest.raises(ValueError, match=r"log_probability must be logs of shares.*got 0\.5"):
        in_batch_samples([1, 2], [-1.0, 0.5])
    with pytest.raises(TypeError, match="log_probability must be floating point"):
        in_batch_samples([1, 2], [0, 1])
    with pytest.raises(ValueError, match="mask must have shape"):
        in_batch_samples([1, 2], jnp.zeros(2), mask=[True])
    pairs = jnp.ones((2, 3)), jnp.ones((2, 3))
    one = (jnp.ones((1, 3)), jnp.array([4]))
    for wrong, message in (
        ({"mask": [True]}, "mask must have shape"),
        ({"ignore_index": 3}, "ignore_index must come with labels"),
        ({"temperature": jnp.ones(2)}, r"temperature must be one number, got shape \(2,\)"),
        ({"temperature": 0.0}, r"temperature must be above 0, got 0\.0"),
        ({"labels": [1, 2, 3]}, r"labels must be \[2\], got \(3,\)"),
        ({"extra": one}, "labels and extra.labels must be given both or neither"),
        ({"extra": (jnp.ones((1, 4)),)}, r"extra.items must be \[n, features = 3\]"),
        ({"labels": [1, 2], "extra": (*one, jnp.zeros(2))}, r"extra.log_probability must be"),
        ({"labels": np.array([1, 2**40]), "extra": one}, "labels must lie in the range of int32"),
    ):
        with pytest.raises(ValueError, match=message):
            in_batch_softmax_cross_entropy(*pairs, **wrong)
    with pytest.raises(TypeError, match="extra must be ExtraItems or a tuple, got list"):
        in_batch_softmax_cross_entropy(*pairs, extra=[1])


def test_strict_modes(strict_modes):
    hidden, items = jnp.ones((2, 3, 4), jnp.bfloat16)
    samples = in_batch_samples([1, 1, -1], jnp.full(3, -1.0), mask=[1, 1, 0])
    assert np.isfinite(samples.labels_log_expected_count).all()
    weights = np.array([1, 0, 2])

    @jax.jit
    def program(hidden, items):
        return jax.value_and_grad(in_batch_softmax_cross_entropy, (0, 1))(
            hidden, items, [1, 1, -1], jnp.full(3, -1.0), token_weights=weights, ignore_index=-1
        )

    value, derived = program(hidden, items.astype(jnp.float32))
    assert np.isfinite(value)
    assert all(np.isfinite(np.asarray(d, np.float32)).all() for d in derived)
