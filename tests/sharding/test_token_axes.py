"""Tokens over several axes of a mesh, and a table that is kept split over one of them (FSDP)."""

import re
from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxnets.kernels import (
    Tiles,
    VocabSharding,
    linear_log_probs,
    linear_softmax_cross_entropy,
)
from tests.exact_loss import exact_log_probs, exact_loss

TOKEN_AXES, CLASSES, ROWS, FEATURES = ("data", "fsdp"), 150, 160, 8
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(8, 3, FEATURES)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(ROWS, FEATURES)).astype(np.float32)
LABELS = RANDOM.integers(0, CLASSES, (8, 3)).astype(np.int16)
LABELS[0, 1] = -1
EACH = np.linspace(0.5, 2.0, 24, dtype=np.float32).reshape(8, 3)
OPTIONS = {"num_classes": CLASSES, "ignore_index": -1, "tiles": Tiles(token_tile=4, vocab_tile=30)}


def one_pass(hidden, weight, **options):
    return linear_softmax_cross_entropy(
        hidden, weight, LABELS, label_smoothing=0.1, temperature=EACH, **OPTIONS, **options
    )


def two_passes(hidden, weight, **options):
    found = linear_log_probs(hidden, weight, LABELS, top_k=3, **OPTIONS, **options)
    return (EACH * found.log_prob + found.entropy).sum()


def gathers(text):
    """Of a compiled program, the all-gathers, and those of them inside of loops."""
    bodies, inside, found = set(re.findall(r"body=%([\w.\-]+)", text)), None, []
    for line in text.splitlines():
        if line.endswith("{") and (computation := re.match(r"(?:ENTRY )?%([\w.\-]+) \(", line)):
            inside = computation[1] in bodies
        if re.search(r" all-gather(-start)?\(", line):
            found.append(inside)
    return found


@pytest.mark.parametrize(
    ("loss", "kind", "vocab_axis", "spec", "features_first"),
    [
        (one_pass, AxisType.Auto, "vocab", P("vocab", "fsdp"), False),
        (two_passes, AxisType.Explicit, None, P(None, "fsdp"), True),
    ],
    ids=["features over fsdp", "classes over fsdp"],
)
def test_a_table_is_gathered_once(loss, kind, vocab_axis, spec, features_first):
    """Not in each tile, forward and backward; and the numbers are those of one device."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "vocab"), axis_types=(kind,) * 3)
    sharding = VocabSharding(mesh, vocab_axis, TOKEN_AXES)
    hidden = jax.device_put(HIDDEN, NamedSharding(mesh, P(TOKEN_AXES)))
    table = jax.device_put(WEIGHT.T if features_first else WEIGHT, NamedSharding(mesh, spec))
    value = partial(loss, features_first=features_first, sharding=sharding)
    program = jax.jit(jax.value_and_grad(value, (0, 1))).lower(hidden, table).compile()
    assert gathers(program.as_text()) == [False]
    got, (d_hidden, d_weight) = program(hidden, table)
    kept, few = LABELS != -1, WEIGHT[:CLASSES]
    labels = np.where(kept, LABELS, 0)
    if loss is one_pass:
        losses, _, backward = exact_loss(HIDDEN, few, labels, label_smoothing=0.1, temperature=EACH)
        wanted, expected = (losses * kept).sum() / kept.sum(), backward(kept / kept.sum())
    else:
        (log_prob, entropy, _, _), backward = exact_log_probs(HIDDEN, few, labels)
        wanted, expected = ((EACH * log_prob + entropy) * kept).sum(), backward(EACH * kept, kept)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(d_hidden, expected[0], rtol=1e-4, atol=1e-5)
    d_weight = np.asarray(d_weight).T if features_first else np.asarray(d_weight)
    np.testing.assert_allclose(d_weight[:CLASSES], expected[1], rtol=1e-4, atol=1e-5)
    assert not d_weight[CLASSES:].any()
