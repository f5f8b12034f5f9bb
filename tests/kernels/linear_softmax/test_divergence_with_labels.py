"""A divergence, and the cross-entropy of labels from the same passes over the logits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import Head, Tiles, TopKTeacher, linear_divergence
from tests.exact_loss import exact_divergence, exact_loss
from tests.kernels.linear_softmax.test_divergence import BATCH, problem

LABELS = np.array([[7, 1, 2, -9, 22], [5, 5, 0, 22, 13]], np.int8)
EACH = np.linspace(0.5, 2.0, 10).reshape(BATCH)
WEIGHTS = np.linspace(1.0, 3.0, 10).reshape(BATCH)
TILES = Tiles(vocab_tile=5)  # the last one is moved back
KEPT = LABELS != -9


def heads(dtype):
    """The hidden states of the token that is left out are NaN."""
    spoiled = np.where(KEPT, 0, np.nan)[..., None]
    return [
        (np.asarray(h + spoiled, dtype), np.asarray(w, dtype), np.asarray(b, dtype))
        for h, w, b in problem()
    ]


def record(teacher, temperature):
    """All classes of a teacher: the whole divergence, though by the other function."""
    hidden, weight, bias = (jnp.nan_to_num(a) for a in teacher)
    logits = (hidden @ weight.T + bias) / jnp.asarray(temperature)[..., None]
    ids = jnp.broadcast_to(jnp.arange(weight.shape[0]), logits.shape)
    return TopKTeacher(ids, jax.nn.log_softmax(logits), jnp.zeros(BATCH))


CASES = [
    ("jsd", {"temperature": EACH}, False),
    ("record", {"temperature": EACH}, True),
]


def both_losses(case, student, teacher, **more):
    kind, options, first = case
    hidden, weight, bias = student
    if kind == "record":
        kind, teacher = "forward", record(teacher, options.get("temperature", 1.0))
    return linear_divergence(
        Head(hidden, weight.T if first else weight, bias, first), teacher, kind=kind,
        labels=LABELS, ignore_index=-9, token_weights=WEIGHTS, tiles=TILES, **options, **more,
    )  # fmt: skip


def test_value_and_gradients(x64):
    """Of any sum of the two; a token that is left out leaves no trace in either."""
    student, teacher = heads(np.float64)

    def ours(case, *student):
        found = both_losses(case, student, teacher)
        return 0.3 * found.divergence + 0.7 * found.cross_entropy

    found = jax.jit(
        lambda *s: [jax.value_and_grad(partial(ours, case), (0, 1, 2))(*s) for case in CASES]
    )(*student)
    whole = [(np.nan_to_num(h), w, b) for h, w, b in (student, teacher)]
    share = WEIGHTS * KEPT / (WEIGHTS * KEPT).sum()
    hidden, weight, bias = whole[0]
    losses, _, of_losses = exact_loss(hidden, weight, np.where(KEPT, LABELS, 0), bias)
    for got, (kind, options, _) in zip(found, CASES, strict=True):
        kind = "forward" if kind == "record" else kind
        divergences, of_divergences = exact_divergence(kind, *whole, **options)
        value = ((0.3 * divergences + 0.7 * losses) * share).sum()
        pairs = zip(of_divergences(0.3 * share), of_losses(0.7 * share), strict=False)
        wanted = value, *(a + b for a, b in pairs)
        for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
            assert np.isfinite(a).all()


@pytest.mark.parametrize("case", CASES, ids=["jsd", "record"])
def test_labels_cost_no_product(case):
    """As many matmuls as a loss a token takes without; a sum of heads takes half of them."""
    student, teacher = heads(np.float32)

    def products(labels, reduction="none"):
        def loss(*student):
            found = both_losses(case, student, teacher, reduction="sum")
            return sum(found) if labels else found[0]

        def alone(hidden, weight, bias):
            kind, options, _ = case
            kind, given = (
                ("forward", record(teacher, EACH)) if kind == "record" else (kind, teacher)
            )
            return linear_divergence(
                (hidden, weight, bias),
                given,
                kind=kind,
                tiles=TILES,
                reduction=reduction,
                **options,
            ).sum()

        return re.findall(
            r"dot_general .* : \(tensor<\d+x\d+xf32>, tensor<\d+x\d+xf32>\)",
            jax.jit(jax.grad(loss if labels else alone, (0, 1, 2))).lower(*student).as_text(),
        )

    # Of a record: logits, logits again, and two for the gradients; of heads, logits of both, three
    # times, and two, or once where one pass does.
    assert len(products(True)) == len(products(False)) == (4 if case[0] == "record" else 8)
    assert len(products(False, "sum")) == 4


def test_what_only_values_tell(users_checks):
    student, teacher = problem()

    def found(labels, temperature):
        return linear_divergence(
            student, teacher, labels=labels, temperature=temperature, reduction="none"
        )

    labels, each = np.where(KEPT, LABELS, 0).astype(np.uint16), EACH.astype(np.float32)
    labels[0, 1], each[1, 2] = 23, 0
    divergence, cross_entropy = jax.jit(found)(labels, each)
    assert np.argwhere(np.isnan(divergence)).tolist() == [[1, 2]]
    assert np.argwhere(np.isnan(cross_entropy)).tolist() == [[0, 1]]
    for options, message in (
        ({"labels": labels}, r"labels must lie in \[0, vocab_size\) = \[0, 23\), got 23"),
        ({"labels": LABELS[0]}, "labels must have shape"),
        ({"ignore_index": 3}, "ignore_index must come with labels, got 3 without"),
        ({"temperature": each}, "temperature must be above 0, got 0.0"),
        ({"temperature": each[0]}, "temperature must be one number for all tokens or one a token"),
    ):
        with pytest.raises(ValueError, match=message):
            linear_divergence(student, teacher, **options)
