"""Any shape, dtype or size: the right numbers, or an error that names an argument.

Each function is called on arguments that fit, and on the same with one of them spoiled: an axis
dropped, added, swapped, emptied or off by one, or another dtype. What it accepts must equal a plain
formula in float64 of numpy. Examples are the same in each run, and of few sizes, since each shape
is a program to compile; ``--hypothesis-seed=random`` and ``JAXNETS_FUZZ=1000`` look for new ones.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from jaxnets.kernels import (
    GRUParameters,
    LogUniform,
    LSTMParameters,
    SparseRows,
    Tiles,
    Uniform,
    Unigram,
    add_rows,
    compiling_for,
    depthwise_conv,
    draw_samples,
    fold_batch_norm,
    gather_rows,
    gru,
    in_batch_samples,
    in_batch_softmax_cross_entropy,
    linear_label_rank,
    linear_softmax_cross_entropy,
    linear_top_k,
    lstm,
    nce_loss,
    negative_sampling_loss,
    pointwise_conv,
    recurrent_layers,
    rows_from_dense,
    sampled_softmax_cross_entropy,
    to_dense,
)
from jaxnets.kernels.sampled_softmax import reference
from tests.sharding.test_sharded import SHARDINGS, make_mesh

pytestmark = pytest.mark.usefixtures("users_checks")

EXAMPLES = int(os.environ.get("JAXNETS_FUZZ", "15"))
SEARCHING = "JAXNETS_FUZZ" in os.environ
FLOATS = ("float32", "bfloat16", "float16")
KEY = jax.random.key(0)


def sizes(most):
    """The least, one between and the most; when searching, any."""
    return st.integers(1, most) if SEARCHING else st.sampled_from([1, most // 2 + 1, most])


@st.composite
def sizes_together(draw, *most):
    """Of several sizes, all the least, all between, or all the most; when searching, any."""
    if SEARCHING:
        return tuple(draw(sizes(n)) for n in most)
    return draw(st.sampled_from([tuple(1 for _ in most), tuple(n // 2 + 1 for n in most), most]))


def fuzzed(strategy, examples=EXAMPLES):
    def decorate(test):
        checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
        limits = settings(
            max_examples=examples, deadline=None, derandomize=not SEARCHING,
            suppress_health_check=checks, database=None,
        )  # fmt: skip
        return limits(given(strategy)(test))

    return decorate


def array(draw, *shape, dtype="float32", seed=0):
    """Numbers in [-1, 1] that bfloat16 has exactly."""
    generator = np.random.default_rng(seed + draw(st.integers(0, 3)))
    return jnp.asarray(generator.integers(-8, 9, shape) / 8, dtype)


@st.composite
def spoiled(draw, arguments):
    """The arguments of a strategy, as they are or with one array changed."""
    given_arguments = dict(draw(arguments))
    arrays = [name for name, value in given_arguments.items() if isinstance(value, jax.Array)]
    how = draw(
        st.sampled_from(["nothing"] * 6 + ["drop", "add", "swap", "empty", "longer", "dtype"])
    )
    name = draw(st.sampled_from(arrays))
    value = given_arguments[name]
    axis = draw(st.integers(0, max(value.ndim - 1, 0)))
    if how == "dtype":
        integers = jnp.issubdtype(value.dtype, jnp.integer)
        given_arguments[name] = jnp.asarray(np.asarray(value), jnp.float32 if integers else int)
    elif how == "add":
        given_arguments[name] = jnp.asarray(np.asarray(value)[None])
    elif how != "nothing":
        assume(value.ndim)
        plain = np.asarray(value)  # NumPy compiles nothing
        changed = {
            "drop": lambda: plain.take(0, axis) if plain.shape[axis] else plain,
            "swap": lambda: plain.swapaxes(axis, -1),
            "empty": lambda: plain.take(np.zeros(0, int), axis),
            "longer": lambda: np.concatenate([plain, plain[:1]]) if axis == 0 else plain.T,
        }
        given_arguments[name] = jnp.asarray(changed[how]())
    return given_arguments


def outcome(function, arguments):
    """The result, or the message of a ``TypeError`` or ``ValueError``; anything else is a bug."""
    try:
        return function(**arguments), None
    except (TypeError, ValueError) as error:
        return None, str(error)


def holds(function, plain, arguments, depth):
    """``function`` equals ``plain``, or says what is wrong with which argument."""
    got, message = outcome(function, arguments)
    if message is not None:
        assert any(name in message for name in arguments), f"no argument is named: {message}"
        return
    with np.errstate(over="ignore"):
        wanted = plain(**{
            name: np.asarray(a, np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else np.int64)
            if isinstance(a, jax.Array) else a
            for name, a in arguments.items()
        })  # fmt: skip
    coarsest = max(
        float(jnp.finfo(a.dtype).eps)
        for a in jax.tree.leaves(arguments)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jnp.floating)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        assert a.shape == b.shape
        tolerance = 16 * coarsest * (depth + 1) * max(1.0, np.abs(b[np.isfinite(b)]).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def log_sum_exp(logits):
    top = logits.max(-1, keepdims=True)
    return (top + np.log(np.exp(logits - top).sum(-1, keepdims=True)))[..., 0]


@st.composite
def projections(draw):
    tokens, features, vocab_size = draw(sizes_together(9, 7, 40))
    batch = draw(st.sampled_from([(tokens,), (tokens, 2), ()]))
    dtype = draw(st.sampled_from(FLOATS))
    return {
        "hidden": array(draw, *batch, features, dtype=dtype),
        "weight": array(draw, vocab_size, features, dtype=dtype, seed=10),
        "bias": draw(st.sampled_from([None, array(draw, vocab_size, seed=20)])),
        "labels": jnp.asarray(np.random.default_rng(tokens).integers(0, vocab_size, batch)),
        "label_smoothing": draw(st.sampled_from([0.0, 0.1])),
        "soft_cap": draw(st.sampled_from([None, 3.0])),
        "z_loss": draw(st.sampled_from([0.0, 0.01])),
    }


def plain_full(hidden, weight, bias, labels, label_smoothing, soft_cap, z_loss):
    logits = hidden @ weight.T + (0 if bias is None else bias)
    if soft_cap is not None:
        logits = soft_cap * np.tanh(logits / soft_cap)
    z = log_sum_exp(logits)
    label = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return z - (1 - label_smoothing) * label - label_smoothing * logits.mean(-1) + z_loss * z**2


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_linear_softmax_cross_entropy(platform):
    implementation = None if platform == "cpu" else "pallas"

    @fuzzed(spoiled(projections()), EXAMPLES if platform == "cpu" else EXAMPLES // 2)
    def run(arguments):
        def losses(**arguments):
            with compiling_for(platform, interpret=platform != "cpu"):
                return linear_softmax_cross_entropy(
                    **arguments,
                    reduction="none",
                    tiles=Tiles(vocab_tile=16),
                    implementation=implementation,
                )

        holds(losses, plain_full, arguments, 7)

    run()


@st.composite
def sampled_problems(draw):
    arguments = draw(projections())
    batch = arguments["labels"].shape
    vocab_size = arguments["weight"].shape[0]
    num_true = draw(st.sampled_from([None, 1, 3]))
    if num_true is not None:
        arguments["labels"] = jnp.asarray(
            np.random.default_rng(5).integers(0, vocab_size, (*batch, num_true))
        )
    sampler = draw(st.sampled_from([Uniform, LogUniform]))(vocab_size)
    count = draw(sizes(vocab_size))
    unique = draw(st.booleans())
    for name in ("label_smoothing", "soft_cap", "z_loss"):
        del arguments[name]
    arguments["samples"] = draw_samples(
        sampler, jax.random.key(count), count, arguments["labels"], unique=unique,
        per_token=draw(st.booleans()) and arguments["labels"].ndim == len(batch) and bool(batch),
    )  # fmt: skip
    return arguments


def flattened(plain, batch_axes):
    """A reference on [tokens, ...], in float32 of JAX, for the tolerance of the coarsest input."""
    plain = jax.jit(plain, static_argnames=("subtract_log_q", "remove_accidental_hits"))

    def run(hidden, weight, bias, labels, samples, **options):
        batch = hidden.shape[:-1]
        tokens = int(np.prod(batch))
        flat = samples._replace(
            ids=samples.ids if samples.ids.ndim == 1 else samples.ids.reshape(tokens, -1),
            log_expected_count=samples.log_expected_count
            if samples.ids.ndim == 1
            else samples.log_expected_count.reshape(tokens, -1),
            labels_log_expected_count=samples.labels_log_expected_count.reshape(tokens, -1),
        )
        losses = plain(
            jnp.asarray(hidden.reshape(tokens, -1), jnp.float32), jnp.asarray(weight, jnp.float32),
            jnp.asarray(labels.reshape(tokens, -1)), flat,
            bias=None if bias is None else jnp.asarray(bias, jnp.float32), **options,
        )  # fmt: skip
        return np.asarray(losses).reshape(batch)

    return run


LOSSES = {
    "sampled": (sampled_softmax_cross_entropy, reference.sampled_softmax_cross_entropy, {}),
    "nce": (nce_loss, reference.noise_contrastive, {"remove_accidental_hits": False}),
    "negative": (
        negative_sampling_loss,
        reference.noise_contrastive,
        {"remove_accidental_hits": False, "subtract_log_q": False},
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_sampled_losses(name):
    loss, plain, options = LOSSES[name]
    plain = flattened(plain, None)

    @fuzzed(spoiled(sampled_problems()))
    def run(arguments):
        holds(
            lambda **given: loss(**given, reduction="none"),
            lambda **given: plain(**given, **options),
            arguments,
            7,
        )

    run()


@st.composite
def item_batches(draw):
    batch, features = draw(sizes_together(9, 7))
    dtype = draw(st.sampled_from(FLOATS))
    return {
        "hidden": array(draw, batch, features, dtype=dtype),
        "items": array(draw, batch, features, dtype=dtype, seed=10),
        "labels": jnp.asarray(np.random.default_rng(batch).integers(0, 5, batch)),
        "log_probability": draw(
            st.sampled_from([None, jnp.asarray(-np.abs(array(draw, batch, seed=20)))])
        ),
    }


def plain_in_batch(hidden, items, labels, log_probability):
    scores = hidden @ items.T - (0 if log_probability is None else log_probability)
    hits = (labels[:, None] == labels) & ~np.eye(len(labels), dtype=bool)
    return log_sum_exp(np.where(hits, -np.inf, scores)) - np.diagonal(scores)


@fuzzed(spoiled(item_batches()))
def test_in_batch_softmax(arguments):
    def losses(**given):
        return in_batch_softmax_cross_entropy(**given, reduction="none")

    holds(losses, plain_in_batch, arguments, 7)


@fuzzed(spoiled(projections()), EXAMPLES // 2)
def test_linear_top_k(arguments):
    chosen = {name: arguments[name] for name in ("hidden", "weight", "bias")}

    def plain(hidden, weight, bias):
        return np.sort(hidden @ weight.T + (0 if bias is None else bias))[..., ::-1][..., :2]

    def best(**given):
        return linear_top_k(**given, k=2, tiles=Tiles(vocab_tile=16))[0]

    if chosen["weight"].shape[0] < 2:
        with pytest.raises((ValueError, TypeError)):
            best(**chosen)
    else:
        holds(best, plain, chosen, 7)


@fuzzed(spoiled(projections()), EXAMPLES // 2)
def test_linear_label_rank(arguments):
    """Every dtype has these logits exactly, and so their ties."""
    chosen = {name: arguments[name] for name in ("hidden", "weight", "bias", "labels")}

    def plain(hidden, weight, bias, labels):
        logits = hidden @ weight.T + (0 if bias is None else bias)
        label = np.take_along_axis(logits, labels[..., None], -1)
        return (logits > label).sum(-1), (logits == label).sum(-1) - 1

    holds(lambda **given: linear_label_rank(**given, tiles=Tiles(vocab_tile=16)), plain, chosen, 0)


@st.composite
def tables(draw):
    vocab_size, features = draw(sizes_together(30, 4))
    shape = draw(st.sampled_from([(5,), (2, 3), ()]))
    return {
        "tables": array(draw, vocab_size, features),
        "ids": jnp.asarray(np.random.default_rng(vocab_size).integers(0, vocab_size, shape)),
    }


@fuzzed(spoiled(tables()))
def test_rows(arguments):
    @jax.jit
    def doubled(tables, ids):
        row_ids, rows, local = gather_rows(tables, ids)
        return rows[local], add_rows(tables, SparseRows(row_ids, rows))

    def plain(tables, ids):
        ids = ids.astype(int)
        touched = np.isin(np.arange(len(tables)), ids)
        return tables[ids], np.where(touched.reshape(-1, *[1] * (tables.ndim - 1)), 2, 1) * tables

    if not jnp.issubdtype(arguments["tables"].dtype, jnp.floating):
        arguments["tables"] = arguments["tables"].astype(jnp.float32)  # any dtype is a table's
    ids = arguments["ids"]
    assume(arguments["tables"].ndim and (np.asarray(ids) < arguments["tables"].shape[0]).all())
    holds(doubled, plain, arguments, 1)


@st.composite
def draws(draw):
    vocab_size = draw(sizes(300))
    counts = st.integers(-1, 310) if SEARCHING else st.sampled_from([-1, 0, 1, 7, 150, 300, 301])
    shape = draw(st.sampled_from([(), (3,), (2, 2)]))
    return {
        "sampler": draw(st.sampled_from([Uniform, LogUniform]))(vocab_size),
        "num_sampled": draw(counts),
        "labels": jnp.asarray(np.random.default_rng(vocab_size).integers(0, vocab_size, shape)),
        "unique": draw(st.booleans()),
        "per_token": draw(st.booleans()),
    }


@fuzzed(spoiled(draws()))
def test_sample(arguments):
    samples, message = outcome(draw_samples, {**arguments, "key": KEY})
    if message is not None:
        assert any(name in message for name in arguments), message
        return
    shape, vocab_size = arguments["labels"].shape, arguments["sampler"].vocab_size
    count = arguments["num_sampled"]
    ids = np.asarray(samples.ids)
    assert ids.shape == ((*shape, count) if arguments["per_token"] else (count,))
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < vocab_size)).all()
    if arguments["unique"]:
        assert all(len(set(row)) == count for row in ids.reshape(-1, count).tolist())
    assert np.isfinite(samples.log_expected_count).all()
    assert samples.labels_log_expected_count.shape == shape


@st.composite
def sequences(draw):
    batch, time, features, hidden = draw(sizes_together(5, 6, 4, 5))
    dtype = draw(st.sampled_from(FLOATS))
    return {
        "inputs": array(draw, batch, time, features, dtype=dtype),
        "input_kernel": array(draw, features, 4 * hidden, dtype=dtype, seed=10),
        "recurrent_kernel": array(draw, hidden, 4 * hidden, dtype=dtype, seed=20),
        "bias": array(draw, 4 * hidden, dtype=dtype, seed=30),
        "lengths": draw(
            st.sampled_from(
                [None, jnp.asarray(np.random.default_rng(batch).integers(0, time + 1, batch))]
            )
        ),
        "reverse": draw(st.booleans()),
    }


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def plain_recurrence(step, inputs, widths, lengths, reverse):
    outputs = np.zeros((*inputs.shape[:2], widths))
    for row in range(len(inputs)):
        length = inputs.shape[1] if lengths is None else int(lengths[row])
        state = None
        for t in range(length - 1, -1, -1) if reverse else range(length):
            state = step(inputs[row, t], state)
            outputs[row, t] = state[-1]
    return outputs


def plain_lstm(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
    hidden = recurrent_kernel.shape[0]

    def step(x, state):
        c, h = state or (np.zeros(hidden), np.zeros(hidden))
        i, f, g, o = np.split(x @ input_kernel + h @ recurrent_kernel + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return c, sigmoid(o) * np.tanh(c)

    return plain_recurrence(step, inputs, hidden, lengths, reverse)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_lstm(platform):
    implementation = None if platform == "cpu" else "pallas"

    @fuzzed(spoiled(sequences()), EXAMPLES if platform == "cpu" else EXAMPLES // 3)
    def run(arguments):
        def outputs(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
            parameters = LSTMParameters(input_kernel, recurrent_kernel, bias)
            with compiling_for(platform, interpret=platform != "cpu"):
                return lstm(
                    inputs, None, parameters, lengths=lengths, reverse=reverse,
                    implementation=implementation,
                )[0]  # fmt: skip

        holds(outputs, plain_lstm, arguments, 12)

    run()


@st.composite
def gru_sequences(draw):
    arguments = draw(sequences())
    width = arguments["bias"].shape[0] // 4 * 3
    for name in ("input_kernel", "recurrent_kernel", "bias"):
        arguments[name] = jnp.asarray(np.asarray(arguments[name])[..., :width])
    backwards = np.asarray(arguments["bias"])[::-1]
    return {**arguments, "recurrent_bias": jnp.asarray(backwards)}


@fuzzed(spoiled(gru_sequences()), EXAMPLES // 2)
def test_gru(arguments):
    def outputs(inputs, lengths, reverse, **parameters):
        return gru(inputs, None, GRUParameters(**parameters), lengths=lengths, reverse=reverse)[0]

    def plain(inputs, input_kernel, recurrent_kernel, bias, recurrent_bias, lengths, reverse):
        hidden = recurrent_kernel.shape[0]

        def step(x, state):
            h = np.zeros(hidden) if state is None else state[0]
            x_r, x_z, x_n = np.split(x @ input_kernel + bias, 3)
            h_r, h_z, h_n = np.split(h @ recurrent_kernel + recurrent_bias, 3)
            r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
            return ((1 - z) * np.tanh(x_n + r * h_n) + z * h,)

        return plain_recurrence(step, inputs, hidden, lengths, reverse)

    holds(outputs, plain, arguments, 12)


@st.composite
def maps(draw):
    spatial = draw(st.sampled_from([(), (5,), (3, 4), (2, 3, 2)]))
    features, out, groups = (
        draw(sizes(5)),
        draw(sizes(5)),
        draw(st.integers(1, 2)),
    )
    batch, dtype = draw(sizes(3)), draw(st.sampled_from(FLOATS))
    return {
        "inputs": array(draw, batch, *spatial, features * groups, dtype=dtype),
        "kernel": array(draw, features, out * groups, dtype=dtype, seed=10),
        "bias": draw(st.sampled_from([None, array(draw, out * groups, seed=20)])),
        "groups": groups,
        "strides": draw(st.integers(1, 3)),
        "activation": draw(st.sampled_from([None, "relu", "tanh"])),
    }


def plain_pointwise(inputs, kernel, bias, groups, strides, activation):
    inputs = inputs[(slice(None), *[slice(None, None, strides)] * (inputs.ndim - 2))]
    parts = zip(np.split(inputs, groups, -1), np.split(kernel, groups, -1), strict=True)
    total = np.concatenate([x @ w for x, w in parts], -1) + (0 if bias is None else bias)
    return {None: total, "relu": np.maximum(total, 0), "tanh": np.tanh(total)}[activation]


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
def test_pointwise_conv(platform):
    implementation = None if platform == "cpu" else "pallas"

    @fuzzed(spoiled(maps()), EXAMPLES if platform == "cpu" else EXAMPLES // 2)
    def run(arguments):
        if implementation:
            assume(arguments["groups"] == 1)

        def outputs(**given):
            with compiling_for(platform, interpret=platform != "cpu"):
                return pointwise_conv(**given, implementation=implementation)

        holds(outputs, plain_pointwise, arguments, 5)

    run()


@st.composite
def windows(draw):
    size = draw(sizes(6))
    axes = draw(st.integers(1, 2))
    channels, width = draw(sizes(3)), draw(sizes(3))
    return {
        "inputs": array(draw, 2, *[size] * axes, channels),
        "kernel": array(draw, *[width] * axes, channels, seed=10),
        "strides": draw(st.integers(1, 2)),
        "padding": draw(st.sampled_from(["SAME", "VALID"])),
    }


def plain_depthwise(inputs, kernel, strides, padding):
    window, sizes = kernel.shape[:-1], inputs.shape[1:-1]
    if padding == "SAME":
        outs = [-(-n // strides) for n in sizes]
        total = [
            max((o - 1) * strides + w - n, 0) for o, w, n in zip(outs, window, sizes, strict=True)
        ]
        inputs = np.pad(inputs, [(0, 0), *[(p // 2, p - p // 2) for p in total], (0, 0)])
    else:
        outs = [(n - w) // strides + 1 for n, w in zip(sizes, window, strict=True)]
    result = np.zeros((inputs.shape[0], *outs, inputs.shape[-1]))
    for place in np.ndindex(*outs):
        patch = tuple(
            slice(p * strides, p * strides + w) for p, w in zip(place, window, strict=True)
        )
        axes = tuple(range(1, len(window) + 1))
        result[(slice(None), *place)] = (inputs[(slice(None), *patch)] * kernel).sum(axes)
    return result


@fuzzed(spoiled(windows()), EXAMPLES // 2)
def test_depthwise_conv(arguments):
    holds(depthwise_conv, plain_depthwise, arguments, 9)


@st.composite
def norms(draw):
    features, out = draw(sizes(4)), draw(sizes(5))
    return {
        "kernel": array(draw, features, out),
        "bias": draw(st.sampled_from([None, array(draw, out, seed=10)])),
        "mean": array(draw, out, seed=20),
        "variance": jnp.asarray(np.abs(array(draw, out, seed=30)) + np.float32(0.5)),
        "scale": array(draw, out, seed=40),
        "offset": array(draw, out, seed=50),
    }


@fuzzed(spoiled(norms()))
def test_fold_batch_norm(arguments):
    def plain(kernel, bias, mean, variance, scale, offset):
        factor = scale / np.sqrt(variance + 1e-5)
        return kernel * factor, ((0 if bias is None else bias) - mean) * factor + offset

    holds(fold_batch_norm, plain, arguments, 2)


@fuzzed(spoiled(sequences()), EXAMPLES // 2)
def test_recurrent_layers(arguments):
    """Two directions of one layer are its two ways, side by side."""

    def outputs(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
        parameters = LSTMParameters(input_kernel, recurrent_kernel, bias)
        directions = [parameters, parameters] if reverse else [parameters]
        return recurrent_layers(inputs, None, [directions], lengths=lengths)[0]

    def plain(inputs, input_kernel, recurrent_kernel, bias, lengths, reverse):
        ways = [
            plain_lstm(inputs, input_kernel, recurrent_kernel, bias, lengths, way)
            for way in ((False, True) if reverse else (False,))
        ]
        return np.concatenate(ways, axis=-1)

    holds(outputs, plain, arguments, 12)


@pytest.mark.parametrize("name", ["vocab and tokens", "vocab over all"])
def test_sharded_softmax(name):
    """Sizes that do not divide the devices are refused, by name."""
    sharding = SHARDINGS[name](make_mesh())

    @fuzzed(spoiled(projections()), EXAMPLES // 2)
    def run(arguments):
        def losses(**given):
            return linear_softmax_cross_entropy(
                **given, reduction="none", tiles=Tiles(vocab_tile=16), sharding=sharding
            )

        holds(losses, plain_full, arguments, 7)

    run()


@st.composite
def splittable(draw):
    """Projections whose sizes do divide eight devices."""
    arguments = draw(projections())
    tokens, vocab_size = 8 * draw(st.integers(1, 2)), 8 * draw(sizes(6))
    features = arguments["weight"].shape[1]
    dtype = arguments["hidden"].dtype
    return {
        **arguments,
        "hidden": array(draw, tokens, 3, features, dtype=dtype),
        "weight": array(draw, vocab_size, features, dtype=dtype, seed=10),
        "bias": draw(st.sampled_from([None, array(draw, vocab_size, seed=20)])),
        "labels": jnp.asarray(np.random.default_rng(tokens).integers(0, vocab_size, (tokens, 3))),
    }


@fuzzed(spoiled(splittable()), EXAMPLES // 2)
def test_sharded_softmax_of_sizes_that_divide(arguments):
    sharding = SHARDINGS["vocab and tokens"](make_mesh())

    def losses(**given):
        return linear_softmax_cross_entropy(
            **given, reduction="none", tiles=Tiles(vocab_tile=16), sharding=sharding
        )

    holds(losses, plain_full, arguments, 7)


@fuzzed(spoiled(tables()), EXAMPLES // 2)
def test_sharded_rows(arguments):
    sharding = SHARDINGS["vocab only"](make_mesh())
    arguments["tables"] = arguments["tables"].astype(jnp.float32)
    ids = arguments["ids"]
    assume(arguments["tables"].ndim and (np.asarray(ids) < arguments["tables"].shape[0]).all())

    @jax.jit
    def read(tables, ids):
        _, rows, local = gather_rows(tables, ids, sharding=sharding)
        return rows[local]

    got, message = outcome(read, arguments)
    if message is not None:  # a table of no multiple of four rows is a vocab that does not divide
        assert any(name in message for name in ("tables", "ids", "vocab")), message
        return
    np.testing.assert_array_equal(got, np.asarray(arguments["tables"])[np.asarray(ids)])


@st.composite
def labeled(draw):
    shape = draw(st.sampled_from([(5,), (2, 3), (1,)]))
    return {
        "labels": jnp.asarray(np.random.default_rng(0).integers(0, 4, shape)),
        "log_probability": jnp.asarray(-np.abs(array(draw, *shape)) - np.float32(0.1)),
        "unique": draw(st.booleans()),
    }


@fuzzed(spoiled(labeled()))
def test_in_batch(arguments):
    """Expected counts of as many draws as there are labels; a repeat counts never, if unique."""

    def counts(**given):
        samples = in_batch_samples(**given)
        return samples.ids, jnp.exp(-samples.log_expected_count)

    def plain(labels, log_probability, unique):
        ids, p = labels.reshape(-1), np.exp(log_probability.reshape(-1))
        expected = 1 - (1 - p) ** ids.size if unique else ids.size * p
        repeats = np.array([unique and ids[n] in ids[:n] for n in range(ids.size)], bool)
        return ids, np.where(repeats, 0, 1 / expected)

    if arguments["log_probability"].dtype == jnp.int32:  # rounded to 0: certain classes
        arguments["log_probability"] = arguments["log_probability"] - 1.0
    holds(counts, plain, arguments, 6)


@fuzzed(spoiled(tables()), EXAMPLES // 2)
def test_rows_from_dense(arguments):
    """All rows that are not 0 come back, where there is room for them."""
    gradient = arguments["tables"]
    there_and_back = jax.jit(
        lambda tables: to_dense(rows_from_dense(tables, len(tables)), len(tables))
    )
    got, message = outcome(there_and_back, {"tables": gradient})
    if message is None:
        np.testing.assert_array_equal(got, gradient)
    else:
        assert 0 in gradient.shape or gradient.ndim == 0
        assert "gradient must be" in message or "num_rows must be" in message


@fuzzed(st.lists(st.sampled_from([0.0, 1.0, 3.0, 0.5, -1.0, float("nan")]), max_size=9))
def test_unigram_of_any_counts(counts):
    """Its probabilities are the shares of the counts, or the counts are named."""
    got, message = outcome(Unigram.from_counts, {"counts": np.array(counts)})
    if message is not None:
        assert "counts" in message
        assert not counts or not sum(counts) or not all(count >= 0 for count in counts)
        return
    np.testing.assert_allclose(np.exp(got.log_p), np.array(counts) / sum(counts), rtol=1e-5)
    drawn = np.asarray(jax.jit(lambda sampler, key: sampler.draw(key, (200,)))(got, KEY))
    assert set(drawn.tolist()) <= {n for n, count in enumerate(counts) if count}
