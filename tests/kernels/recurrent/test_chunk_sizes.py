"""How many steps a chunk without gradient has, and that long ones give what short ones give."""

import jax
import numpy as np

from jaxnets.kernels import LSTMParameters, lstm
from jaxnets.kernels.recurrent import xla_chunk_size


def test_steps_without_gradient():
    steps = xla_chunk_size.without_gradient
    assert steps(32, 128, 256, 1024, 128) == 8
    assert steps(16, 100, 512, 2048, 64) == 25  # 4 steps would be 64 rows
    assert steps(24, 50, 512, 1536, 50) == 25
    assert steps(16, 106, 512, 2048, 64) == 2  # no longer chunk divides the time
    assert steps(16, 128, 512, 2048, 64) == 8
    assert steps(4, 100, 512, 2048, 100) == 4
    assert steps(8, 1000, 12, 256, 1000) == 8
    assert steps(16, 101, 12, 256, 26) == 26
    assert steps(0, 100, 512, 2048, 100) == 4


def test_gates_that_stay_in_cache_are_one_chunk(monkeypatch):
    steps, whole_bytes = xla_chunk_size.steps, xla_chunk_size.whole_bytes
    for last_level, whole in ((2**20, 2**24), (2**26, 2**25), (2**28, 2**26)):
        monkeypatch.setattr(xla_chunk_size, "last_level_bytes", lambda n=last_level: n)
        assert whole_bytes("cpu") == whole
    assert whole_bytes("gpu") == whole_bytes("tpu") == xla_chunk_size.WHOLE_BYTES
    assert steps(64, 256, 512, staged=False) == 16  # 32 MB
    assert steps(64, 256, 512, staged=False, whole=whole_bytes("cpu")) == 256
    assert steps(64, 256, 512, staged=True, whole=whole_bytes("cpu")) == 8


def test_a_longer_chunk_gives_the_same(monkeypatch):
    draw = np.random.default_rng(0)
    shapes = (16, 50, 3), (3, 16), (4, 16), (16,)
    inputs, *arrays = (draw.normal(size=shape).astype(np.float32) for shape in shapes)

    def outputs(inputs, parameters):
        return lstm(inputs, None, parameters).outputs

    short = jax.jit(outputs)(inputs, LSTMParameters(*arrays))
    monkeypatch.setattr(xla_chunk_size, "LARGE_KERNEL_BYTES", 0)
    longer = jax.jit(lambda *given: outputs(*given))(inputs, LSTMParameters(*arrays))
    np.testing.assert_allclose(longer, short, rtol=1e-5, atol=1e-6)
