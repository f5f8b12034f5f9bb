"""Which matmuls there are, of what precision, read from lowered programs: none is compiled."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxnets.kernels import linear_divergence, linear_log_probs, linear_softmax_cross_entropy

TOKENS, FEATURES, VOCAB = 24, 16, 104
LABELS = np.arange(TOKENS) % VOCAB


def one_pass(hidden, weight, **options):
    return linear_softmax_cross_entropy(hidden, weight, LABELS, label_smoothing=0.1, **options)


def two_passes(hidden, weight, **options):
    losses = linear_softmax_cross_entropy(hidden, weight, LABELS, reduction="none", **options)
    return (losses**2).sum()


def log_probs(hidden, weight, **options):
    found = linear_log_probs(hidden, weight, LABELS, **options)
    return (found.log_prob + found.entropy).sum()


def divergence(hidden, weight, **options):
    teacher = jnp.sin(hidden), jnp.cos(weight)
    return sum(linear_divergence((hidden, weight), teacher, labels=LABELS, **options))


LOSSES = [one_pass, two_passes, log_probs, divergence]


def products(function, dtype="float32"):
    """Of a program's products of matrices: precision, operands and result, as they are written.

    Without those by a triangle of ones that count (``running_count``).
    """
    shapes = (TOKENS, FEATURES), (VOCAB, FEATURES)
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    text = jax.jit(function).lower(*arrays).as_text()
    matrix = r"tensor<(?!64x64x)\d+x\d+x(\w+)>"
    return re.findall(rf"dot_general .*?\[(\w+), \w+\] : \({matrix}, {matrix}\) -> {matrix}", text)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_product_of_float32_is_left_in_bfloat16(loss):
    """Summed in float32, all; and the precision is that which is asked for."""
    found = products(
        jax.grad(lambda hidden, weight: loss(hidden, weight, precision="highest"), (0, 1)),
        "bfloat16",
    )
    assert len(found) >= 3
    assert set(found) == {("HIGHEST", "bf16", "bf16", "f32")}


@pytest.mark.parametrize(("loss", "count"), [*zip(LOSSES, (4, 3, 3, 5), strict=True)])
def test_a_frozen_head_costs_nothing(loss, count):
    """A matmul less than with it, where the table is no argument of the gradient, or is stopped.

    In one pass two of those left are for the shift: of a few classes, and of all where it fails.
    """

    def stopped(hidden, weight):
        return loss(hidden, lax.stop_gradient(weight))

    argnums = (0, 1) if loss is one_pass else 0
    assert len(products(jax.grad(stopped if loss is one_pass else loss, argnums))) == count


def test_loss_and_accuracy_come_from_one_pass():
    labels = np.where(LABELS % 5, LABELS, -1)

    def both(hidden, weight):
        found = linear_log_probs(hidden, weight, labels, ignore_index=-1)
        kept = labels != -1
        correct = (found.argmax == labels) & kept
        return -found.log_prob.sum() / kept.sum(), correct.sum() / kept.sum()

    assert len(products(both)) == 1
    assert len(products(jax.value_and_grad(both, (0, 1), has_aux=True))) == 4
    draw = np.random.default_rng(0)
    hidden, weight = (draw.normal(size=(n, FEATURES)).astype(np.float32) for n in (TOKENS, VOCAB))
    hidden[:9] = 3 * weight[:9]
    loss, accuracy = jax.jit(both)(hidden, weight)
    kept, right = labels != -1, (hidden @ weight.T).argmax(-1) == labels
    np.testing.assert_allclose(accuracy, right[kept].mean())
    assert 0 < accuracy < 1
    wanted = linear_softmax_cross_entropy(hidden, weight, labels, ignore_index=-1)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_bad_precision(users_checks):
    arrays = np.ones((TOKENS, FEATURES)), np.ones((VOCAB, FEATURES))
    for options, message in (
        ({"precision": "much"}, "precision must be None, a jax.lax.Precision or .* got 'much'"),
        ({"precision": "high", "implementation": "pallas"}, "'tiled' or None with precision"),
    ):
        with pytest.raises(ValueError, match=message):
            one_pass(*arrays, **options)
