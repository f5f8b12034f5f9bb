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


TOGETHER = 8  # in one program, which takes less time than a program each


def in_parts(names):
    return [names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)]


def compiled(worker, device, named):
    """Functions with their shapes, by name, are compiled in one program; the fault's name if not."""

    def said(names):
        functions = {name: named[name][0] for name in names}
        shapes = {name: named[name][1] for name in names}
        return worker.estimate(device, partial(cases.all_of, functions), (shapes,), counted=False)

    if said(named).error:
        alone = {name: said([name]).error for name in named}
        assert alone == dict.fromkeys(named, "")
        pytest.fail("each compiles alone, and all of them together do not")


def subjects_by_device():
    for device, found in DEVICES.items():
        names = [
            name
            for name, subject in SUBJECTS.items()
            if found.platform in subject.platforms
            and (device in ONE_OF_EACH or not name.endswith(VARIANTS))
        ]
        yield from ((device, part) for part in in_parts(names))


@pytest.mark.parametrize(
    ("device", "names"), [*subjects_by_device()], ids=lambda value: str(value)[:60]
)
def test_kernels_compile_with_their_gradients(worker, device, names):
    def shapes(name):
        return tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in SUBJECTS[name].shapes)

    compiled(worker, device, {name: (partial(cases.subject, name), shapes(name)) for name in names})


def swept():
    """Of each kind of device; XLA's own take any dtype: one of them is enough."""
    for device in ONE_OF_EACH:
        for dtype in cases.DTYPES:
            names = [
                name
                for name in cases.ODD
                if name.endswith("pallas") or (dtype == "bfloat16" and name not in MOSAIC_GPU)
            ]
            yield from ((device, dtype, part) for part in in_parts(names))


@pytest.mark.parametrize(
    ("device", "dtype", "names"), [*swept()], ids=lambda value: str(value)[:60]
)
def test_odd_shapes_compile_or_are_refused_with_the_reason(worker, device, dtype, names):
    compiled(worker, device, odd(names, dtype, cases.unless_refused))


def odd(names, dtype, run=None):
    """Functions and shapes of odd sizes, by name; each in the arms of ``run``."""
    found = {name: cases.ODD[name] for name in names}
    return {
        name: (partial(run, case.function) if run else case.function, case.arguments(dtype))
        for name, case in found.items()
    }


@pytest.mark.parametrize(
    ("device", "dtype"), [("H100", "bfloat16"), ("H100", "float16"), ("B200", "bfloat16")]
)
def test_kernels_on_mosaic_gpu_compile_for_two_generations(worker, device, dtype):
    compiled(worker, device, odd(MOSAIC_GPU, dtype))


@pytest.mark.parametrize(
    ("device", "dtype"), [("H100", "float32"), ("A100", "bfloat16"), ("v5e", "bfloat16")]
)
def test_kernels_on_mosaic_gpu_are_refused_elsewhere(worker, device, dtype):
    for function, shapes in odd(MOSAIC_GPU, dtype).values():
        assert worker.estimate(device, function, shapes, counted=False).refused
