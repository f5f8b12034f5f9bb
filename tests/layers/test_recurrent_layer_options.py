"""What the options of the recurrent modules do, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxnets.kernels import recurrent_layers
from jaxnets.layers import GRU, LSTM
from tests.inputs import INTEGER_TYPES, on_device
from tests.recurrence import by_hand
from tests.traced import traced

BATCH, TIME, FEATURES, HIDDEN = 4, 6, 3, 5
INPUTS = np.random.default_rng(0).normal(size=(BATCH, TIME, FEATURES)).astype(np.float32)
# As Keras has them: padding behind, in front, a hole, nothing at all.
MASK = np.array([[1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 1, 0, 1], [0] * 6], bool)
BOTH_WAYS = {"bidirectional": True}
pytestmark = pytest.mark.usefixtures("loops", "cheap_parameters")


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_a_masked_row_is_the_row_without_its_masked_steps(module):
    layer = module(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **BOTH_WAYS)
    inputs = np.where(MASK[:, :, None], INPUTS, np.float32(np.nan))
    run = nnx.jit(lambda layer, inputs, mask: layer(inputs, mask=mask))
    outputs, carries = run(layer, inputs, MASK)
    shorter = np.zeros_like(INPUTS)
    for row, kept in enumerate(MASK):
        shorter[row, : kept.sum()] = INPUTS[row, kept]
    wanted, ends = run(layer, shorter, np.arange(TIME) < MASK.sum(1)[:, None])
    assert_by_rows(outputs, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), carries, ends)


CLOSE = {"rtol": 0, "atol": 2e-6}


def assert_by_rows(masked, shorter):
    masked, shorter = np.asarray(masked), np.asarray(shorter)
    for row, kept in enumerate(MASK):
        np.testing.assert_allclose(masked[row, kept], shorter[row, : kept.sum()], **CLOSE)
        np.testing.assert_array_equal(masked[row, ~kept], 0)


# What the kernel does with each option is in its own tests.
@pytest.mark.parametrize(
    ("module", "own", "options"),
    [
        (LSTM, {}, {"mask": MASK.tolist(), "masked_outputs": "repeat"}),
        (GRU, {}, {"mask": MASK.tolist(), "masked_outputs": "repeat"}),
        (LSTM, {}, {"lengths": [5, 2, 0, 1], "time_first": True}),
        (LSTM, {}, {"lengths": 2, "batched": False}),
        (LSTM, {"merge_mode": "concat", "num_layers": 2, **BOTH_WAYS}, {}),
        (LSTM, {"merge_mode": "mul", "num_layers": 2, **BOTH_WAYS}, {}),
        (GRU, {"reset_after": False}, {}),
    ],
)
def test_an_option_is_the_kernel_s(module, own, options):
    layer = module(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **own)
    of_kernel = options | {n: v for n, v in own.items() if n in ("merge_mode", "reset_after")}
    square = INPUTS[:, :4]  # as many steps as rows: the time may be the first axis
    inputs = INPUTS if "mask" in options else square[1] if "batched" in options else square

    def kernel(**options):
        def run(layer):
            return recurrent_layers(inputs, None, layer.parameters(), **options)

        return traced(run, layer)

    assert traced(lambda layer: layer(inputs, **options), layer) == kernel(**of_kernel)
    if "merge_mode" not in own:
        assert kernel(**of_kernel) != kernel(batched=options.get("batched", True))


def test_one_sequence_and_time_first_in_both_directions():
    layer = GRU(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **BOTH_WAYS)

    @nnx.jit
    def each(layer, inputs):
        return (
            layer(inputs, lengths=[6, 2, 0, 5]),
            layer(jnp.swapaxes(inputs, 0, 1), lengths=[6, 2, 0, 5], time_first=True),
            layer(inputs[1], lengths=2, batched=False),
        )

    (wanted, carries), (turned, ends), (alone, end) = each(layer, INPUTS)
    np.testing.assert_allclose(np.swapaxes(turned, 0, 1), wanted, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), ends, carries)
    np.testing.assert_allclose(alone, wanted[1], atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], atol=1e-6), end, carries)


def test_dropout_of_the_first_inputs_and_deterministic():
    layer = LSTM(FEATURES, HIDDEN, input_dropout=0.5, rngs=nnx.Rngs(0))
    plain = np.asarray(recurrent_layers(INPUTS, None, layer.parameters())[0])
    assert np.abs(layer(INPUTS)[0] - plain).max() > 1e-3
    np.testing.assert_array_equal(layer(INPUTS, deterministic=True)[0], plain)
    layer.eval()
    np.testing.assert_array_equal(layer(INPUTS)[0], plain)
    assert np.abs(layer(INPUTS, deterministic=False)[0] - plain).max() > 1e-3


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_lengths_of_any_integer_type(module):
    layer = module(FEATURES, HIDDEN, rngs=nnx.Rngs(0))
    lengths = np.array([6, 1, 0, 4])

    def run(lengths):
        return traced(lambda layer: layer(INPUTS, lengths=lengths), layer)

    known = run(lengths)
    assert run(lengths.tolist()) == known
    found = np.asarray(layer(INPUTS, lengths=lengths)[0])
    zeros, ((parameters,),) = np.zeros((BATCH, HIDDEN)), layer.parameters()
    carry = zeros if module is GRU else (zeros, zeros)
    (wanted, _), _ = by_hand((INPUTS, carry, parameters), lengths=lengths)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)
    for dtype in INTEGER_TYPES:
        assert run(lengths.astype(dtype)) == known
        of_jax = on_device(lengths, dtype)
        np.testing.assert_array_equal(layer(INPUTS, lengths=of_jax)[0], found)


def test_an_unsigned_length_of_a_long_sequence_under_jit():
    layer = GRU(1, 2, rngs=nnx.Rngs(0))
    inputs = np.ones((1, 300, 1), np.float32)
    outputs = nnx.jit(lambda layer, lengths: layer(inputs, lengths=lengths)[0])(
        layer, np.array([100], np.uint8)
    )
    steps = (np.asarray(outputs)[0] != 0).any(-1)
    np.testing.assert_array_equal(steps, np.arange(300) < 100)


@pytest.mark.parametrize(("module", "dtype"), [(LSTM, jnp.float32), (GRU, jnp.bfloat16)])
def test_strict_modes(strict_modes, module, dtype):
    layer = module(FEATURES, HIDDEN, num_layers=2, dropout=0.1, param_dtype=dtype, rngs=nnx.Rngs(0))

    def loss(layer, inputs):
        return jnp.square(layer(inputs, lengths=np.array([6, 1, 0, 4]))[0]).sum()

    gradient, inputs = nnx.value_and_grad(loss, argnums=(0, 1)), INPUTS.astype(dtype)
    # The modes of dtypes and ranks refuse when traced; the kernel's gradient runs in its own tests.
    found = nnx.eval_shape(gradient, layer, inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(found[1])} == {jnp.dtype(dtype)}
    if module is LSTM:
        assert np.isfinite(nnx.jit(loss)(layer, inputs))


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_no_rows(module):
    layer = module(FEATURES, HIDDEN, rngs=nnx.Rngs(0), **BOTH_WAYS)

    def loss(layer, inputs):
        outputs, _ = layer(inputs, lengths=np.zeros(0, int))
        return outputs.sum(), outputs

    run = nnx.jit(nnx.value_and_grad(loss, has_aux=True))
    (value, outputs), gradient = run(layer, INPUTS[:0])
    assert outputs.shape == (0, TIME, 2 * HIDDEN)
    assert value == 0
    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(("module", "dtype"), [(LSTM, jnp.bfloat16), (GRU, jnp.float16)])
def test_half_precision(module, dtype):
    layer = module(FEATURES, HIDDEN, param_dtype=dtype, rngs=nnx.Rngs(0))
    ((parameters,),) = layer.parameters()
    inputs = INPUTS.astype(dtype)
    outputs, _ = layer(inputs)
    zeros = np.zeros((BATCH, HIDDEN))
    carry = zeros if module is GRU else (zeros, zeros)
    (wanted, _), _ = by_hand((inputs, carry, parameters))
    assert outputs.dtype == dtype
    # Outputs below 1 in magnitude, of sums of 8 products and their gates, each rounded.
    np.testing.assert_allclose(
        np.asarray(outputs, np.float32), wanted, atol=8 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_lengths_by_another_s_name(module):
    with pytest.raises(TypeError, match=r"seq_lengths.*lengths"):
        module(FEATURES, HIDDEN, rngs=nnx.Rngs(0))(INPUTS, seq_lengths=[6, 1, 0, 4])


def test_sizes_of_numpy_s():
    layer = LSTM(
        np.int64(3), np.int32(5), num_layers=np.int8(2), projection=np.uint8(2), rngs=nnx.Rngs(0)
    )
    assert jax.eval_shape(layer, INPUTS)[0].shape == (BATCH, TIME, 2)
    assert type(layer.in_features) is int


@pytest.mark.parametrize("module", [LSTM, GRU])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_features": 0}, "hidden_features must be at least 1, got 0"),
        ({"hidden_features": 2.0}, r"hidden_features must be an integer, got 2\.0"),
        ({"in_features": -3}, "in_features must be at least 1, got -3"),
        ({"in_features": True}, "in_features must be an integer, got True"),
        ({"num_layers": 0}, "num_layers must be at least 1, got 0"),
        ({"num_layers": "2"}, "num_layers must be an integer, got '2'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0"),
        ({"input_dropout": -0.1}, r"input_dropout must lie in"),
        ({"recurrent_dropout": 2}, r"recurrent_dropout must lie in"),
        ({"dtype": jnp.int32}, "dtype must be floating point"),
        ({"param_dtype": jnp.int32}, "param_dtype must be floating point"),
        ({"merge_mode": "add"}, "merge_mode must be one of .*, got 'add'"),
    ],
)
def test_bad_arguments(users_checks, module, changes, message):
    arguments = {"in_features": FEATURES, "hidden_features": HIDDEN, "rngs": nnx.Rngs(0)} | changes
    with pytest.raises((TypeError, ValueError), match=message):
        module(**arguments)


def test_bad_projection(users_checks):
    with pytest.raises(ValueError, match="projection must be at least 1, got 0"):
        LSTM(FEATURES, HIDDEN, projection=0, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("module", [LSTM, GRU])
def test_linen_has_every_method_and_dropout(module):
    linen = nnx.bridge.to_linen(module, FEATURES, hidden_features=HIDDEN, input_dropout=0.5)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = linen.init(keys, INPUTS)
    plain, _ = linen.apply(variables, INPUTS, lengths=[6, 1, 0, 4], deterministic=True)
    parameters = linen.apply(variables, nnx_method="parameters")
    wanted, _ = recurrent_layers(INPUTS, None, parameters, lengths=[6, 1, 0, 4])
    np.testing.assert_array_equal(plain, wanted)
    one, other = (
        linen.apply(variables, INPUTS, rngs={"dropout": jax.random.key(seed)})[0] for seed in (1, 2)
    )
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 1e-3
