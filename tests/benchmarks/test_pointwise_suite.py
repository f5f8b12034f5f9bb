"""The comparison of 1x1 convolutions: its layers agree, its limits are right, it has a report."""

import numpy as np
import pytest

from benchmarks import pointwise, report
from benchmarks.harness import compiled_case, measure

LIMITS = {"matmul_flops": 1e11, "copy_bytes_per_s": 1e10}


@pytest.mark.parametrize("out", [1, 8])
def test_all_layers_give_the_same(out):
    arrays = pointwise.problem((2, 4, 4, 6), out)
    wanted = pointwise.step(pointwise.flax_conv)(*arrays)
    for layer in pointwise.LAYERS.values():
        for a, b in zip(pointwise.step(layer)(*arrays), wanted, strict=True):
            # Sums of at most 32 products in float32.
            np.testing.assert_allclose(a, b, atol=32 * 6e-8 * 100)


def test_a_step_is_the_gradient_of_half_the_sum_of_squares():
    arrays = pointwise.problem((2, 3, 3, 4), 5)
    outputs, _, _, bias_gradient = pointwise.step(pointwise.flax_dense)(*arrays)
    np.testing.assert_allclose(bias_gradient, outputs.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_flops_and_bytes():
    flops, least = pointwise.flops_and_bytes((2, 3, 5, 7), 11, gradient=False)
    assert (flops, least) == (2 * 30 * 7 * 11, 4 * (30 * 18 + 77))
    assert pointwise.flops_and_bytes((2, 3, 5, 7), 11, gradient=True) == (3 * flops, 3 * least)


def test_report_page():
    arrays = pointwise.problem((2, 4, 4, 6), 8)
    rows = measure("g", [compiled_case(n, f, *arrays) for n, f in pointwise.LAYERS.items()], 2)
    point = {
        "shape": "[2, 4, 4, 6] to 8", "what": "forward", "flops": 1e6, "bytes": 1e5,
        "limit_s": 1e-5, "ours_s": 2e-5, "flax_s": 4e-5,
    }  # fmt: skip
    page = report.page({
        "name": "pointwise", "benchmarks": rows, "bars": {"a bar": 1.5}, "roofline": [point],
        "recycled_memory": True, "peers": {"torch": False},
        "machine_info": LIMITS | {
            "cpu": "c", "cores": 2, "device": "cpu", "jax": "0", "python": "3"
        },
    })  # fmt: skip
    assert "[2, 4, 4, 6] to 8" in page
    assert "<td>50%</td>" in page  # of the limit
    assert "Peers absent: torch" in page
