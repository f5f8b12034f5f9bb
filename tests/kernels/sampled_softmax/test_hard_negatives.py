"""The hardest of many samples, and the items of batches ago."""

from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    CandidateQueue,
    Samples,
    hardest_samples,
    in_batch_softmax_cross_entropy,
    sampled_softmax_cross_entropy,
)
from tests.fixed_samples import fixed_samples
from tests.near import assert_near
from tests.sampled_losses import sampled_loss

VOCAB, FEATURES, TOKENS, KEPT = 40, 4, 3, 4
DRAW = np.random.default_rng(0)
HIDDEN = DRAW.normal(size=(TOKENS, FEATURES))
WEIGHT, BIAS = DRAW.normal(size=(VOCAB, FEATURES)), DRAW.normal(size=VOCAB)
LABELS = np.array([[5, 7], [11, -1], [23, 5]])
SHARED = np.array([5, 30, 8, 11, 2, 17, 30, 9])


def test_the_loss_on_the_hardest_is_that_of_the_largest_terms(x64):
    """Of samples that all tokens share, and of each token's own."""
    own = DRAW.integers(0, VOCAB, (TOKENS, 8))

    def loss(hidden, weight, ids):
        samples = fixed_samples(VOCAB, LABELS.clip(0), ids)
        options = {"bias": BIAS, "ignore_index": -1}
        hard = hardest_samples(hidden, weight, LABELS, samples, KEPT, **options)
        few, every = (
            sampled_softmax_cross_entropy(
                hidden, weight, LABELS, chosen, reduction="none", **options
            )
            for chosen in (hard, samples)
        )
        return few.sum(), [hard.ids, few, every]

    @jax.jit
    def program(hidden, weight):
        return (
            loss(hidden, weight, SHARED),
            jax.value_and_grad(loss, (0, 1), True)(hidden, weight, own),
        )

    (of_shared, shared), ((of_own, separate), gradients) = program(HIDDEN, WEIGHT)
    for ids, total, (found, few, every) in ((SHARED, of_shared, shared), (own, of_own, separate)):
        wanted = plain(ids)
        assert_near((found, few, total), (wanted[0], wanted[1], wanted[1].sum()), 1e-12)
        assert (np.asarray(few) < np.asarray(every)).all()
    assert_near(gradients, plain(own)[2], 1e-12)


def plain(ids):
    """The hardest ids of each token, the losses on them and their sum's gradients, in NumPy."""
    samples = fixed_samples(VOCAB, LABELS.clip(0), ids)
    ids, counts = (np.broadcast_to(a, (TOKENS, 8)) for a in (ids, samples.log_expected_count))
    found, losses, of_hidden, of_weight = [], [], [], 0.0
    for token, true in enumerate(LABELS):
        true = true[true >= 0]
        other = WEIGHT[ids[token]] @ HIDDEN[token] + BIAS[ids[token]] - counts[token]
        other = np.where(np.isin(ids[token], true), -np.inf, other)
        order = np.argsort(-other, kind="stable")[:KEPT]
        found.append(ids[token, order])
        of_true = samples.labels_log_expected_count[token, : true.size][None]
        hard = Samples(ids[token, order], counts[token, order], of_true, np.int32(8))
        row, backward = sampled_loss("softmax", HIDDEN[token][None], WEIGHT, true[None], hard, BIAS)
        d_hidden, d_weight, _ = backward(1.0)
        losses.append(row[0])
        of_hidden.append(d_hidden[0])
        of_weight = of_weight + d_weight
    return np.stack(found), np.stack(losses), (np.stack(of_hidden), of_weight)


def test_where_there_are_not_enough_others_a_hit_stays_none():
    samples = Samples.from_candidates([3, 3, 6, 1], [3], mask=[1, 1, 1, 0])
    hard = hardest_samples(np.ones((1, FEATURES)), WEIGHT, [3], samples, 3)
    assert hard.ids[0, 0] == 6
    assert np.isposinf(hard.log_expected_count).tolist() == [[False, True, True]]


def test_the_queue_holds_the_last_items(x64):
    """Under jit and scan, round and round, with padding, against a deque."""
    steps, batch, capacity = 6, 4, 7
    hidden, items = DRAW.normal(size=(2, steps, batch, 3))
    labels = DRAW.integers(0, 9, (steps, batch))
    log_p = -DRAW.uniform(size=(steps, batch))
    masks = DRAW.uniform(size=(steps, batch)) < 0.7

    def loss(hidden, items, *others, queue):
        return in_batch_softmax_cross_entropy(hidden, items, *others, extra=queue.extra)

    @jax.jit
    @jax.grad
    def gradient(hidden):
        def step(queue, batch):
            hidden, items, labels, log_p, mask = batch
            value = loss(hidden, items, labels, log_p, queue=queue)
            # What is pushed depends on the hidden states, but has no gradient.
            return queue.push(items + hidden, labels, log_p, mask=mask), value

        queue = CandidateQueue.create(capacity, 3, jnp.float64)
        return jax.lax.scan(step, queue, (hidden, items, labels, log_p, masks))[1].sum()

    @jax.jit
    @jax.grad
    def one_step(hidden, items, labels, log_p, more):
        return in_batch_softmax_cross_entropy(hidden, items, labels, log_p, extra=more)

    held, expected = deque(maxlen=capacity), []
    for n in range(steps):
        filled = [(np.zeros(3), 0, np.inf)] * (capacity - len(held)) + list(held)
        more = tuple(map(np.array, zip(*filled, strict=True)))
        expected.append(one_step(hidden[n], items[n], labels[n], log_p[n], more))
        for row in np.flatnonzero(masks[n]):
            held.append((items[n, row] + hidden[n, row], labels[n, row], log_p[n, row]))
    assert_near(gradient(hidden), np.stack(expected), 1e-6)


@pytest.mark.usefixtures("users_checks")
def test_wrong_arguments():
    queue, row = CandidateQueue.create(2, 3), jnp.ones((1, 3))
    for arguments, message in (
        ((jnp.ones((3, 3)), [1, 2, 3]), r"with a batch of at most 2, got \(3, 3\)"),
        ((jnp.ones((1, 4)), [1]), r"items must be \[batch, features = 3\]"),
        ((row, [1, 2]), r"labels must be \[1\], got \(2,\)"),
        ((row, [1], np.zeros(2)), r"log_probability must be \[1\], got \(2,\)"),
        ((row, [2**40]), "labels must lie in the range of int32"),
    ):
        with pytest.raises(ValueError, match=message):
            queue.push(*arguments)
    with pytest.raises(TypeError, match="dtype must be floating point, got int32"):
        CandidateQueue.create(2, 3, jnp.int32)
    samples = Samples.from_candidates([3, 6], [3])
    with pytest.raises(ValueError, match="num_hardest must be at most 2, got 3"):
        hardest_samples(np.ones((1, FEATURES)), WEIGHT, [3], samples, 3)
