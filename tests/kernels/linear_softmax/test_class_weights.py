"""``class_weights=``: a factor for each token by the class of its label."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import checked_loss, linear_softmax_cross_entropy
from tests.exact_loss import exact_loss

BATCH, FEATURES, VOCAB = (3, 4), 5, 11
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(*BATCH, FEATURES))
WEIGHT = RANDOM.normal(size=(VOCAB, FEATURES))
LABELS = np.array([[0, 1, 2, 3], [4, 4, 10, 7], [0, 9, 3, 3]], np.int8)
BY_CLASS = RANDOM.uniform(0.5, 2.0, VOCAB)
BY_CLASS[3] = 0
BY_TOKEN = RANDOM.uniform(0.5, 2.0, BATCH)


def by_torch(reduction, waves):
    """The formula of ``torch.nn.CrossEntropyLoss(weight=)``: l_n = -w_(y_n) log p_(n, y_n).

    The losses, and the gradients of their sum by ``waves``: by hidden, weight, class and token.
    """
    losses, _, backward = exact_loss(HIDDEN, WEIGHT, LABELS)
    labels = LABELS.astype(int)
    products = BY_TOKEN * BY_CLASS[labels]
    total = products.sum() if reduction == "mean" else 1.0
    each = products * losses / total
    value = each if reduction == "none" else each.sum()
    mean = value if reduction == "mean" else 0.0
    slopes = np.broadcast_to(waves, BATCH) * (losses - mean) / total  # by the products
    of_class = np.bincount(labels.ravel(), (slopes * BY_TOKEN).ravel(), VOCAB)
    gradients = backward(waves * products / total)[:2]
    return value, (*gradients, of_class, slopes * BY_CLASS[labels])


@pytest.mark.parametrize(
    "reduction", [pytest.param("mean", marks=pytest.mark.smoke), "sum", "none"]
)
def test_value_and_gradients(x64, reduction):
    def ours(hidden, weight, by_class, by_token):
        losses = linear_softmax_cross_entropy(
            hidden, weight, LABELS, class_weights=by_class, token_weights=by_token,
            reduction=reduction,
        )  # fmt: skip
        return (losses * jnp.cos(jnp.arange(losses.size).reshape(losses.shape))).sum(), losses

    # A class of weight 0 leaves no trace.
    hidden = np.where((LABELS == 3)[..., None], np.nan, HIDDEN)
    arrays = hidden, WEIGHT, BY_CLASS, BY_TOKEN
    (value, losses), gradients = jax.jit(
        jax.value_and_grad(ours, (0, 1, 2, 3), has_aux=True)
    )(*arrays)  # fmt: skip
    waves = np.cos(np.arange(losses.size).reshape(losses.shape))
    wanted, expected = by_torch(reduction, waves)
    np.testing.assert_allclose(losses, wanted, rtol=1e-11)
    np.testing.assert_allclose(value, (wanted * waves).sum(), rtol=1e-11)
    of_class = np.bincount(LABELS.ravel(), minlength=VOCAB) > 0
    for a, b in zip(map(np.asarray, gradients), expected, strict=True):
        # A weight of 0 leaves no trace, not the derivative by itself either.
        where = np.ones(b.shape, bool)
        if b.shape == (VOCAB,):
            where = of_class & (BY_CLASS != 0)
        elif b is expected[-1]:
            where = LABELS != 3
        np.testing.assert_allclose(a[where], b[where], rtol=1e-9, atol=1e-12)


def test_weight_0_leaves_no_trace_where_all_is_known():
    hidden = np.where((LABELS == 3)[..., None], np.nan, HIDDEN).astype(np.float32)
    weight = WEIGHT.astype(np.float32)
    by_class = (BY_CLASS > 0).astype(np.uint8)
    nothing = linear_softmax_cross_entropy(hidden, weight, LABELS, class_weights=np.zeros(VOCAB))
    assert nothing == 0
    error, value = jax.jit(checked_loss(linear_softmax_cross_entropy))(
        hidden, weight, LABELS, class_weights=by_class
    )
    error.throw()
    losses, _, _ = exact_loss(HIDDEN, WEIGHT, LABELS)
    np.testing.assert_allclose(value, losses[LABELS != 3].mean(), rtol=1e-6)


def test_a_label_out_of_range_is_nan_or_left_out():
    labels = LABELS.copy()
    labels[0, 0], labels[1, 1] = -1, VOCAB
    losses = jax.jit(
        lambda labels, by_class: linear_softmax_cross_entropy(
            HIDDEN, WEIGHT, labels, class_weights=by_class, ignore_index=-1, reduction="none"
        )
    )(labels, np.zeros(VOCAB))
    assert np.argwhere(np.isnan(losses)).tolist() == [[1, 1]]
    assert not np.nan_to_num(losses).any()


def test_on_an_explicit_mesh_without_a_sharding():
    mesh = jax.make_mesh(
        (3,), ("data",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:3]
    )
    rows = jax.device_put(HIDDEN.astype(np.float32), jax.NamedSharding(mesh, jax.P("data")))
    got = jax.jit(
        lambda *a: linear_softmax_cross_entropy(*a, LABELS, class_weights=BY_CLASS)
    )(rows, WEIGHT.astype(np.float32))  # fmt: skip
    losses, _, _ = exact_loss(HIDDEN, WEIGHT, LABELS)
    wanted = np.average(losses, weights=BY_CLASS[LABELS.astype(int)])
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_weights": np.ones(7)}, r"class_weights must have one value a class, .*\(11,\)"),
        ({"class_weights": ["a"] * VOCAB}, "class_weights must be numbers"),
        (
            {"class_weights": np.ones(VOCAB), "label_smoothing": 0.1},
            "class_weights must come without label_smoothing",
        ),
    ],
)
def test_bad_input(users_checks, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        linear_softmax_cross_entropy(HIDDEN, WEIGHT, LABELS, **options)
