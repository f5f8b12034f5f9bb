"""The kernels on Mosaic GPU in its interpreter, which finds races: right values and gradients.

The interpreter multiplies by ``wgmma`` at once where a device does so later, so it cannot see one
that is not waited for; nor does it know of the layouts that the compiler wants, which
tests/compilers asks.
"""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxnets.kernels import (
    compiling_for,
    explain,
    linear_softmax_cross_entropy,
    pointwise_conv,
    sampled_softmax_cross_entropy,
)
from jaxnets.kernels.dispatch import Target
from jaxnets.kernels.pallas import contract, triton
from jaxnets.kernels.pallas import fused_matmul as fm
from tests.exact_loss import exact_loss
from tests.fixed_samples import fixed_samples
from tests.inputs import on_device
from tests.lowering import for_gpu
from tests.near import assert_near
from tests.sampled_losses import sampled_loss

NEW_JAX = jax.__version_info__ >= (0, 12)
needs_the_interpreter = pytest.mark.skipif(not NEW_JAX, reason="jax 0.10 has no such interpreter")
SIZES = {"tokens": 64, "features": 8, "vocab_size": 100}
HOPPER, BLACKWELL = "NVIDIA H100 80GB HBM3", "NVIDIA B200"
explain_exact = partial(explain, "linear_softmax_cross_entropy", **SIZES)


@pytest.fixture
def finding_races(monkeypatch):
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks
    from jax.experimental.pallas import mosaic_gpu as plgpu

    looking = plgpu.InterpretGPUParams(detect_races=True)
    monkeypatch.setattr(plgpu, "InterpretGPUParams", lambda: looking)
    yield
    gpu_callbacks.reset_gpu_interpret_mode_state()


def normal(seed, *shape, dtype=jnp.bfloat16):
    return on_device(np.random.default_rng(seed).normal(size=shape), dtype)


EXACT = {"soft_cap": 5.0, "label_smoothing": 0.1, "temperature": 2.0, "z_loss": 1e-3}


def exact(hidden, weight, bias):
    labels = np.arange(len(hidden)) * 7
    losses, _, backward = exact_loss(hidden, weight, labels, bias, **EXACT)

    def ours(hidden, weight, bias):
        return linear_softmax_cross_entropy(
            hidden, weight, labels, bias=bias, implementation="mosaic_gpu", **EXACT
        )

    return ours, lambda *_: (losses.mean(), backward(1 / len(hidden))[:3])


def sampled(hidden, weight, bias):
    labels = np.arange(len(hidden))
    samples = fixed_samples(len(weight), labels, np.arange(70))
    losses, backward = sampled_loss("softmax", hidden, weight, labels, samples, bias)

    def ours(hidden, weight, bias):
        return sampled_softmax_cross_entropy(
            hidden, weight, labels, samples, bias=bias, implementation="mosaic_gpu"
        )

    return ours, lambda *_: (losses.mean(), backward(1 / len(hidden)))


def pointwise(inputs, kernel, bias, residual):
    wide = [np.asarray(a, np.float64) for a in (inputs, kernel, bias, residual)]
    slope = np.cos(np.arange(19)) / 9

    def ours(inputs, kernel, bias, residual):
        outputs = pointwise_conv(
            inputs, kernel, bias, residual=residual, activation="silu",
            implementation="mosaic_gpu",
        )  # fmt: skip
        return (outputs.astype(jnp.float32) * np.float32(slope)).sum()

    def plain(*_):
        before = wide[0] @ wide[1] + wide[2] + wide[3]
        gate = 1 / (1 + np.exp(-before))
        d_before = slope * gate * (1 + before * (1 - gate))
        d_kernel = np.einsum("bpi,bpo->io", wide[0], d_before)
        gradients = d_before @ wide[1].T, d_kernel, d_before.sum((0, 1)), d_before
        return (slope * before * gate).sum(), gradients

    return ours, plain


@needs_the_interpreter
@pytest.mark.parametrize(
    ("kind", "function", "arrays"),
    [
        (HOPPER, exact, (normal(0, 37, 24), normal(1, 261, 24), normal(2, 261))),
        (BLACKWELL, sampled,
         (*(normal(0, n, 8, dtype=jnp.float16) for n in (5, 90)), normal(2, 90))),
        (BLACKWELL, pointwise,
         (normal(0, 2, 9, 24), normal(1, 24, 19), normal(2, 19), normal(3, 2, 9, 19))),
    ],
    ids=["exact", "sampled", "pointwise"],
)  # fmt: skip
def test_no_race_and_right_values_and_gradients(finding_races, kind, function, arrays):
    ours, wanted = function(*arrays)
    with compiling_for("gpu", interpret=True, device_kind=kind):
        value, gradients = jax.jit(jax.value_and_grad(ours, tuple(range(len(arrays)))))(*arrays)
    assert value.dtype == jnp.float32
    assert [gradient.dtype for gradient in gradients] == [array.dtype for array in arrays]
    assert_near((value, gradients), wanted(*arrays), 0.05, 1e-2)


@needs_the_interpreter
def test_tiles_that_the_sizes_do_not_divide(finding_races):
    """Three row tiles, two column tiles, three steps of the depth, the last of each cut off."""
    rows, columns, depth = 290, 136, 140
    inputs = fm.Inputs([normal(2, rows)], [normal(3, columns)], [normal(4, rows, columns)])

    def epilogue(product, row_ids, row_inputs, column_inputs, tiles):
        total = product * row_inputs[0] + column_inputs[0] + tiles[0]
        return total, jnp.where(row_ids < rows, total, 0).sum(0)

    outputs = contract.Tile(jnp.dtype(jnp.float32)), contract.Reduced(jnp.dtype(jnp.float32))
    options = contract.PallasOptions(
        Target("gpu", interpret=True), contract.Tiles(128, 128, 64), "mosaic_gpu"
    )

    @jax.jit
    def run(left, right, inputs):
        kernel = partial(fm.fused_matmul, options, name="test")
        found = (
            of(left, right, inputs, epilogue=epilogue, outputs=outputs)
            for of in (kernel, fm.reference)
        )
        return [(tile, reduced.reshape(-1, columns).sum(0)) for tile, reduced in found]

    assert_near(*run(normal(0, rows, depth), normal(1, columns, depth), inputs), 1e-4, 1e-3)


@needs_the_interpreter
@pytest.mark.parametrize("kind", [HOPPER, BLACKWELL])
def test_a_race_would_be_found(finding_races, monkeypatch, kind):
    """What the tests above rely on.

    Both warpgroups write to the memory of the first, or read their products before they are there.
    """
    from jaxnets.kernels.pallas import fused_matmul_mosaic_gpu as module

    if kind == HOPPER:
        monkeypatch.setattr(module, "_mine", lambda buffer, _group: buffer.at[0])
    else:
        monkeypatch.setattr(module.plgpu, "barrier_wait", lambda _barrier: None)
    convolution = jax.jit(partial(pointwise_conv, implementation="mosaic_gpu"))
    with (
        compiling_for("gpu", interpret=True, device_kind=kind),
        pytest.raises(Exception, match=r"(?i)race"),
    ):
        jax.block_until_ready(convolution(normal(0, 1, 9, 24), normal(1, 24, 19)))


def test_what_stands_in_its_way_is_said():
    def reason(dtype, **device):
        with compiling_for(**device):
            return explain_exact(dtype=dtype).splitlines()[-1].strip()

    assert "need a GPU, this is tpu" in reason("bfloat16", platform="tpu")
    if not NEW_JAX:
        assert "need jax >= 0.12, this is 0.10" in reason("bfloat16", platform="gpu")
        return
    assert "take bfloat16 and float16, got float32" in reason("float32", platform="gpu")
    for kind in (HOPPER, "NVIDIA GH200 480GB", BLACKWELL, "NVIDIA GB200"):
        assert reason("bfloat16", platform="gpu", device_kind=kind) == "mosaic_gpu: can run"
    for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA GB10", "NVIDIA GeForce RTX 5090"):
        assert f"this is {kind}" in reason("bfloat16", platform="gpu", device_kind=kind)


def test_a_jax_without_triton_is_said(monkeypatch):
    monkeypatch.setattr(triton, "triton", None)
    with compiling_for("gpu"):
        assert "has no Triton backend of Pallas any more" in explain_exact()
        with pytest.raises(ValueError, match=r"'pallas' cannot run here: jax .* has no Triton"):
            linear_softmax_cross_entropy(
                jnp.ones((2, 4)), jnp.ones((5, 4)), [1, 2], implementation="pallas"
            )


def test_the_deprecation_of_triton_does_not_reach_the_user():
    def loss(hidden):
        return pointwise_conv(hidden, jnp.ones((8, 4)), implementation="pallas").sum()

    with warnings.catch_warnings(), compiling_for("gpu"):
        warnings.simplefilter("error")
        assert "triton" in for_gpu(loss, jnp.ones((1, 16, 8)))
