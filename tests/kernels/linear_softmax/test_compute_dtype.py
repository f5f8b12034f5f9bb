"""``compute_dtype=``: matmuls in few bits from float32 arrays, everything else in float32."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import (
    Head,
    Tiles,
    VocabSharding,
    linear_divergence,
    linear_log_probs,
    linear_softmax_cross_entropy,
)
from tests.exact_loss import exact_divergence, exact_log_probs, exact_loss
from tests.inputs import on_device

BATCH, FEATURES, VOCAB = (2, 12), 16, 104
TILES = Tiles(token_tile=24, vocab_tile=52)
EPSILON = float(jnp.finfo(jnp.bfloat16).eps)
RANDOM = np.random.default_rng(0)
HIDDEN = RANDOM.normal(size=(*BATCH, FEATURES)).astype(np.float32)
WEIGHT = RANDOM.normal(size=(VOCAB, FEATURES)).astype(np.float32)
BIAS = RANDOM.normal(size=VOCAB).astype(np.float32)
LABELS = RANDOM.integers(0, VOCAB, BATCH)
WAVES = 1.5 + np.sin(np.arange(LABELS.size, dtype=np.float32)).reshape(BATCH)


def one_pass(hidden, weight, bias, **options):
    return linear_softmax_cross_entropy(hidden, weight, LABELS, bias=bias, **options)


def smoothed(hidden, weight, bias, **options):
    return one_pass(hidden, weight, bias, label_smoothing=0.2, z_loss=1e-2, **options)


def each_token(hidden, weight, bias, **options):
    return (WAVES * one_pass(hidden, weight, bias, reduction="none", **options)).sum()


def log_probs(hidden, weight, bias, **options):
    found = linear_log_probs(hidden, weight, LABELS, bias=bias, **options)
    return (WAVES * found.log_prob + found.entropy).sum()


def divergence(hidden, weight, bias, **options):
    first = options.pop("features_first", False)
    teacher = Head(HIDDEN[::-1], WEIGHT[::-1], BIAS)
    return linear_divergence(Head(hidden, weight, bias, first), teacher, kind="jsd", **options)


LOSSES = [one_pass, smoothed, each_token, log_probs, divergence]


def gradient(loss, compute_dtype, **options):
    options = {"tiles": TILES, **options}

    def value(*arrays):
        return loss(*arrays, compute_dtype=compute_dtype, **options)

    return jax.jit(jax.value_and_grad(value, (0, 1, 2)))


def turned(loss, table):
    """``table``, features first for some of the losses."""
    return table.T if loss in (smoothed, log_probs) else table


@functools.cache
def on_one_device(loss):
    """What is lowered and compiled for bfloat16, the value and the gradients."""
    arrays = HIDDEN, turned(loss, WEIGHT), BIAS
    first = arrays[1] is not WEIGHT
    program = gradient(loss, "bfloat16", features_first=first).lower(*arrays)
    compiled = program.compile()
    return program.as_text(), compiled.as_text(), *compiled(*arrays)


# The options and the factors of the tokens' losses.
EXACT = {
    one_pass: ({}, 1 / LABELS.size),
    smoothed: ({"label_smoothing": 0.2, "z_loss": 1e-2}, 1 / LABELS.size),
    each_token: ({}, WAVES),
}


def in_float32(loss):
    if loss is log_probs:
        (log_prob, entropy, _, _), backward = exact_log_probs(HIDDEN, WEIGHT, LABELS, BIAS)
        return (WAVES * log_prob + entropy).sum(), backward(WAVES, 1)[:3]
    if loss is divergence:
        teacher = HIDDEN[::-1], WEIGHT[::-1], BIAS
        losses, backward = exact_divergence("jsd", (HIDDEN, WEIGHT, BIAS), teacher)
        return losses.mean(), backward(1 / LABELS.size)
    options, factors = EXACT[loss]
    losses, _, backward = exact_loss(HIDDEN, WEIGHT, LABELS, BIAS, **options)
    return (factors * losses).sum(), backward(factors)[:3]


@pytest.mark.parametrize("loss", LOSSES)
def test_what_is_computed(loss):
    """Rounded operands, float32 sums; no product of float32 matrices, no rounded table."""
    text, compiled, value, gradients = on_one_device(loss)
    operands = re.findall(
        r"dot_general .* : \((tensor<\d+x\d+x\w+>), (tensor<\d+x\d+x\w+>)\)", text
    )
    assert len(operands) >= 3
    assert all("bf16" in operand for pair in operands for operand in pair)
    shape = ",".join(map(str, turned(loss, WEIGHT).shape))
    assert f"tensor<{shape.replace(',', 'x')}xbf16>" not in text
    assert f"bf16[{shape}]" not in compiled

    assert value.dtype == jnp.float32
    assert all(g.dtype == jnp.float32 for g in gradients)
    wanted, expected = in_float32(loss)
    # An error of eps / 2 in each factor of a logit, and again in the factors of its gradient.
    np.testing.assert_allclose(value, wanted, rtol=4 * EPSILON)
    found = gradients[0], turned(loss, gradients[1]), gradients[2]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=4 * EPSILON * np.abs(b).max())
        assert np.abs(a - b).max() > 0
    # More bits than bfloat16 has: the gradients were never rounded to it.
    assert any((np.asarray(g) != np.asarray(g.astype(jnp.bfloat16), np.float32)).any()
               for g in gradients[:1])  # fmt: skip


def test_the_same_as_of_rounded_arrays(x64):
    """In float64 the reference of what was rounded: hidden states and table, not the bias."""
    rounded = [jnp.asarray(a, jnp.bfloat16).astype(jnp.float64) for a in (HIDDEN, WEIGHT)]
    wanted, _, _ = exact_loss(*rounded, LABELS, BIAS)
    value = jax.jit(lambda *a: one_pass(*a, compute_dtype=jnp.bfloat16, reduction="none"))
    losses = value(HIDDEN, WEIGHT, BIAS)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5, atol=1e-5)
    wide = value(*(a.astype(np.float64) for a in (HIDDEN, WEIGHT, BIAS)))
    assert wide.dtype == jnp.float32
    np.testing.assert_array_equal(wide, losses)


def test_arrays_of_that_dtype_are_what_they_were():
    arrays = [on_device(a, jnp.bfloat16) for a in (HIDDEN, WEIGHT, BIAS)]
    programs = [gradient(one_pass, dtype).lower(*arrays).as_text() for dtype in ("bfloat16", None)]
    assert programs[0] == programs[1]


@pytest.mark.parametrize("loss", LOSSES[1:])  # the first is the second, unsmoothed
def test_over_devices(loss):
    kind = AxisType.Explicit if loss in (smoothed, log_probs) else AxisType.Auto
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(kind, kind))
    split = VocabSharding(mesh, "vocab", "data")
    got = gradient(loss, "bfloat16", sharding=split)(HIDDEN, WEIGHT, BIAS)
    _, _, value, (d_hidden, d_table, d_bias) = on_one_device(loss)
    wanted = value, d_hidden, turned(loss, d_table), d_bias
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        # Other tiles: a softmax that is rounded above another maximum.
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=EPSILON * np.abs(b).max())


@pytest.mark.parametrize("loss", [one_pass, log_probs, divergence])
@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("int8", "compute_dtype must be floating point, got int8"),
        ("float64", "16 bits or more, and no more than hidden and weight, .* float32; got float64"),
        ("float8_e4m3fn", "16 bits or more"),
        ("half a float", "compute_dtype must be a dtype or None, got 'half a float'"),
    ],
)
def test_bad_input(users_checks, loss, dtype, message):
    with pytest.raises((TypeError, ValueError), match=message):
        loss(HIDDEN, WEIGHT, BIAS, compute_dtype=dtype)
