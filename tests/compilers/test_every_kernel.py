"""Every public kernel compiles for every device, and in odd and tiny shapes or is refused."""

from functools import partial

import jax
import pytest

from benchmarks.compilers.devices import DEVICES
from tests.compilers import cases
from tests.support import matrix

# What is split over devices needs a mesh of them: test_known_programs.py.
SUBJECTS = {name: s for name, s in matrix.SUBJECTS.items() if not name.startswith("sharded")}
# What differs little from another that compiles for all devices compiles for one of each kind.
VARIANTS = ("reference", "sample, Uniform", "sample, Unigram", "sample, LearnedUnigram")
ONE_OF_EACH = "v5e", "H100"


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


def fault(name, dtype, device):
    """What is known to fail, and why; strict, so that a mark is taken away with its fault."""
    if DEVICES[device].platform != "tpu" or not name.endswith("pallas"):
        return ""
    if dtype == "float16":
        return "Mosaic has no float16: the kernels for TPU must refuse it"
    if dtype == "bfloat16" and "loss, 1 x 8" in name:
        return "Pallas broadcasts one row of bfloat16 to a tile of float32 and fails to verify it"
    return ""


def swept():
    for name in cases.ODD:
        # XLA's own take any dtype: one of them is enough.
        for dtype in cases.DTYPES if name.endswith("pallas") else ("bfloat16",):
            for device in ONE_OF_EACH:
                why = fault(name, dtype, device)
                marks = [pytest.mark.xfail(strict=True, reason=why)] if why else []
                yield pytest.param(name, dtype, device, marks=marks)


@pytest.mark.parametrize(("name", "dtype", "device"), [*swept()])
def test_an_odd_shape_compiles_or_is_refused_with_the_reason(worker, name, dtype, device):
    case = cases.ODD[name]
    record = worker.estimate(device, case.function, case.arguments(dtype), counted=False)
    assert record.error == "" or record.refused
