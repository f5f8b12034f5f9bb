"""``num_classes=``: what pads a table, be it a whole tile or a device's part, is no class."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import (
    Head,
    Tiles,
    TopKTeacher,
    VocabSharding,
    checked_loss,
    compiling_for,
    linear_divergence,
    linear_label_rank,
    linear_log_probs,
    linear_softmax_cross_entropy,
    linear_top_k,
)
from tests.exact_loss import exact_divergence, exact_log_probs, exact_loss

BATCH, FEATURES, CLASSES, ROWS = (2, 5), 4, 13, 24
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(*BATCH, FEATURES))
TABLE = RANDOM.normal(size=(ROWS, FEATURES))  # what pads it is large, and counts for nothing
TABLE[CLASSES:] *= 100
BIAS = RANDOM.normal(size=ROWS)
TEACHER = RANDOM.normal(size=(ROWS, FEATURES))
LABELS = RANDOM.integers(0, CLASSES, BATCH).astype(np.uint8)
EACH = np.linspace(0.5, 2.0, 10).reshape(BATCH)
WAVES = 1.5 + np.cos(np.arange(10.0)).reshape(BATCH)
TILES = Tiles(token_tile=4, vocab_tile=5)  # the last two are padding
SMOOTHED = {"label_smoothing": 0.3, "z_loss": 1e-2}


def losses(hidden, weight, bias):
    options = {"tiles": TILES, "num_classes": CLASSES}
    found = linear_log_probs(
        hidden, weight.T, LABELS, temperature=EACH, features_first=True, **options
    )
    teacher = HIDDEN, TEACHER
    student, teacher = Head(hidden, weight, bias), Head(*teacher)
    return [
        linear_softmax_cross_entropy(hidden, weight, LABELS, **SMOOTHED, **options),
        (WAVES * found.log_prob + found.entropy).sum(),
        sum(linear_divergence(student, teacher, kind="jsd", labels=LABELS, **options)),
    ]


def by_hand(hidden, weight, bias):
    """The same of the classes alone, in NumPy, and the gradients of 1, 2 and 3 times them."""
    shares = np.full(BATCH, 1 / LABELS.size)
    found, gradients = [], []

    def add(value, *gradient):
        found.append(value)
        gradients.append([len(found) * each for each in gradient])

    losses, _, backward = exact_loss(hidden, weight, LABELS, **SMOOTHED)
    add(losses.mean(), *backward(shares)[:2], 0)
    (log_prob, entropy, _, _), backward = exact_log_probs(hidden, weight, LABELS, temperature=EACH)
    add((WAVES * log_prob + entropy).sum(), *backward(WAVES, 1)[:2], 0)
    teacher = HIDDEN, TEACHER[:CLASSES], np.zeros(CLASSES)
    divergences, of_divergences = exact_divergence("jsd", (hidden, weight, bias), teacher)
    losses, _, of_losses = exact_loss(hidden, weight, LABELS, bias)
    both = zip(of_divergences(shares), of_losses(shares), strict=False)
    add((divergences + losses).mean(), *(a + b for a, b in both))
    return found, [sum(each) for each in zip(*gradients, strict=True)]


def test_values_and_gradients(x64):
    def mixed(*arrays):
        found = losses(*arrays)
        return sum(i * a for i, a in enumerate(found, 1)), found

    (_, got), gradients = jax.jit(jax.value_and_grad(mixed, (0, 1, 2), has_aux=True))(
        HIDDEN, TABLE, BIAS
    )
    wanted, expected = by_hand(HIDDEN, TABLE[:CLASSES], BIAS[:CLASSES])
    np.testing.assert_allclose(got, wanted, rtol=1e-11)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a[: b.shape[0]], b, rtol=1e-9, atol=1e-11)
        assert not np.asarray(a[b.shape[0] :]).any()


def float32(*arrays):
    return tuple(np.asarray(a, np.float32) for a in arrays)


def test_on_pallas():
    hidden, weight, bias = float32(HIDDEN, TABLE, BIAS)
    with compiling_for("gpu", interpret=True):
        value = linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, num_classes=CLASSES, **SMOOTHED,
            implementation="pallas",
        )  # fmt: skip
    losses, _, _ = exact_loss(hidden, weight[:CLASSES], LABELS, bias[:CLASSES], **SMOOTHED)
    np.testing.assert_allclose(value, losses.mean(), rtol=1e-5)


def test_over_devices():
    """One of four has padding only, one has some."""
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Explicit,) * 2)
    sharding = VocabSharding(mesh, "vocab", "data")
    exclude = np.array([[[0, 3, -1]] * 5, [[5, 7, 2]] * 5])

    hidden, weight, bias = float32(HIDDEN, TABLE, BIAS)
    options = {"num_classes": CLASSES, "sharding": sharding}

    def ours(hidden, weight):
        given = {"bias": bias, "exclude": exclude, **options}
        rank = linear_label_rank(hidden, weight, LABELS, **given)
        best = linear_top_k(hidden, weight, CLASSES, **given)
        loss = linear_softmax_cross_entropy(hidden, weight, LABELS, **SMOOTHED, **options)
        return loss, (rank.above, best.ids)

    (loss, (above, ids)), gradients = jax.jit(
        jax.value_and_grad(ours, (0, 1), has_aux=True)
    )(hidden, weight)  # fmt: skip
    losses, _, backward = exact_loss(hidden, weight[:CLASSES], LABELS, **SMOOTHED)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-5)
    for a, b in zip(map(np.asarray, gradients), backward(1 / LABELS.size)[:2], strict=True):
        np.testing.assert_allclose(a[: b.shape[0]], b, rtol=1e-4, atol=1e-5)
        assert not a[b.shape[0] :].any()
    logits = hidden @ weight[:CLASSES].T + bias[:CLASSES]
    of_label = np.take_along_axis(logits, LABELS[..., None].astype(int), -1)
    np.put_along_axis(logits, np.where(exclude < 0, exclude[..., :1], exclude), -np.inf, -1)
    np.testing.assert_array_equal(above, (logits > of_label).sum(-1))
    np.testing.assert_array_equal(ids, np.argsort(-logits, -1, stable=True))


def test_labels_in_the_padding_are_out_of_range(users_checks):
    arrays = float32(HIDDEN, TABLE)
    wrong = LABELS.copy()
    wrong[1, 2] = CLASSES
    with pytest.raises(ValueError, match=r"labels must lie in .* \[0, 13\), got 13"):
        linear_softmax_cross_entropy(*arrays, wrong, num_classes=CLASSES)
    error, value = jax.jit(checked_loss(linear_softmax_cross_entropy), static_argnames=NAMES)(
        *arrays, wrong, num_classes=CLASSES, reduction="none"
    )
    assert "labels must lie in [0, 13), got 13" in error.get()
    assert np.argwhere(np.isnan(value)).tolist() == [[1, 2]]
    for classes, message in ((0, r"\[1, vocab_size\] = \[1, 24\], got 0"), (25, "got 25")):
        with pytest.raises(ValueError, match=f"num_classes must lie in .*{message}"):
            linear_log_probs(*arrays, LABELS, num_classes=classes)
    with pytest.raises(ValueError, match=r"k must lie in \[1, num_classes\] = \[1, 13\], got 14"):
        linear_top_k(*arrays, 14, num_classes=CLASSES)
    record = TopKTeacher(wrong[..., None], np.zeros((*BATCH, 1)))
    with pytest.raises(ValueError, match=r"teacher.ids must lie in \[-1, 13\)"):
        linear_divergence(arrays, record, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"class_weights must have one value a class, .*\(13,\)"):
        linear_softmax_cross_entropy(
            *arrays, LABELS, num_classes=CLASSES, class_weights=np.ones(ROWS)
        )


NAMES = ("num_classes", "reduction")
