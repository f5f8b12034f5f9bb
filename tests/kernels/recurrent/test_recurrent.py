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
    """With NaN in the padding."""
    options = dict(options)
    if "recurrent_dropout" in options:
        options["key"] = jax.random.key(3)
    layer, *arrays = problem(kind, marks, batch=options.pop("batch", BATCH))
    plain = {k: v for k, v in options.items() if k not in ("chunk_size", "remat")}
    expected = jitted(layer, **plain, implementation="reference")(*arrays)
    assert_close(jitted(layer, **options)(*with_dirty_padding(layer, arrays)), expected)


def with_dirty_padding(layer, arrays):
    inputs, *others = arrays
    marks, inside = layer.keywords, True
    if "lengths" in marks:
        inside = np.arange(inputs.shape[1]) < np.asarray(marks["lengths"])[:, None]
    if "segment_ids" in marks:
        inside = np.asarray(marks["segment_ids"]) != 0
    return np.where(np.broadcast_to(inside, inputs.shape[:2])[..., None], inputs, np.nan), *others


def test_the_reference_s_gradients_are_finite_differences(x64):
    """Where no other library's are at hand: those of PyTorch's layers are below."""
    for kind in ("peepholes", "layer norm"):
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
        ("torch_lstm", "scan", False),  # the projection's: tests/layers
        ("torch_gru", "scan", False),
        # Whose gradients are the scan's.
        ("torch_projection", "reference", True),
        ("torch_gru", "reference", True),
    ],
)
def test_pytorch_s_packed_bidirectional_layers(x64, loops, case, implementation, derive):
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


@functools.cache
def padded_and_alone():
    """A problem with lengths, and two of its rows by themselves, as the reference has them."""
    layer, inputs, (c, h), weights = problem("lstm", "lengths")
    lengths = layer.keywords["lengths"].tolist()
    alone = {
        row: jax.jit(functools.partial(lstm, implementation="reference"))(
            inputs[row : row + 1, : lengths[row]], (c[row : row + 1], h[row : row + 1]), weights
        )
        for row in (1, 2)
    }
    return layer, lengths, inputs, (c, h), weights, alone


@pytest.mark.parametrize("implementation", ["scan", "reference"])
def test_padding_has_no_effect_and_leaves_no_trace(x64, implementation):
    layer, lengths, inputs, (c, h), weights, alone = padded_and_alone()
    padding = np.arange(TIME)[None, :, None] >= np.array(lengths)[:, None, None]
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
    for row, (own, (c_row, h_row)) in alone.items():
        assert_close(
            (outputs[row, : lengths[row]], last[0][row], last[1][row]),
            (np.asarray(own)[0], np.asarray(c_row)[0], np.asarray(h_row)[0]),
        )


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_rows_equal_separate_sequences(x64, reverse):
    inputs = np.random.default_rng(2).normal(size=(1, 11, FEATURES))
    segment_ids = np.array([[1] * 4 + [2] + [3] * 4 + [0] * 2])

    @jax.jit
    def both(inputs, weights):
        packed = lstm(
            inputs, None, weights, segment_ids=segment_ids, reverse=reverse, chunk_size=3
        ).outputs
        alone = functools.partial(lstm, reverse=reverse, implementation="reference")
        fours = jnp.concatenate([inputs[:, :4], inputs[:, 5:9]])
        return packed, alone(fours, None, weights).outputs, alone(inputs[:, 4:5], None, weights)[0]

    packed, (first, third), (second,) = map(np.asarray, both(inputs, parameters()))
    assert_close(packed[0, :9], np.concatenate([first, second, third]))
    assert not packed[0, 9:].any()


# The reset before the matmul, with a mask: test_recurrent_options.py.
@pytest.mark.parametrize(("kind", "marks"), [("lstm", "segments"), ("gru", None)])
def test_second_derivatives(x64, loops, kind, marks):
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
    layer, inputs, carry, weights = problem("lstm", "lengths", batch=3, time=11)
    tangents = jax.tree.map(lambda w: np.ones(w.shape), weights)

    def outputs(implementation):
        return lambda weights: layer(inputs, carry, weights, implementation=implementation)[0]

    plain = outputs("reference")
    _, forward = jax.jit(lambda weights: jax.jvp(plain, (weights,), (tangents,)))(weights)
    step, scanned = 1e-6, jax.jit(outputs("scan"))
    moved = [jax.tree.map(lambda w, s=s: np.asarray(w) + s, weights) for s in (step, -step)]
    ends = [np.asarray(scanned(weights)) for weights in moved]
    np.testing.assert_allclose(forward, (ends[0] - ends[1]) / (2 * step), atol=1e-8)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(outputs("scan"), (weights,), (tangents,))


def test_vmap_equals_a_loop(x64):
    layer, inputs, carry, weights = problem("lstm", "lengths", batch=4, time=9)
    several = np.stack([inputs, 2 * np.asarray(inputs)])
    gradient = jax.jit(lambda inputs: value_and_gradients(layer, inputs, carry, weights))
    batched = jax.jit(jax.vmap(gradient))(several)
    for i in range(2):
        assert_close(jax.tree.map(lambda a, i=i: np.asarray(a)[i], batched), gradient(several[i]))


@pytest.mark.parametrize(
    ("kind", "dtype"), [("lstm", jnp.bfloat16), ("gru", jnp.float16), ("lstm", jnp.float16),
                        ("gru", jnp.bfloat16)]
)  # fmt: skip
def test_half_precision_is_accumulated_in_float32(kind, dtype):
    """Each kind and each dtype has its gradients here, and every two of them their values."""
    layer, *arrays = problem(kind, dtype=dtype)
    derive = (kind, dtype) in (("lstm", jnp.bfloat16), ("gru", jnp.float16))
    run = functools.partial(value_and_gradients, layer) if derive else layer
    found = jax.jit(run)(*arrays)
    wide = jax.tree.map(lambda a: np.asarray(a, np.float32), arrays)
    expected = jax.jit(functools.partial(run, implementation="reference"))(*wide)
    outputs, carry = found[0] if derive else found
    assert outputs.dtype == dtype
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(carry))
    # h is rounded at each step and the gates' gradients once: a few units in the last place each,
    # which the contraction of the gates keeps from adding up over more than about four steps.
    assert_near(found, expected, 4 * float(jnp.finfo(dtype).eps))


def test_dropout_is_unbiased_and_the_same_at_each_step():
    """h (1) -> mask h: over 4,000 rows the mean of the masks is 1 within five standard errors.

    The masks are independent, so the false-alarm rate is below 1e-6. The same mask at each step:
    with kernels that copy h to h, a unit that is dropped is zero from the first step on.
    """
    rows, share = 4000, 0.25
    big = 100.0
    # i = o = 1 and f = 0, so c = tanh(g) = tanh(h * mask), near the mask's 0 or tanh(1 / 0.75).
    bias = np.float32([big, -big, 0, big])
    weights = LSTMParameters(np.zeros((1, 4), np.float32), np.float32([[0, 0, 1, 0]]), bias)
    layer = jax.jit(functools.partial(lstm, recurrent_dropout=share))
    outputs, _ = layer(
        np.zeros((rows, 11, 1), np.float32), (np.zeros((rows, 1)), np.ones((rows, 1))), weights,
        key=jax.random.key(0),
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

    @jax.jit
    def others(inputs, layers):
        lower, _ = recurrent_layers(
            inputs, None, layers[:1], dropout=0.5, key=jax.random.key(0)
        )  # none after the last layer
        plain = recurrent_layers(inputs, None, layers[:1])[0]
        return lower, plain, lstm(plain, None, *layers[1])[0]

    lower, plain, upper = others(inputs, layers)
    assert (dropped == again).all()
    assert not np.allclose(dropped, other)
    assert_close(lower, plain)
    assert not np.allclose(dropped, upper)


def test_carries_continue_a_sequence(x64):
    layer, inputs, carry, weights = problem("projection", time=22)
    layer = jax.jit(layer)
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
    assert_close(results, jax.jit(layer)(inputs, carry, weights))
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
    assert gradient_memory(lstm, 8, 18_000, 12, 128, remat=True) * 20 < kept
    # What is chosen, of a prime time, which no chunk divides.
    assert gradient_memory(lstm, 8, 17_989, 12, 128) * 20 < kept


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
