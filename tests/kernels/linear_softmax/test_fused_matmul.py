"""The Pallas kernels on a fused matmul, interpreted here: against the equation, or XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    compiling_for,
    linear_softmax_cross_entropy,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.pallas import fused_matmul as fm
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.lowering import for_gpu
from tests.near import assert_near
from tests.sampled_losses import sampled_loss

PLATFORMS = ("gpu", "tpu")
FLOAT32 = jnp.dtype(jnp.float32)


def rounding(dtype, depth):
    """A bound on the relative error of sums of ``depth`` terms, of the size of their square sum."""
    return 4 * float(jnp.finfo(dtype).eps) * max(1.0, depth**0.5)


def close(got, wanted, tolerance):
    assert_near(got, wanted, tolerance, 1e-3)


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def integers(seed, shape, end):
    return jnp.asarray(np.random.default_rng(seed).integers(0, end, shape))


def with_platforms(cases, others):
    """Every case on both platforms, on each with another of two others; so all pairs are met."""
    return [
        (platform, others[(m + n) % 2], case)
        for m, case in enumerate(cases)
        for n, platform in enumerate(PLATFORMS)
    ]


def both(platform, function, implementation, *arrays):
    """What ``function("pallas")`` and of the other implementation give, by one program."""

    @jax.jit
    def run(*arrays):
        wanted = function(implementation)(*arrays)
        with compiling_for(platform, interpret=True):
            return function("pallas")(*arrays), wanted

    return run(*arrays)


def scaled_and_largest(rows, product, row_ids, row_inputs, column_inputs, _tiles):
    total = product * row_inputs[0] + column_inputs[0]
    return total, jnp.where(row_ids < rows, total, -jnp.inf).max(0)


SHAPES = [(33, 17, 5), (130, 70, 600), (600, 520, 16), (1, 1, 1)]


@pytest.mark.parametrize(("platform", "gathered", "shape"), with_platforms(SHAPES, (False, True)))
def test_fused_matmul_is_its_reference(platform, gathered, shape):
    rows, columns, depth = shape
    left, right = normal(0, rows, depth), normal(1, columns, depth)
    ids = integers(2, (rows + 3,), rows) if gathered else None
    count = rows + 3 if gathered else rows
    inputs = fm.Inputs([normal(3, count)], [normal(4, columns)])
    arguments = {
        "epilogue": lambda *a: scaled_and_largest(count, *a),
        "outputs": (fm.Tile(FLOAT32), fm.Reduced(FLOAT32)),
        "left_ids": ids,
    }
    options = fm.PallasOptions(Target(platform, interpret=True))

    @jax.jit
    def run(left, right, inputs):
        product, largest = fm.fused_matmul(options, left, right, inputs, name="test", **arguments)
        wanted = fm.reference(left, right, inputs, **arguments)
        return (product, largest.max(0)), wanted

    close(*run(left, right, inputs), rounding(jnp.float32, depth))


def softmax_problem(dtype, tokens=37, features=24, vocab_size=601):
    hidden = normal(0, tokens, features, dtype=dtype)
    weight = normal(1, vocab_size, features, dtype=dtype)
    bias = normal(2, vocab_size, dtype=dtype)
    return hidden, weight, bias, integers(3, (tokens,), vocab_size)


DTYPES = (jnp.float32, jnp.bfloat16)
OPTIONS = [  # without any, below: in few bits, and with a label out of range
    {"soft_cap": 5.0, "label_smoothing": 0.2, "z_loss": 1e-3},
    {"temperature": 2.0, "label_smoothing": 0.1, "reduction": "sum", "ignore_index": 7},
]


@pytest.mark.parametrize(
    ("platform", "dtype", "options"),
    [
        pytest.param(*case, marks=pytest.mark.smoke if "soft_cap" in case[2] else ())
        for case in with_platforms(OPTIONS, DTYPES)
    ],
    ids=str,
)
def test_full_softmax_has_values_and_gradients_of_the_equation(platform, dtype, options):
    hidden, weight, bias, labels = softmax_problem(dtype)
    if "ignore_index" in options:
        labels = np.where(np.arange(37) % 5, labels, 7)
    kept = np.asarray(labels) != options.get("ignore_index", -1)

    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, implementation="pallas", **options
        )

    with compiling_for(platform, interpret=True):
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, weight, bias)
    arithmetic = {k: v for k, v in options.items() if k not in ("reduction", "ignore_index")}
    losses, _, backward = exact_loss(hidden, weight, labels, bias, **arithmetic)
    factors = kept if options.get("reduction") == "sum" else kept / kept.sum()
    close(found, ((factors * losses).sum(), backward(factors)[:3]), rounding(dtype, 24))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_softmax_in_several_chunks(platform, monkeypatch):
    """The last chunk is moved back inside the vocabulary; no class counts twice."""
    from jaxnets.kernels.linear_softmax import pallas

    monkeypatch.setattr(pallas, "_CHUNK", 1)  # chunks of 512 classes
    hidden, weight, bias, labels = softmax_problem(jnp.float32, vocab_size=1201)
    cotangent = normal(5, 37)

    def loss(hidden, weight, bias):
        losses, log_sum_exp = linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, reduction="none", return_log_sum_exp=True,
            label_smoothing=0.1, implementation="pallas",
        )  # fmt: skip
        return (losses * cotangent + log_sum_exp).sum()

    with compiling_for(platform, interpret=True):
        found = jax.jit(jax.grad(loss, (0, 1, 2)))(hidden, weight, bias)
    backward = exact_loss(hidden, weight, labels, bias, label_smoothing=0.1)[2]
    close(found, backward(np.asarray(cotangent), 1)[:3], rounding(jnp.float32, 37))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_softmax_in_few_bits(platform):
    """``compute_dtype``: a float32 table is rounded chunk by chunk."""
    hidden, weight, bias, labels = softmax_problem(jnp.float32)

    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, compute_dtype="bfloat16", implementation="pallas"
        )

    with compiling_for(platform, interpret=True):
        got = jax.jit(jax.grad(loss, (0, 1, 2)))(hidden, weight, bias)
    assert all(g.dtype == jnp.float32 for g in got)
    rounded = (np.asarray(a, jnp.bfloat16) for a in (hidden, weight))
    backward = exact_loss(*rounded, labels, bias)[2]
    close(got, backward(1 / 37)[:3], rounding(jnp.bfloat16, 37))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_softmax_marks_a_label_out_of_range(platform):
    hidden, weight, bias, labels = softmax_problem(jnp.float32)
    labels = np.where(np.arange(37) == 3, 601, labels)

    @jax.jit
    def gradient(hidden, labels):
        def loss(hidden):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, reduction="none", implementation="pallas"
            )

        losses, backward = jax.vjp(loss, hidden)
        return losses, backward(jnp.ones_like(losses))[0]

    with compiling_for(platform, interpret=True):
        losses, hidden_gradient = gradient(hidden, labels)
    only = np.arange(37) == 3
    assert (np.isnan(losses) == only).all()
    assert (np.isnan(hidden_gradient) == only[:, None]).all()


# Each value of an argument meets each of every other.
@pytest.mark.parametrize(
    ("platform", "dtype", "num_true", "remove"),
    [
        pytest.param("gpu", jnp.float32, 0, False, marks=pytest.mark.smoke),
        ("gpu", jnp.bfloat16, 3, True),
        ("tpu", jnp.float32, 3, True),
        ("tpu", jnp.bfloat16, 0, True),
        ("tpu", jnp.bfloat16, 3, False),
    ],
)
def test_sampled_softmax_has_values_and_gradients_of_the_equation(
    platform, dtype, num_true, remove
):
    hidden, weight, bias, labels = softmax_problem(dtype)
    if num_true:
        labels = integers(4, (37, num_true), 601)
    samples = fixed_samples(601, labels, np.arange(601)[:150] ** 2 % 601)

    options = {"remove_accidental_hits": remove}

    def loss(hidden, weight, bias):
        return sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias, implementation="pallas", **options
        )

    with compiling_for(platform, interpret=True):
        found = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(hidden, weight, bias)
    losses, backward = sampled_loss("softmax", hidden, weight, labels, samples, bias, **options)
    close(found, (losses.mean(), backward(1 / 37)), rounding(dtype, 24))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_sampled_softmax_where_every_sample_is_a_hit(platform):
    hidden, weight, bias, _ = softmax_problem(jnp.float32)
    labels = np.full(37, 2)
    samples = fixed_samples(601, labels, np.full(4, 2))

    def loss(hidden):
        return sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias, implementation="pallas"
        )

    with compiling_for(platform, interpret=True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(hidden)
    np.testing.assert_allclose(value, 0, atol=1e-5)  # one class is left: the label
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "dtype", "activation"),
    [
        pytest.param(*case, marks=pytest.mark.smoke if case[::2] == ("gpu", "relu") else ())
        for case in with_platforms([None, "relu", "gelu", "gelu_exact"], DTYPES)
    ],
)
def test_pointwise_has_the_values_and_gradients_of_xla(platform, dtype, activation):
    inputs, kernel = normal(0, 2, 9, 7, 24, dtype=dtype), normal(1, 24, 19, dtype=dtype) / 5
    bias, residual = normal(2, 19, dtype=dtype), normal(3, 2, 5, 4, 19, dtype=dtype)

    def conv(implementation):
        def of(inputs, kernel, bias, residual):
            outputs = pointwise_conv(
                inputs, kernel, bias, residual=residual, strides=2, activation=activation,
                implementation=implementation,
            )  # fmt: skip
            return (outputs.astype(jnp.float32) * jnp.cos(jnp.arange(19.0))).sum(), outputs

        return jax.value_and_grad(of, (0, 1, 2, 3), has_aux=True)

    close(*both(platform, conv, "matmul", inputs, kernel, bias, residual), rounding(dtype, 40))


def full(hidden, weight, bias, labels):
    return linear_softmax_cross_entropy(hidden, weight, labels, bias=bias, implementation="pallas")


def sampled(hidden, weight, bias, labels):
    samples = fixed_samples(weight.shape[0], range(len(hidden)), np.arange(128))
    return sampled_softmax_cross_entropy(
        hidden, weight, labels, samples, bias=bias, implementation="pallas"
    )


def pointwise(hidden, weight, bias, _labels):
    return pointwise_conv(
        hidden[:, None], weight.T, bias, activation="relu", implementation="pallas"
    ).sum()


def pointwise_gelu_exact(hidden, weight, bias, _labels):
    return pointwise_conv(
        hidden[:, None], weight.T, bias, activation="gelu_exact", implementation="pallas"
    ).sum()


@pytest.mark.parametrize(
    ("dtype", "function"),
    [
        *(
            pytest.param(jnp.float32, function, marks=pytest.mark.smoke)
            for function in (full, sampled, pointwise)
        ),
        (jnp.float32, pointwise_gelu_exact),
        *(
            (jnp.bfloat16, function)
            for function in (full, sampled, pointwise, pointwise_gelu_exact)
        ),
    ],
)
def test_gradients_lower_for_both_platforms(function, dtype):
    """Mosaic for TPU by ``jax.export``; Triton's call is not to be serialized, so it is lowered."""
    arrays = softmax_problem(dtype, tokens=300, features=96, vocab_size=5001)
    with compiling_for("tpu"):
        gradient = jax.jit(jax.grad(function, (0, 1, 2)))
        assert "tpu_custom_call" in str(
            jax.export.export(gradient, platforms=["tpu"])(*arrays).mlir_module()
        )
    with compiling_for("gpu"):
        text = for_gpu(jax.grad(function, (0, 1, 2)), *arrays)
    assert "__gpu$xla.gpu.triton" in text
