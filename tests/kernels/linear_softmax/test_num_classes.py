"""``num_classes=``: what pads a table, be it a whole tile or a device's part, is no class."""

import jax
import jax.numpy as jnp
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
from jaxnets.kernels.linear_softmax import reference
from tests.kernels.linear_softmax.test_divergence import plain as plain_divergence

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


def plain(hidden, weight, bias):
    """The same of the classes alone."""
    labels = jnp.asarray(LABELS, int)
    log_p = jax.nn.log_softmax(hidden @ weight.T / EACH[..., None])
    picked = jnp.take_along_axis(log_p, labels[..., None], -1)[..., 0]
    entropy = -(jnp.exp(log_p) * log_p).sum(-1)
    teacher = HIDDEN, TEACHER[:CLASSES], jnp.zeros(CLASSES)
    cross_entropy, _ = reference.linear_softmax_cross_entropy(hidden, weight, labels, bias=bias)
    return [
        reference.linear_softmax_cross_entropy(hidden, weight, labels, **SMOOTHED)[0].mean(),
        (WAVES * picked + entropy).sum(),
        (plain_divergence("jsd", (hidden, weight, bias), teacher) + cross_entropy).mean(),
    ]


def test_values_and_gradients(x64):
    def mixed(function):
        def loss(*arrays):
            found = function(*arrays)
            return sum(i * a for i, a in enumerate(found, 1)), found

        return jax.value_and_grad(loss, (0, 1, 2), has_aux=True)

    (got, gradients), (wanted, expected) = jax.jit(
        lambda h, w, b: (mixed(losses)(h, w, b), mixed(plain)(h, w[:CLASSES], b[:CLASSES]))
    )(HIDDEN, TABLE, BIAS)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-11)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a[: b.shape[0]], b, rtol=1e-9, atol=1e-11)
        assert not np.asarray(a[b.shape[0] :]).any()


def float32(*arrays):
    return tuple(np.asarray(a, np.float32) for a in arrays)


def test_on_pallas():
    def loss(num_classes, implementation, hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, LABELS, bias=bias, num_classes=num_classes, **SMOOTHED,
            implementation=implementation,
        )  # fmt: skip

    hidden, weight, bias = float32(HIDDEN, TABLE, BIAS)
    with compiling_for("gpu", interpret=True):
        value = loss(CLASSES, "pallas", hidden, weight, bias)
    wanted = loss(None, "tiled", hidden, weight[:CLASSES], bias[:CLASSES])
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


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

    def theirs(hidden, weight):
        labels = jnp.asarray(LABELS, int)
        return reference.linear_softmax_cross_entropy(hidden, weight, labels, **SMOOTHED)[0].mean()

    (loss, (above, ids)), gradients = jax.jit(
        jax.value_and_grad(ours, (0, 1), has_aux=True)
    )(hidden, weight)  # fmt: skip
    wanted, expected = jax.jit(jax.value_and_grad(theirs, (0, 1)))(hidden, weight[:CLASSES])
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    for a, b in zip(map(np.asarray, gradients), expected, strict=True):
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
