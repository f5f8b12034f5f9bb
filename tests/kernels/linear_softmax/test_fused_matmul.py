"""The Pallas kernels on a fused matmul, interpreted here, against the equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    Samples,
    compiling_for,
    linear_softmax_cross_entropy,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.pallas import fused_matmul as fm
from tests.exact_loss import exact_loss
from tests.exact_pointwise import by_hand
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device
from tests.lowering import for_gpu
from tests.near import assert_near
from tests.sampled_losses import token_by_token

PLATFORMS = ("gpu", "tpu")
FLOAT32 = jnp.dtype(jnp.float32)


def rounding(dtype, depth):
    """A bound on the relative error of sums of ``depth`` terms, of the size of their square sum."""
    return 4 * float(jnp.finfo(dtype).eps) * max(1.0, depth**0.5)


def close(got, wanted, tolerance):
    assert_near(got, wanted, tolerance, 1e-3)


def normal(seed, *shape, dtype=jnp.float32, scale=1.0):
    return on_device(np.random.default_rng(seed).normal(0, scale, shape), dtype)


def integers(seed, shape, end):
    return on_device(np.random.default_rng(seed).integers(0, end, shape))


def with_platforms(cases, others):
    """Every case on both platforms, on each with another of two others; so all pairs are met."""
    return [
        (platform, others[(m + n) % 2], case)
        for m, case in enumerate(cases)
        for n, platform in enumerate(PLATFORMS)
    ]


def scaled_and_largest(rows, product, row_ids, row_inputs, column_inputs, _tiles):
    total = product * row_inputs[0] + column_inputs[0]
    return total, jnp.where(row_ids < rows, total, -jnp.inf).max(0)


SHAPES = [(33, 17, 5), (130, 70, 600), (600, 520, 16), (1, 1, 1)]


@pytest.mark.parametrize(("platform", "gathered", "shape"), with_platforms(SHAPES, (False, True)))
def test_fused_matmul_is_what_it_stands_for(platform, gathered, shape):
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
        results = product, largest.max(0)
        if shape != SHAPES[0]:
            return [results]
        return results, fm.reference(left, right, inputs, **arguments)

    taken = np.asarray(left, np.float64)[slice(None) if ids is None else np.asarray(ids)]
    (scales,), (shifts,) = (map(np.asarray, each) for each in (inputs.rows, inputs.columns))
    total = taken @ np.asarray(right).T * scales[:, None] + shifts
    for found in run(left, right, inputs):
        close(found, (total, total.max(0)), rounding(jnp.float32, depth))


def softmax_problem(dtype, tokens=37, features=24, vocab_size=601):
    hidden = normal(0, tokens, features, dtype=dtype)
    weight = normal(1, vocab_size, features, dtype=dtype)
    bias = normal(2, vocab_size, dtype=dtype)
    return hidden, weight, bias, integers(3, (tokens,), vocab_size)


DTYPES = (jnp.float32, jnp.bfloat16)
OPTIONS = [  # without any, below: in few bits
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
    """And where classes are out, and where exp(bias) alone overflows, in few bits on one."""
    hidden, weight, bias, labels = map(np.asarray, softmax_problem(dtype))
    tolerance, arithmetic = rounding(dtype, 24), dict(options)
    reduction, ignored = (arithmetic.pop(n, None) for n in ("reduction", "ignore_index"))
    few_bits = platform == "tpu" and ignored is not None  # of float32 arrays
    if few_bits:
        options, tolerance = {**options, "compute_dtype": "bfloat16"}, rounding(jnp.bfloat16, 37)

    @jax.jit
    def program(hidden, weight, bias, labels):
        def loss(hidden, weight, bias):
            return linear_softmax_cross_entropy(
                hidden, weight, labels, bias=bias, implementation="pallas", **options
            )

        return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias)

    with_some_out = np.where((np.arange(601) < 300) | (np.arange(601) == 600), -np.inf, bias)
    of_some = 300 + np.asarray(labels) % 300
    problems = [(bias, labels, tolerance), (with_some_out.astype(dtype), of_some, tolerance)]
    if ignored is not None:
        labels, of_some = (np.where(np.arange(37) % 5, y, ignored) for y in (labels, of_some))
        # Tokens that are left out, and those that fill up a tile. The logits are some 100.
        large = bias + np.asarray(200, bias.dtype), labels, max(tolerance, 1e-4)
        problems = [(bias, labels, tolerance), (problems[1][0], of_some, tolerance), large]
    rounded = [a.astype(jnp.bfloat16) if few_bits else a for a in (hidden, weight)]
    for bias, labels, tolerance in problems:
        with compiling_for(platform, interpret=True):
            found = program(hidden, weight, bias, labels)
        assert [g.dtype for g in found[1]] == [dtype] * 3
        kept = labels != (-1 if ignored is None else ignored)
        losses, _, backward = exact_loss(*rounded, labels, bias, **arithmetic)
        factors = kept if reduction == "sum" else kept / kept.sum()
        close(found, ((factors * losses).sum(), backward(factors)[:3]), tolerance)


def test_full_softmax_in_few_bits():
    """``compute_dtype``: a float32 table is rounded chunk by chunk; on TPU, above."""
    hidden, weight, bias, labels = softmax_problem(jnp.float32)

    def loss(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, compute_dtype="bfloat16", implementation="pallas"
        )

    with compiling_for("gpu", interpret=True):
        got = jax.jit(jax.grad(loss, (0, 1, 2)))(hidden, weight, bias)
    assert all(g.dtype == jnp.float32 for g in got)
    rounded = (np.asarray(a, jnp.bfloat16) for a in (hidden, weight))
    backward = exact_loss(*rounded, labels, bias)[2]
    close(got, backward(1 / 37)[:3], rounding(jnp.bfloat16, 37))


@pytest.mark.parametrize("platform", PLATFORMS)
def test_full_softmax_in_several_chunks(platform, monkeypatch):
    """The last chunk is moved back inside the vocabulary; no class counts twice.

    All classes of the first are out. A label out of range marks its token alone.
    """
    from jaxnets.kernels.linear_softmax import pallas

    monkeypatch.setattr(pallas, "_CHUNK", 1)  # chunks of 512 classes
    hidden, weight, bias, labels = map(np.array, softmax_problem(jnp.float32, vocab_size=1201))
    bias[:512] = -np.inf
    labels, cotangent = 600 + labels // 2, np.asarray(normal(5, 37))
    bad = np.arange(37) == 3

    @jax.jit
    def program(labels, *arrays):
        def losses(hidden, weight, bias):
            return tuple(
                linear_softmax_cross_entropy(
                    hidden, weight, labels, bias=bias, reduction="none", return_log_sum_exp=True,
                    label_smoothing=0.1, implementation="pallas",
                )
            )  # fmt: skip

        results, backward = jax.vjp(losses, *arrays)
        return results, backward((cotangent, jnp.ones(37)))

    with compiling_for(platform, interpret=True):
        results = program(np.where(bad, 1201, labels), hidden, weight, bias)
    (losses, log_sum_exp), (d_hidden, *found) = jax.tree.map(np.asarray, results)
    assert (np.isnan(losses) == bad).all()
    assert (np.isnan(d_hidden) == bad[:, None]).all()
    wanted, z, backward = exact_loss(hidden, weight, labels, bias, label_smoothing=0.1)
    of_hidden, of_weight, of_bias, _ = backward(cotangent, 1)
    of_weight[labels[3]] += 0.9 * cotangent[3] * hidden[3]  # what the bad label has no part in
    of_bias[labels[3]] += 0.9 * cotangent[3]
    close((losses[~bad], log_sum_exp), (wanted[~bad], z), rounding(jnp.float32, 24))
    close((d_hidden[~bad], *found), (of_hidden[~bad], of_weight, of_bias), rounding(FLOAT32, 37))


# Each value of an argument meets each of every other.
@pytest.mark.parametrize(
    ("platform", "dtype", "num_true", "remove"),
    [
        pytest.param("gpu", jnp.float32, 1, False, marks=pytest.mark.smoke),
        ("gpu", jnp.bfloat16, 3, True),
        ("tpu", jnp.float32, 3, True),
        ("tpu", jnp.bfloat16, 1, True),
        ("tpu", jnp.bfloat16, 3, False),
    ],
)
def test_sampled_softmax_has_values_and_gradients_of_the_equation(
    strict_modes, platform, dtype, num_true, remove
):
    """And where every sample is a hit; what is left out leaves no trace."""
    hidden, weight, bias, _ = map(np.array, softmax_problem(dtype))
    labels, ids = np.array(integers(4, (37, num_true), 601)), np.arange(601)[:150] ** 2 % 601
    weights = np.random.default_rng(5).uniform(size=37).astype(np.float32)
    weights[[1, 3, 4]] = 0

    @jax.jit
    def program(hidden, weight, bias, labels, samples):
        def loss(hidden, weight, bias):
            return sampled_softmax_cross_entropy(
                hidden, weight, labels if num_true > 1 else labels[:, 0], samples, bias=bias,
                token_weights=weights, ignore_index=-100, remove_accidental_hits=remove,
                implementation="pallas",
            )  # fmt: skip

        return jax.value_and_grad(loss, (0, 1, 2))(hidden, weight, bias)

    problems = [(labels, ids, 1e-3)]
    if remove:  # one class is left: the label
        problems.append((np.full_like(labels, 2), np.full(150, 2), 1.0))
    for labels, ids, size in problems:
        own = labels if num_true > 1 else labels[:, 0]
        samples = Samples(*map(np.array, fixed_samples(601, own, ids)))
        labels[0, 1:] = labels[5] = -100
        wanted, expected, kept = token_by_token(
            "softmax", hidden, weight, labels, samples, bias, weights, ignored=-100,
            remove_accidental_hits=remove,
        )  # fmt: skip
        spoiled, bad_labels = hidden.copy(), labels.copy()
        spoiled[1], spoiled[3, 0], spoiled[4], spoiled[5] = np.nan, np.inf, -np.inf, np.nan
        bad_labels[1], bad_labels[3], bad_labels[4] = -100, 608, -1
        samples.labels_log_expected_count[[1, 3]] = np.nan
        with compiling_for(platform, interpret=True):
            value, found = program(spoiled, weight, bias, bad_labels, samples)
        assert not np.asarray(found[0], np.float32)[~kept].any()
        assert_near((value, found), (wanted, expected[:3]), rounding(dtype, 24), size)


@pytest.mark.parametrize(
    ("platform", "dtype", "activation"),
    [
        pytest.param(*case, marks=pytest.mark.smoke if case[::2] == ("gpu", "relu") else ())
        for case in with_platforms([None, "relu", "gelu", "gelu_exact"], DTYPES)
    ],
)
def test_pointwise_has_the_values_and_gradients_by_hand(platform, dtype, activation):
    # Of sums of some size: far below 0 the slope of a GELU is a small difference of large terms.
    inputs, kernel = normal(0, 2, 9, 7, 24, dtype=dtype), normal(1, 24, 19, dtype=dtype, scale=0.2)
    bias, residual = (normal(n, *shape, dtype=dtype, scale=0.5)
                      for n, shape in ((2, (19,)), (3, (2, 5, 4, 19))))  # fmt: skip

    waves = np.cos(np.arange(19.0))

    @jax.jit
    def run(*arrays):
        def of(inputs, kernel, bias, residual):
            outputs = pointwise_conv(
                inputs, kernel, bias, residual=residual, strides=2, activation=activation,
                implementation="pallas",
            )  # fmt: skip
            return (outputs.astype(jnp.float32) * np.float32(waves)).sum(), outputs

        return jax.grad(of, (0, 1, 2, 3), has_aux=True)(*arrays)

    arrays = inputs, kernel, bias, residual
    with compiling_for(platform, interpret=True):
        gradients, outputs = run(*arrays)
    assert {a.dtype for a in (outputs, *gradients)} == {jnp.dtype(dtype)}
    wanted = by_hand(arrays, lambda _: waves, strides=2, activation=activation)
    close((outputs, *gradients), wanted, rounding(dtype, 40))


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
