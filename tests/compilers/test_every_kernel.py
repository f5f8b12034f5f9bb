"""Every public kernel compiles for every device, and in odd and tiny shapes or is refused."""

from functools import partial

import jax
import pytest

from benchmarks.compilers.devices import DEVICES
from tests.compilers import cases
from tests.support import matrix

# What is split over devices needs a mesh of them: test_known_programs.py.
SUBJECTS = {name: s for name, s in matrix.SUBJECTS.items() if not name.endswith(", sharding")}
# What differs little from another that compiles for all devices compiles for one of each kind.
VARIANTS = (
    "reference",
    "draw_samples, Uniform",
    "draw_samples, Unigram",
    "draw_samples, LearnedUnigram",
)
ONE_OF_EACH = "v5e", "H100"
MOSAIC_GPU = [name for name in cases.ODD if name.endswith("mosaic_gpu")]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        (name, device)
        for name, subject in SUBJECTS.items()
        for device, found in DEVICES.items()
        if found.platform in subject.platforms
        and (device in ONE_OF_EACH or not name.endswith(VARIANTS))
    ],
)
def test_a_kernel_compiles_with_its_gradient(worker, name, device):
    shapes = tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in SUBJECTS[name].shapes)
    record = worker.estimate(device, partial(cases.subject, name), shapes, counted=False)
    assert record.error == ""


def swept():
    for name in cases.ODD:
        # XLA's own take any dtype: one of them is enough.
        if name in MOSAIC_GPU:
            continue
        for dtype in cases.DTYPES if name.endswith("pallas") else ("bfloat16",):
            for device in ONE_OF_EACH:
                yield name, dtype, device


@pytest.mark.parametrize(("name", "dtype", "device"), [*swept()])
def test_an_odd_shape_compiles_or_is_refused_with_the_reason(worker, name, dtype, device):
    case = cases.ODD[name]
    record = worker.estimate(device, case.function, case.arguments(dtype), counted=False)
    assert record.error == "" or record.refused


@pytest.mark.parametrize("name", MOSAIC_GPU)
def test_a_kernel_on_mosaic_gpu_compiles_for_two_generations_and_is_refused_elsewhere(worker, name):
    case = cases.ODD[name]

    def said(device, dtype):
        return worker.estimate(device, case.function, case.arguments(dtype), counted=False)

    for device, dtype in (("H100", "bfloat16"), ("H100", "float16"), ("B200", "bfloat16")):
        assert said(device, dtype).error == ""
    for device, dtype in (("H100", "float32"), ("A100", "bfloat16"), ("v5e", "bfloat16")):
        assert said(device, dtype).refused
