"""The persistent LSTM of GPU and TPU, interpreted here, and the way to cuDNN and back."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import rnn

from jaxnets.kernels import LSTMParameters, compiling_for, explain, lstm
from jaxnets.kernels.recurrent import pallas_tpu
from jaxnets.kernels.recurrent.cudnn import cudnn_lstm, flat_weights
from tests.inputs import on_device
from tests.lowering import for_gpu
from tests.near import assert_near
from tests.recurrence import by_hand, jitted, value_and_gradients


def problem(batch, time, features, hidden, dtype=jnp.float32):
    draw = np.random.default_rng(0)  # of NumPy, which compiles nothing

    def normal(*shape, scale=1.0, dtype=dtype):
        return on_device(scale * draw.normal(size=shape), dtype)

    parameters = LSTMParameters(
        normal(features, 4 * hidden, scale=features**-0.5),
        normal(hidden, 4 * hidden, scale=hidden**-0.5),
        normal(4 * hidden, scale=0.1),
    )
    carry = tuple(normal(batch, hidden, scale=0.5, dtype=jnp.float32) for _ in range(2))
    return normal(batch, time, features), carry, parameters


def close(got, wanted, dtype, time, width):
    # Rounding of each step's sums over the width, carried over the steps.
    tolerance = 4 * float(jnp.finfo(dtype).eps) * (time + width**0.5)
    assert_near(got, wanted, tolerance)


LENGTHS = np.arange(19) % 10
SEGMENTS = np.where(np.arange(9) < LENGTHS[:, None], [1, 1, 1, 2, 3, 3, 3, 4, 4], 0)
DROPOUT = {"recurrent_dropout": 0.3, "key": jax.random.wrap_key_data(np.array([0, 9], np.uint32))}
# Every two of platform, direction, marks, dropout and dtype.
CASES = {
    "dropout": ("gpu", jnp.bfloat16, DROPOUT),
    "reverse": ("tpu", jnp.float32, {"reverse": True}),
    "lengths": ("tpu", jnp.bfloat16, {"lengths": LENGTHS}),
    "reverse lengths": ("gpu", jnp.float32, {"lengths": LENGTHS, "reverse": True, **DROPOUT}),
    "packed": ("gpu", jnp.float32, {"segment_ids": SEGMENTS}),
    "reverse packed": (
        "tpu", jnp.bfloat16, {"segment_ids": SEGMENTS, "reverse": True, **DROPOUT}
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.smoke if c == "reverse packed" else ()) for c in CASES],
)
def test_values_and_gradients_are_those_by_hand(case):
    """19 rows and 33 units divide no tile of either platform."""
    platform, dtype, options = CASES[case]
    arrays = problem(19, 9, 4, 33, dtype)
    with compiling_for(platform, interpret=True):
        got = jitted(lstm, implementation="pallas", **options)(arrays)
    close(got, by_hand(arrays, **options), dtype, 9, 33)


def test_tpu_in_several_blocks_of_rows_and_chunks_of_time(monkeypatch):
    """Neither 11 steps nor 19 rows are a multiple of their blocks."""
    monkeypatch.setattr(pallas_tpu, "_ROWS", 8)
    four_steps = 4 * 4 * 8 * 512
    monkeypatch.setattr(pallas_tpu, "vmem_limit", lambda: 32 * four_steps)
    arrays = problem(19, 11, 4, 33)
    lengths = np.arange(19) % 12
    with compiling_for("tpu", interpret=True):
        got = jitted(lstm, implementation="pallas", lengths=lengths)(arrays)
    close(got, by_hand(arrays, lengths=lengths), jnp.float32, 11, 33)


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        pytest.param("packed", jnp.float32, marks=pytest.mark.smoke),
        ("dropout", jnp.float32),
        ("reverse packed", jnp.bfloat16),
        ("reverse lengths", jnp.bfloat16),
    ],
)
def test_gradients_lower_for_both_platforms(case, dtype):
    arrays = problem(19, 9, 4, 33, dtype)

    def gradients(*arrays):
        layer = partial(lstm, implementation="pallas", **CASES[case][2])
        return value_and_gradients(layer, arrays)

    with compiling_for("tpu"):
        exported = jax.export.export(jax.jit(gradients), platforms=["tpu"])(*arrays)
    assert str(exported.mlir_module()).count("tpu_custom_call") >= 2
    with compiling_for("gpu"):
        text = for_gpu(lambda *arrays: gradients(*arrays), *arrays)
    assert text.count("__gpu$xla.gpu.triton") >= 2


def cudnn_in_jax(inputs, h, c, weights, lengths, features, hidden, *rest):
    """JAX's own reference of its cuDNN call, on the same flat array of weights."""
    parts = rnn.unpack_lstm_weights(weights, features, hidden, 1, False)
    return rnn.lstm_ref(inputs, h, c, *parts, lengths, features, hidden, *rest)


@pytest.mark.smoke
def test_cudnn_s_arguments_and_results():
    """The weights' layout, rows without a step, and the masks, by JAX's reference of the call."""
    inputs, (c, h), parameters = arrays = problem(4, 6, 3, 5)
    lengths = np.array([6, 1, 0, 4])
    kernels = parameters.input_kernel, parameters.recurrent_kernel, parameters.bias
    got = jax.jit(partial(cudnn_lstm, run=cudnn_in_jax))(inputs, c, h, *kernels, lengths)
    wanted, _ = by_hand(arrays, lengths=lengths)
    close(got, wanted, jnp.float32, 6, 5)
    size = jax.eval_shape(flat_weights, *kernels).size
    assert size == rnn.get_num_params_in_lstm(3, 5, 1, False)


@pytest.mark.parametrize(
    ("platform", "sizes", "message"),
    [
        ("gpu", {"hidden": 100}, "hidden must be at most 64 in float32"),
        ("tpu", {"hidden": 4096}, "MiB of VMEM"),
        ("gpu", {"extras": ("peepholes",)}, "it has no peepholes"),
        ("cpu", {}, "need a GPU or TPU"),
    ],
)
def test_what_cannot_run_says_why(platform, sizes, message):
    sizes = {"batch": 8, "time": 16, "features": 4, "hidden": 32, "extras": ()} | sizes
    with compiling_for(platform):
        text = explain("lstm", **sizes)
    (line,) = [line for line in text.splitlines() if "pallas" in line]
    assert "cannot run" in line
    assert message in line


def test_cudnn_can_run_on_a_gpu_only():
    sizes = {"batch": 8, "time": 16, "features": 4, "hidden": 512, "extras": ()}
    with compiling_for("gpu"):
        assert "cudnn: can run" in explain("lstm", **sizes)
        assert "cudnn: cannot run" in explain("lstm", dtype="bfloat16", **sizes)
    with compiling_for("tpu"):
        assert "cudnn: cannot run" in explain("lstm", **sizes)
