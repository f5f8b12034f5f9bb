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
    "a loss for each token",
    "reference",
    "symmetric",
    "draw_samples, Uniform",
    "draw_samples, Unigram",
    "draw_samples, LearnedUnigram",
)
ONE_OF_EACH = "v5e", "H100"
TOGETHER = 24  # in one program, which has a kernel that several of them need once


def named(value):
    """What a test's name says of functions: the first, and how many."""
    return f"{value[0]} and {len(value) - 1} more" if isinstance(value, list) else value


def in_parts(names):
    return [names[start : start + TOGETHER] for start in range(0, len(names), TOGETHER)]


def assert_compiled(worker, device, functions, shapes):
    """All of some functions, by name; a failure says which of them do not compile, and why."""

    def error(names):
        some = {name: functions[name] for name in names}
        arguments = ({name: shapes[name] for name in names},)
        return worker.estimate(device, partial(cases.all_of, some), arguments, counted=False).error

    if together := error(functions):
        alone = {name: error([name]) for name in functions}
        assert alone == dict.fromkeys(functions, "")
        pytest.fail(f"each compiles, and all in one program do not: {together}")


def subjects():
    for device, found in DEVICES.items():
        names = [
            name
            for name, subject in SUBJECTS.items()
            if found.platform in subject.platforms
            and (device in ONE_OF_EACH or not name.endswith(VARIANTS))
        ]
        yield from ((device, part) for part in in_parts(names))


@pytest.mark.parametrize(("device", "names"), [*subjects()], ids=named)
def test_kernels_compile_with_their_gradients(worker, device, names):
    shapes = {
        name: tuple(jax.ShapeDtypeStruct(shape, "float32") for shape in SUBJECTS[name].shapes)
        for name in names
    }
    functions = {name: partial(cases.subject, name) for name in names}
    assert_compiled(worker, device, functions, shapes)


def assert_odd_compiled(worker, device, dtype, names):
    found = {name: cases.ODD[name] for name in names}
    functions = {name: case.function for name, case in found.items()}
    shapes = {name: case.arguments(dtype) for name, case in found.items()}
    assert_compiled(worker, device, functions, shapes)


def assert_odd_refused(worker, device, dtype, names):
    """With a reason of ours, before a compiler sees it."""
    for name in names:
        case = cases.ODD[name]
        record = worker.estimate(device, case.function, case.arguments(dtype), counted=False)
        assert record.refused, f"{name}: {record.error or 'it compiles'}"


PALLAS = [name for name in cases.ODD if name.endswith("pallas")]
# LSTMs too large for a block's shared memory or for VMEM; Mosaic has no float16.
REFUSED = {
    **{("H100", dtype): cases.LARGE_LSTMS for dtype in cases.DTYPES},
    ("v5e", "float32"): cases.LARGE_LSTMS[1:],
    ("v5e", "float16"): PALLAS,
}
MOSAIC_GPU = [name for name in cases.ODD if name.endswith("mosaic_gpu")]


def swept():
    """For one device of each kind; XLA's own take any dtype: one of them is enough."""
    for device in ONE_OF_EACH:
        for dtype in cases.DTYPES:
            names = [
                name
                for name in cases.ODD
                if (name in PALLAS or (dtype == "bfloat16" and name not in MOSAIC_GPU))
                and name not in REFUSED.get((device, dtype), ())
            ]
            yield from ((device, dtype, part) for part in in_parts(names))


@pytest.mark.parametrize(("device", "dtype", "names"), [*swept()], ids=named)
def test_odd_shapes_compile(worker, device, dtype, names):
    assert_odd_compiled(worker, device, dtype, names)


@pytest.mark.parametrize(("device", "dtype"), REFUSED)
def test_what_a_device_cannot_run_is_refused_with_the_reason(worker, device, dtype):
    assert_odd_refused(worker, device, dtype, REFUSED[device, dtype])


# For another dtype and generation one of each, with all that it can have.
FEW = [name for name in MOSAIC_GPU if not name.endswith(cases.MORE_ON_MOSAIC_GPU)]


@pytest.mark.parametrize(
    ("device", "dtype", "names"),
    [
        ("H100", "bfloat16", MOSAIC_GPU),
        ("H100", "float16", FEW),
        ("B200", "bfloat16", FEW),
    ],
    ids=named,
)
def test_kernels_on_mosaic_gpu_compile_for_two_generations(worker, device, dtype, names):
    assert_odd_compiled(worker, device, dtype, names)


@pytest.mark.parametrize(
    ("device", "dtype"), [("H100", "float32"), ("A100", "bfloat16"), ("v5e", "bfloat16")]
)
def test_kernels_on_mosaic_gpu_are_refused_elsewhere(worker, device, dtype):
    assert_odd_refused(worker, device, dtype, MOSAIC_GPU)
