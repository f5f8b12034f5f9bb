"""LSTM and GRU against their equations and against PyTorch's and Keras's own numbers."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxnets import convert
from jaxnets.kernels import (
    GRUParameters,
    LayerNorm,
    LSTMParameters,
    gru,
    lstm,
    recurrent_layers,
)
from jaxnets.kernels.recurrent import xla_rows
from tests.near import assert_near
from tests.slopes import assert_slopes

BATCH, TIME, FEATURES, HIDDEN, OUTPUT = 9, 13, 3, 5, 4
FIGURES = np.load(Path(__file__).parents[2] / "data" / "recurrent.npz")


def parameters(kind="lstm", features=FEATURES, hidden=HIDDEN, dtype=jnp.float64):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing

    def normal(*shape, mean=0.0):
        return jnp.asarray(mean + 0.4 * draw.normal(size=shape), dtype)

    if kind == "gru":
        return GRUParameters(
            normal(features, 3 * hidden),
            normal(hidden, 3 * hidden),
            normal(3 * hidden),
            normal(3 * hidden),
        )
    output, gates = OUTPUT if "projection" in kind else hidden, 4 * hidden
    return LSTMParameters(
        normal(features, gates),
        normal(output, gates),
        normal(gates),
        normal(hidden, output) if "projection" in kind else None,
        normal(3, hidden) if "peepholes" in kind else None,
        LayerNorm(*(normal(size, mean=1) for size in (gates, gates, hidden)), normal(hidden))
        if "layer norm" in kind
        else None,
    )


def problem(kind, marks=None, batch=BATCH, time=TIME, dtype=jnp.float64):
    draw = np.random.default_rng(1)
    weights = parameters(kind, dtype=dtype)
    shapes = (
        (batch, time, FEATURES), (batch, HIDDEN), (batch, weights.recurrent_kernel.shape[0])
    )  # fmt: skip
    inputs, c, h = (jnp.asarray(draw.normal(size=shape), dtype) for shape in shapes)
    lengths = draw.integers(0, time + 1, batch)
    lengths[0] = 0
    options = {}
    if marks == "lengths":
        options["lengths"] = jnp.asarray(lengths)
    if marks == "segments":
        changes = np.cumsum(draw.random((batch, time)) < 0.3, axis=1)
        inside = np.arange(time) < lengths[:, None]
        options["segment_ids"] = jnp.asarray(np.where(inside, 1 + changes, 0))
    carry = h if kind == "gru" else (c, h)
    return functools.partial(gru if kind == "gru" else lstm, **options), inputs, carry, weights


def value_and_gradients(layer, inputs, carry, weights, **options):
    """Outputs, last carry, and the gradients of a scalar that weighs each of them by chance."""

    def loss(inputs, carry, weights):
        results = layer(inputs, carry, weights, **options)
        total = 0.0
        for i, leaf in enumerate(jax.tree.leaves(results)):
            wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            factors = np.random.default_rng(i).normal(size=leaf.shape).astype(wide.dtype)
            total += (jnp.sin(wide) * factors).sum()
        return total, results

    (_, results), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
        inputs, carry, weights
    )
    return results, gradients


def jitted(layer, **options):
    """Both, by one program."""
    return jax.jit(functools.partial(value_and_gradients, layer, **options))


def assert_close(actual, expected, steps=TIME, dtype=jnp.float64):
    """Each of ``steps`` steps rounds sums of a few dozen terms; gradients add up over them all."""
    assert_near(actual, expected, 100 * steps * float(jnp.finfo(dtype).eps), 1)


# Every two options that go together are in one of these; with the padding run first, from a carry,
# and the gates computed again, every kind.
VARIANTS = [
    pytest.param("lstm", None, {}, marks=pytest.mark.smoke),
    ("lstm", "lengths", {"recurrent_dropout": 0.3, "truncate_steps": 4, "reverse": True}),
    ("lstm", "lengths", {"reverse": True, "remat": True, "chunk_size": 4, "batch": 17}),
    ("lstm", "segments", {"reverse": True, "remat": False, "chunk_size": 5}),
    ("projection", None, {"reverse": True, "remat": False}),
    ("peepholes", None, {}),
    ("peepholes projection", "lengths", {"reverse": True, "remat": True, "chunk_size": 5}),
    ("layer norm", None, {}),
    ("layer norm projection", "segments", {"recurrent_dropout": 0.3}),
    ("gru", None, {"remat": True, "truncate_steps": 5, "recurrent_dropout": 0.3}),
    pytest.param(
        "gru", "lengths", {"reverse": True, "remat": True, "chunk_size": 4}, marks=pytest.mark.smoke
    ),
    ("gru", "segments", {"remat": False, "chunk_size": 3}),
]


@pytest.mark.parametrize(("kind", "marks", "options"), VARIANTS)
def test_values_and_gradients_are_the_reference_s(x64, kind, marks, options):
    options = dict(options)
    if "recurrent_dropout" in options:
        options["key"] = jax.random.key(3)
    layer, *arrays = problem(kind, marks, batch=options.pop("batch", BATCH))
    plain = {k: v for k, v in options.items() if k not in ("chunk_size", "remat")}
    expected = jitted(layer, **plain, implementation="reference")(*arrays)
    assert_close(jitted(layer, **options)(*arrays), expected)


def test_the_reference_s_gradients_are_finite_differences(x64):
    for kind in ("peepholes projection", "layer norm", "gru"):
        layer, *arrays = problem(kind, "lengths", batch=2, time=3)
        plain = functools.partial(layer, implementation="reference")
        assert_slopes(plain, arrays, 1e-6)


def torch_layers(case, convert_layer, group="weights"):
    prefix = f"{case}/{group}/"
    state = {k.removeprefix(prefix): FIGURES[k] for k in FIGURES.files if k.startswith(prefix)}
    return [
        [convert_layer(state, layer, reverse=reverse) for reverse in (False, True)]
        for layer in (0, 1)
    ]


def flat(layers):
    return [direction for layer in layers for direction in layer]


@pytest.mark.parametrize(
    ("case", "implementation", "derive"),
    [
        ("torch_lstm", "scan", True),
        ("torch_projection", "scan", False),
        ("torch_gru", "scan", False),
        ("torch_projection", "reference", True),  # an LSTM too
        ("torch_gru", "reference", True),  # whose gradients are the scan's
    ],
)
def test_pytorch_s_packed_bidirectional_layers(x64, case, implementation, derive):
    from_torch = convert.gru_from_torch if case == "torch_gru" else convert.lstm_from_torch
    inputs, lengths = jnp.asarray(FIGURES["inputs"]), jnp.asarray(FIGURES["lengths"])

    def loss(inputs, layers):
        outputs, carries = recurrent_layers(
            inputs, None, layers, lengths=lengths, implementation=implementation
        )
        ends = [end for layer in carries for end in layer]
        hidden = jnp.stack([end if case == "torch_gru" else end[1] for end in ends])
        memory = None if case == "torch_gru" else jnp.stack([end[0] for end in ends])
        return jnp.sin(outputs).sum() + jnp.square(hidden).sum(), (outputs, hidden, memory)

    layers = torch_layers(case, from_torch)
    run = jax.value_and_grad(loss, (0, 1), has_aux=True) if derive else loss
    result, *gradients = jax.jit(run)(inputs, layers)
    found = result[1] if derive else gradients[0]
    names = ["outputs", "hidden", "memory"][: 2 if case == "torch_gru" else 3]
    for array, name in zip(found, names, strict=False):
        np.testing.assert_allclose(array, FIGURES[f"{case}/{name}"], atol=1e-13)
    if not derive:
        return
    ((d_inputs, d_layers),) = gradients
    np.testing.assert_allclose(d_inputs, FIGURES[f"{case}/d_inputs"], atol=1e-13)
    expected = torch_layers(case, from_torch, "gradients")
    for direction, theirs in zip(flat(d_layers), flat(expected), strict=True):
        if case != "torch_gru":  # each of PyTorch's two biases gets the gradient of their sum
            theirs = theirs._replace(bias=theirs.bias / 2)
        jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-12), direction, theirs)


@pytest.mark.parametrize("case", ["keras_lstm", "keras_gru"])
def test_keras_s_masked_layer(case):
    weights = [FIGURES[f"{case}/weights/{i}"] for i in range(3)]
    inputs = jnp.asarray(FIGURES["inputs"], jnp.float32)
    lengths = jnp.asarray(FIGURES["lengths"])
    if case == "keras_lstm":
        outputs, (c, h) = lstm(inputs, None, convert.lstm_from_keras(weights), lengths=lengths)
        np.testing.assert_allclose(c, FIGURES[f"{case}/memory"], atol=1e-6)
    else:
        outputs, h = gru(inputs, None, convert.gru_from_keras(weights), lengths=lengths)
    np.testing.assert_allclose(outputs, FIGURES[f"{case}/outputs"], atol=1e-6)
    np.testing.assert_allclose(h, FIGURES[f"{case}/hidden"], atol=1e-6)


@pytest.mark.parametrize("implementation", ["scan", "reference"])
def test_padding_has_no_effect_and_leaves_no_trace(x64, implementation):
    layer, inputs, (c, h), weights = problem("lstm", "lengths")
    lengths = layer.keywords["lengths"]
    padding = np.arange(TIME)[None, :, None] >= np.asarray(lengths)[:, None, None]
    dirty = np.where(padding, np.nan, inputs)
    both = jitted(layer, implementation=implementation)
    clean = both(np.where(padding, 0, inputs), (c, h), weights)
    found = both(dirty, (c, h), weights)
    assert_close(found, clean)
    (outputs, last), (d_inputs, *_) = jax.tree.map(np.asarray, found)
    assert (outputs == 0).all(where=padding)
    assert (d_inputs == 0).all(where=padding)
    # A length of 0 gives the initial carry back; any other, the carry at the row's own last step.
    np.testing.assert_array_equal(last[0][0], c[0])
    np.testing.assert_array_equal(last[1][0], h[0])
    for row in (1, 2):
        alone, (c_row, h_row) = lstm(
            inputs[row : row + 1, : lengths[row]],
            (c[row : row + 1], h[row : row + 1]),
            weights,
            implementation="reference",
        )
        assert_close(
            (outputs[row, : lengths[row]], last[0][row], last[1][row]),
            (alone[0], c_row[0], h_row[0]),
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rows_equal_separate_sequences(x64, reverse):
    weights = parameters()
    sizes = [4, 1, 4]
    inputs = np.random.default_rng(2).normal(size=(1, 11, FEATURES))
    segment_ids = jnp.array([[1] * 4 + [2] + [3] * 4 + [0] * 2])
    outputs, _ = lstm(inputs, None, weights, segment_ids=segment_ids, reverse=reverse, chunk_size=3)
    start = 0
    for size in sizes:
        alone, _ = lstm(
            inputs[:, start : start + size], None, weights, reverse=reverse,
            implementation="reference",
        )  # fmt: skip
        assert_close(outputs[:, start : start + size], alone)
        start += size
    assert not np.asarray(outputs)[:, start:].any()


# The reset before the matmul, with a mask: test_recurrent_options.py.
@pytest.mark.parametrize(("kind", "marks"), [("lstm", "segments"), ("gru", None)])
def test_second_derivatives(x64, kind, marks):
    """Of the fast path too: its gradient is differentiated by way of the plain loop."""
    layer, inputs, carry, weights = problem(kind, marks, batch=3, time=5)

    def norm_of_gradient(weights, implementation):
        _, gradients = value_and_gradients(
            layer, inputs, carry, weights, implementation=implementation
        )
        return sum(jnp.square(g).sum() for g in jax.tree.leaves(gradients))

    found, wanted = (
        jax.jit(functools.partial(jax.grad(norm_of_gradient), implementation=name))(weights)
        for name in ("scan", "reference")
    )
    assert_close(found, wanted, steps=5)


def test_forward_mode_is_the_reference_s(x64):
    layer, inputs, carry, weights = problem("lstm", "lengths", batch=3, time=5)
    tangents = jax.tree.map(lambda w: np.ones(w.shape), weights)

    def outputs(implementation):
        return lambda weights: layer(inputs, carry, weights, implementation=implementation)[0]

    _, forward = jax.jvp(outputs("reference"), (weights,), (tangents,))
    step, scanned = 1e-6, jax.jit(outputs("scan"))
    moved = [jax.tree.map(lambda w, s=s: np.asarray(w) + s, weights) for s in (step, -step)]
    ends = [np.asarray(scanned(weights)) for weights in moved]
    np.testing.assert_allclose(forward, (ends[0] - ends[1]) / (2 * step), atol=1e-8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(outputs("scan"), (weights,), (tangents,))


def test_vmap_equals_a_loop(x64):
    layer, inputs, carry, weights = problem("lstm", "lengths", batch=4, time=5)
    several = np.stack([inputs, 2 * np.asarray(inputs)])
    gradient = jax.jit(lambda inputs: value_and_gradients(layer, inputs, carry, weights))
    batched = jax.jit(jax.vmap(gradient))(several)
    for i in range(2):
        assert_close(jax.tree.map(lambda a, i=i: np.asarray(a)[i], batched), gradient(several[i]))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_half_precision_is_accumulated_in_float32(kind):
    layer, *_ = problem(kind, dtype=jnp.float32)
    both, plain = jitted(layer), jitted(layer, implementation="reference")
    for dtype in (jnp.bfloat16, jnp.float16):
        _, *arrays = problem(kind, dtype=dtype)
        results, gradients = both(*arrays)
        expected = plain(*jax.tree.map(lambda a: np.asarray(a, np.float32), arrays))
        assert results[0].dtype == dtype
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(results[1]))
        # h is rounded at each step and the gates' gradients once: a few units in the last place
        # each, which the contraction of the gates keeps from adding up over more than about four
        # steps.
        assert_near((results, gradients), expected, 4 * float(jnp.finfo(dtype).eps))


def test_dropout_is_unbiased_and_the_same_at_each_step():
    """h (1) -> mask h: over 4,000 rows the mean of the masks is 1 within five standard errors.

    The masks are independent, so the false-alarm rate is below 1e-6. The same mask at each step:
    with kernels that copy h to h, a unit that is dropped is zero from the first step on.
    """
    rows, share = 4000, 0.25
    big = 100.0
    # i = o = 1 and f = 0, so c = tanh(g) = tanh(h * mask), near the mask's 0 or tanh(1 / 0.75).
    bias = jnp.array([big, -big, 0.0, big])
    weights = LSTMParameters(jnp.zeros((1, 4)), jnp.array([[0.0, 0, 1, 0]]), bias)
    outputs, _ = lstm(
        np.zeros((rows, 6, 1), np.float32), (np.zeros((rows, 1)), np.ones((rows, 1))), weights,
        recurrent_dropout=share, key=jax.random.key(0),
    )  # fmt: skip
    outputs = np.asarray(outputs)[:, :, 0]
    masks = np.arctanh(np.arctanh(outputs[:, 0]))  # h = tanh(c)
    assert (np.isclose(masks, 0) | np.isclose(masks, 1 / (1 - share), rtol=1e-4)).all()
    assert abs(masks.mean() - 1) < 5 * (share / (1 - share) / rows) ** 0.5
    alive = outputs > 0
    assert (alive == alive[:, :1]).all()


def test_dropout_between_layers(x64):
    layers = [[parameters()], [parameters(features=HIDDEN)]]
    inputs = problem("lstm")[1]
    dropping = jax.jit(functools.partial(recurrent_layers, dropout=0.5))
    both = [dropping(inputs, None, layers, key=jax.random.key(seed))[0] for seed in (0, 0, 1)]
    dropped, again, other = map(np.asarray, both)
    lower, _ = recurrent_layers(
        inputs, None, layers[:1], dropout=0.5, key=jax.random.key(0)
    )  # none after the last layer
    plain = recurrent_layers(inputs, None, layers[:1])[0]
    assert (dropped == again).all()
    assert not np.allclose(dropped, other)
    assert_close(lower, plain)
    assert not np.allclose(dropped, lstm(plain, None, *layers[1])[0])


def test_carries_continue_a_sequence(x64):
    layer, inputs, carry, weights = problem("projection", time=12)
    first, second = np.split(np.asarray(inputs), 2, axis=1)  # of one shape: one program
    whole, last = layer(inputs, carry, weights)
    first, middle = layer(first, carry, weights)
    second, end = layer(second, middle, weights)
    assert_close((np.concatenate([first, second], 1), end), (whole, last))


def test_truncation_cuts_the_gradient_and_nothing_else(x64):
    layer, inputs, carry, weights = problem("lstm")

    def last_output(inputs):
        results = layer(inputs, carry, weights, truncate_steps=4)
        return results[0][:, -1].sum(), results

    (_, results), d_inputs = jax.jit(jax.value_and_grad(last_output, has_aux=True))(inputs)
    assert_close(results, layer(inputs, carry, weights))
    reached = np.abs(d_inputs).max((0, 2)) > 0
    assert reached.tolist() == [False] * 12 + [True]  # the last window holds the last step alone


# One row and step, in one chunk; chunks that leave steps over, in two stages; chunks of one step.
SHAPES = [(1, 1, 3), (12, 9, 4), (3, 7, 1)]


@functools.cache
def both_ways(batch, time, chunk):
    """The fast path and the reference, compiled once for all lengths."""
    layer, *arrays = problem("lstm", batch=batch, time=time)

    @jax.jit
    def run(lengths):
        given = functools.partial(layer, lengths=lengths)
        return (
            value_and_gradients(given, *arrays, chunk_size=chunk),
            value_and_gradients(given, *arrays, implementation="reference"),
        )

    return run


@settings(max_examples=20, deadline=None)
@given(shape=st.sampled_from(SHAPES), data=st.data())
def test_one_program_serves_any_lengths(shape, data):
    batch, time, _ = shape
    lengths = data.draw(st.lists(st.integers(0, time), min_size=batch, max_size=batch))
    with jax.enable_x64(True):
        run = both_ways(*shape)
        assert_close(*run(np.array(lengths)), steps=time)
    assert run._cache_size() == 1


def gradient_memory(layer, batch, time, features, hidden, **options):
    """Temporaries of outputs and gradients, in bytes; cotangents come in as an argument."""
    weights = LSTMParameters(
        *(
            jax.ShapeDtypeStruct(s, jnp.float32)
            for s in ((features, 4 * hidden), (hidden, 4 * hidden), (4 * hidden,))
        )
    )

    def step(inputs, weights, d_outputs):
        outputs, pull = jax.vjp(lambda x, w: layer(x, None, w, **options)[0], inputs, weights)
        return outputs, pull(d_outputs)

    inputs = jax.ShapeDtypeStruct((batch, time, features), jnp.float32)
    d_outputs = jax.ShapeDtypeStruct((batch, time, hidden), jnp.float32)
    compiled = jax.jit(step).lower(inputs, weights, d_outputs).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_long_sequences_need_a_twentieth_of_the_memory():
    kept = gradient_memory(lstm, 8, 17_989, 12, 128, remat=False)
    for time in (18_000, 17_989):  # the other is a prime: no chunk divides it
        assert gradient_memory(lstm, 8, time, 12, 128, remat=True) * 20 < kept
        assert gradient_memory(lstm, 8, time, 12, 128) * 20 < kept  # and that is what is chosen


def test_no_carry_is_stacked_without_a_gradient():
    """Inference holds its outputs and one chunk, not the gates or carries of every step."""
    shape = (8, 4000, 12)
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, (12, 512), (128, 512), (512,))]
    compiled = jax.jit(lambda x, *w: lstm(x, None, LSTMParameters(*w))).lower(*shapes).compile()
    outputs = 4 * 8 * 4000 * 128
    assert compiled.memory_analysis().temp_size_in_bytes < outputs / 10


def test_stages_skip_what_is_padding_for_most_rows():
    """Lengths of which the longest is 4 times the mean: at most half of the row-steps are run."""
    batch, time, chunk = 64, 256, 8
    lengths = np.minimum(time, np.random.default_rng(0).exponential(time / 4, batch)).astype(int)
    lengths[0] = time
    counts = xla_rows.row_counts(batch)
    run = 0

    def body(rows, index, rowwise, whole):
        return rowwise, (whole[0] + rows * chunk, jnp.maximum(whole[1], index))

    _, (run, last) = xla_rows.sweep(
        counts, chunk, time, jnp.array(lengths), body, (), (jnp.int32(0), jnp.int32(0)),
        descending=False,
    )  # fmt: skip
    assert lengths.sum() <= run < batch * time / 2
    assert last == time // chunk - 1


@pytest.mark.parametrize("marks", [None, "lengths", "segments"])
def test_lowers_for_accelerators(marks):
    layer, *arrays = problem("lstm", marks, dtype=jnp.float32)
    gradients = jax.jit(functools.partial(value_and_gradients, layer))
    exported = jax.export.export(gradients, platforms=["tpu", "cuda"])(*arrays)
    assert exported.platforms == ("tpu", "cuda")
