"""Divergences between two heads and their gradients, against whole logits in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxnets.kernels import Head, Tiles, VocabSharding, linear_divergence
from tests.exact_loss import exact_divergence, exact_loss
from tests.inputs import on_device, ones

KINDS = ["forward", "reverse", "jsd"]
BATCH = (2, 5)


def problem(vocab_size=23):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing

    def head(features):
        shapes = (*BATCH, features), (vocab_size, features), (vocab_size,)
        return tuple(on_device(draw.normal(size=shape), jnp.float32) for shape in shapes)

    return head(4), head(6)


def problem_in_float64():
    """The same, some classes out of both."""
    out = np.where(np.arange(23) % 9, 0, -np.inf)
    return [
        tuple(np.asarray(a, np.float64) for a in (h, w, np.asarray(b) + out))
        for h, w, b in problem()
    ]


@pytest.mark.parametrize(
    ("kind", "features_first"),
    [
        pytest.param("forward", False, marks=pytest.mark.smoke),
        ("reverse", True),
        ("jsd", False),
    ],
)
def test_value_and_gradients(x64, kind, features_first):
    student, teacher = problem_in_float64()
    each = np.linspace(0.5, 2.0, 10).reshape(BATCH)
    options = {"beta": 0.3, "temperature": each if features_first else 1.7}
    waves = np.sin(np.arange(10.0)).reshape(BATCH)

    def ours(hidden, weight, bias):
        table = weight.T if features_first else weight
        losses = linear_divergence(
            Head(hidden, table, bias, features_first), teacher, kind=kind, reduction="none",
            tiles=Tiles(vocab_tile=5), **options,
        )  # fmt: skip
        return (losses * waves).sum()

    got = jax.jit(jax.value_and_grad(ours, (0, 1, 2)))(*student)
    losses, backward = exact_divergence(kind, student, teacher, **options)
    wanted = (losses * waves).sum(), *backward(waves)
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)


def test_one_pass_gives_the_mean_and_its_gradient(x64):
    """Of all kinds, with a token left out, a class out, and tiles that divide nothing.

    Both are 0 of equal heads.
    """
    student, _ = problem_in_float64()
    teacher = tuple(np.roll(array, 1, -1) for array in student[:2]) + student[2:]
    weights = np.linspace(0.5, 2.0, 10).reshape(BATCH)
    weights[1, 2] = 0
    options = {"beta": 0.3, "temperature": np.linspace(2.0, 0.7, 10).reshape(BATCH)}

    def ours(hidden, weight, bias, weights, teacher):
        return sum(
            factor * linear_divergence(
                Head(hidden, weight.T, bias, True), teacher, kind=kind, token_weights=weights,
                tiles=Tiles(3, 5), **options,
            )
            for factor, kind in enumerate(KINDS, 1)
        )  # fmt: skip

    program = jax.jit(jax.value_and_grad(ours, (0, 1, 2, 3)))
    for number in jax.tree.leaves(program(*student, weights, student)):
        np.testing.assert_allclose(number, 0, atol=1e-14)
    got, (*gradients, of_weights) = program(*student, weights, teacher)
    share, every = weights / weights.sum(), np.zeros(BATCH)
    expected = [0.0, 0.0, 0.0]
    for factor, kind in enumerate(KINDS, 1):
        losses, backward = exact_divergence(kind, student, teacher, **options)
        every += factor * losses
        pairs = zip(expected, backward(factor * share), strict=True)
        expected = [total + gradient for total, gradient in pairs]
    value = (every * share).sum()
    for a, b in zip((got, *gradients), (value, *expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-11)
    kept = weights != 0  # a weight of 0 has no gradient, as the token leaves no trace
    wanted = (every - value)[kept] / weights.sum()
    np.testing.assert_allclose(of_weights[kept], wanted, rtol=1e-9, atol=1e-11)


def test_the_teacher_gets_no_gradient_and_weight_0_leaves_no_trace():
    student, teacher = problem()
    weights = np.ones(BATCH, np.float32)
    weights[0, 1] = 0
    spoiled = np.where(weights[:, :, None], np.float32(0), np.float32(np.nan))
    bad = [(h + spoiled, w, b) for h, w, b in (student, teacher)]

    def loss(student, teacher):
        return linear_divergence(student, teacher, kind="jsd", token_weights=weights)

    value, derived = jax.jit(jax.value_and_grad(loss, (0, 1)))(*bad)
    of_student, of_teacher = jax.tree.map(np.asarray, derived)
    assert all(not g.any() for g in of_teacher)
    assert not of_student[0][0, 1].any()
    assert all(np.isfinite(g).all() for g in of_student)
    losses, _ = exact_divergence("jsd", student, teacher)
    wanted = (np.asarray(losses) * weights).sum() / weights.sum()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    nothing = [(h[:0], w, b) for h, w, b in (student, teacher)]
    assert linear_divergence(*nothing) == 0


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("forward", AxisType.Auto),
        ("reverse", AxisType.Explicit),
        ("jsd", AxisType.Auto),
    ],
)
def test_over_devices(kind, axes):
    student, teacher = problem(24)
    mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(axes, axes))
    options = {"kind": kind}
    if kind == "reverse":
        each = np.linspace(0.5, 2.0, 10, dtype=np.float32).reshape(BATCH)
        options |= {"labels": np.arange(10).reshape(BATCH), "ignore_index": 3, "temperature": each}

    def loss(*student):
        split = VocabSharding(mesh, "vocab", "data")
        return sum(jax.tree.leaves(linear_divergence(student, teacher, sharding=split, **options)))

    got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*student)
    temperature = options.get("temperature", 1.0)
    losses, backward = exact_divergence(kind, student, teacher, temperature=temperature)
    kept = np.arange(10).reshape(BATCH) != (3 if "labels" in options else -1)
    share = kept / kept.sum()
    wanted = [(losses * share).sum(), *backward(share)]
    if "labels" in options:
        losses, _, backward = exact_loss(*student[:2], options["labels"], student[2])
        more = (losses * share).sum(), *backward(share)[:3]
        wanted = [a + b for a, b in zip(wanted, more, strict=True)]
    for a, b in zip(jax.tree.leaves(got), wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_no_logits_in_memory():
    shapes = (
        jax.ShapeDtypeStruct((1024, 64), jnp.float32),
        jax.ShapeDtypeStruct((16_384, 64), jnp.float32),
        jax.ShapeDtypeStruct((1024, 128), jnp.float32),
        jax.ShapeDtypeStruct((16_384, 128), jnp.float32),
    )

    def loss(hidden, weight, hidden_t, weight_t):
        return linear_divergence((hidden, weight), (hidden_t, weight_t), kind="reverse")

    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
    whole = 4 * 4 * 1024 * 16_384  # of both heads and their gradients
    assert compiled.memory_analysis().temp_size_in_bytes < 1.1 * max(whole / 4, 100e6)
    assert not re.search(r"f32\[1024,16384\]", compiled.as_text())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "js"}, "kind must be one of .*'js'"),
        ({"beta": 1.0}, r"beta must lie in \(0, 1\), got 1.0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"teacher": (ones((2, 5, 6)), ones((9, 6)))}, "the student's 23 classes, got 9"),
        (
            {"teacher": (ones((3, 6)), ones((23, 6)))},
            r"student's tokens \(2, 5\)",
        ),
        ({"teacher": ones(3)}, "teacher must be a Head"),
        ({"reduction": "all"}, "reduction must be one of"),
    ],
)
def test_bad_input(users_checks, change, message):
    student, teacher = problem()
    arguments = {"student": student, "teacher": teacher, **change}
    with pytest.raises((TypeError, ValueError), match=message):
        linear_divergence(**arguments)
