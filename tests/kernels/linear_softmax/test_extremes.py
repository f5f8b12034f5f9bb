"""Sizes beyond int32, by lowered programs alone; many classes and large logits in few bits."""

import math
import re

import jax
import numpy as np
import pytest

from jaxnets.kernels import (
    linear_divergence,
    linear_label_rank,
    linear_log_probs,
    linear_softmax_cross_entropy,
    linear_top_k,
)

TOKENS, CLASSES, FEATURES = 2**17, 2**18, 8


def differentiated(hidden, weight, labels):
    found = linear_log_probs(hidden, weight, labels, top_k=2)
    return (
        linear_softmax_cross_entropy(hidden, weight, labels)
        + (found.log_prob + found.entropy).mean()
        + sum(linear_divergence((hidden, weight), (hidden[::-1], weight), labels=labels))
    )


def evaluated(hidden, weight, labels):
    return linear_top_k(hidden, weight, 2), linear_label_rank(hidden, weight, labels)


@pytest.mark.parametrize("function", [jax.grad(differentiated, (0, 1)), evaluated])
def test_more_logits_than_int32_numbers(function):
    """And no array of theirs: the largest is a tile of tokens by all classes."""
    shapes = (
        ((TOKENS, FEATURES), "bfloat16"),
        ((CLASSES, FEATURES), "bfloat16"),
        ((TOKENS,), "int32"),
    )
    text = jax.jit(function).lower(*[jax.ShapeDtypeStruct(*s) for s in shapes]).as_text()
    sizes = {
        math.prod(map(int, shape.split("x")[:-1]))
        for shape in re.findall(r"tensor<((?:\d+x)+\w+)>", text)
    }
    assert TOKENS * CLASSES > 2**31
    assert max(sizes) <= 512 * CLASSES


def test_the_log_sum_exp_of_bfloat16_is_that_of_float64():
    """For logits of order 1 and 1000, of which only the products of few bits are rounded, once."""
    draw = np.random.default_rng(0)
    hidden, weight = (draw.normal(size=(n, 64)) for n in (3, 5000))
    hidden = (hidden * [[0.1], [1.0], [100.0]]).astype(jax.numpy.bfloat16)
    weight, labels = weight.astype(jax.numpy.bfloat16), np.array([3, 4999, 17])

    @jax.jit
    def found(hidden, weight):
        def loss(hidden, weight):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, return_log_sum_exp=True, reduction="none"
            )

        results, backward = jax.vjp(loss, hidden, weight)
        return results, backward(jax.tree.map(jax.numpy.ones_like, results))

    (losses, log_sum_exp), gradients = found(hidden, weight)
    logits = hidden.astype(np.float64) @ weight.astype(np.float64).T
    largest = logits.max(-1)
    wanted = largest + np.log(np.exp(logits - largest[:, None]).sum(-1))
    of_labels = logits[np.arange(3), labels]
    eps = float(np.finfo(np.float32).eps)
    error = 64 * eps * np.abs(logits).max(-1) + 20 * eps
    assert (np.abs(log_sum_exp - wanted) < error).all()
    assert (np.abs(losses - (wanted - of_labels)) < 2 * error).all()
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in gradients)
