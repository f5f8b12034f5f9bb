"""The experiments of ``matrix.py``: a function transformed, or in another dtype, against itself.

Each takes the programs of a subject, and is done, or fails with an ``AssertionError`` for a wrong
number, or with whatever JAX raises for what it does not support.
"""

from __future__ import annotations

import contextlib
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxnets.kernels import compiling_for
from tests.lowering import for_gpu
from tests.near import assert_near
from tests.support.subjects import PLATFORMS, Subject

YES, NO, NONE = "yes", "no", "-"


def scalar(tree, xp=jnp):
    """A weighted sum of all float leaves, to differentiate; in NumPy, of what is there."""
    leaves = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return sum(
        (xp.asarray(a, np.float32) * np.cos(np.arange(a.size, dtype=np.float32)).reshape(a.shape))
        .sum()
        for a in leaves
    )  # fmt: skip


def compare(got, wanted, dtype, factor: float = 1.0, size: float = 1e-2) -> None:
    """Equal up to the rounding of sums of some tens of terms, of at least ``size``."""
    tolerance = factor * 64 * float(jnp.finfo(dtype).eps)
    assert_near(got, wanted, tolerance, size)


def _coarser(dtype: str) -> float:
    """How much a dtype's rounding is than float32's, if it is more."""
    return max(1.0, float(jnp.finfo(dtype).eps / jnp.finfo(jnp.float32).eps))


REFUSALS = (TypeError, ValueError, NotImplementedError, jax.errors.JAXTypeError)


class Programs:
    """A subject, and the programs and numbers that its experiments share."""

    def __init__(self, subject: Subject):
        self.subject = subject
        # A function of its own, so that no trace of another target is reused.
        self.function = lambda *arrays: subject.function(*arrays)
        self.arrays = [np.asarray(a) for a in subject.arrays("float32")]

        self.jitted = jax.jit(self.function)

    def slope(self, *arrays):
        """Of the loss, along the tangents."""
        loss = lambda *arrays: scalar(self.function(*arrays))  # noqa: E731
        return jax.jvp(loss, arrays, tuple(map(tangent, arrays)))[1]

    def differentiated(self, ways: tuple[str, ...]):
        """One program of the outputs, the gradient by each array, and the slope along tangents.

        ``ways``: ``"remat"`` for the gradient of what is rematerialized, ``"jvp"`` for the slope.
        """

        def loss(*arrays):
            outputs = self.function(*arrays)
            return scalar(outputs), outputs

        # Left to it, XLA finds again what was computed before, which is one kernel less for each.
        kept = jax.checkpoint(loss, prevent_cse=False) if "remat" in ways else loss

        def program(*arrays):
            slope = self.slope(*arrays) if "jvp" in ways else ()
            gradients, outputs = jax.grad(kept, tuple(range(len(arrays))), has_aux=True)(*arrays)
            return outputs, gradients, slope

        return jax.jit(program)

    @cached_property
    def forward(self) -> str:
        """Whether the forward mode is there, which only lowering tells."""
        return _attempt(lambda _: jax.jit(self.slope).lower(*self.arrays), self)

    @cached_property
    def derivatives(self):
        """Of the ways that are not refused: those, their one program, and what it gives.

        A gradient that is right under remat is right without.
        """
        ways = ("remat", "jvp") if self.forward == YES else ("remat",)
        try:
            return self._run_by(ways)
        except REFUSALS:
            return self._run_by(ways[1:])

    def _run_by(self, ways):
        program = self.differentiated(ways)
        return ways, program, jax.tree.map(np.asarray, program(*self.arrays))

    @cached_property
    def together(self) -> tuple[str, ...]:
        """The columns whose experiments pass in one program, and so each in its own; or none."""
        narrow = () if self.subject.by_key else ("bfloat16", "float16")
        widest = "float32" if self.subject.pallas else "float64"
        # What is split over devices goes into the maps that are not.
        for maps in (tuple(_MAPS), ("vmap", "scan")):
            if _attempt(partial(_together, maps, narrow, widest), self) == YES:
                return (*maps, *narrow, widest, "jit")
        return ()

    @cached_property
    def lowered(self) -> tuple[str, ...]:
        """The platforms that it lowers for at once, and so for each; or none."""
        both = PLATFORMS[1:]
        return both if _attempt(partial(_lowers, both), self) == YES else ()


def tangent(array):
    return np.cos(np.arange(array.size, dtype=array.dtype)).reshape(array.shape)


def _jit(programs):
    compare(programs.jitted(*programs.arrays), programs.function(*programs.arrays), jnp.float32)


def _grad(programs):
    """Against finite differences along a random direction."""
    _, _, (outputs, gradients, _) = programs.derivatives
    compare(outputs, programs.function(*programs.arrays), jnp.float32)
    rng = np.random.default_rng(9)
    direction = [rng.normal(size=a.shape).astype(np.float32) for a in programs.arrays]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    step = np.float32(1e-2)
    ends = [
        scalar(
            programs.function(
                *[a + sign * step * d for a, d in zip(programs.arrays, direction, strict=True)]
            ),
            np,
        )
        for sign in (1, -1)
    ]
    numeric = (ends[0] - ends[1]) / (2 * step)
    norm = sum((d**2).sum() for d in direction) ** 0.5
    size = max(1.0, float(sum((g**2).sum() for g in gradients) ** 0.5))
    # The third derivative, and the rounding of two float32 sums divided by the step.
    assert abs(float(slope - numeric)) < 2e-3 * size * float(norm)


def _jvp(programs):
    """Against the gradient."""
    _, _, (_, gradients, slope) = programs.derivatives
    tangents = map(tangent, programs.arrays)
    terms = np.concatenate([(g * t).reshape(-1) for g, t in zip(gradients, tangents, strict=True)])
    tolerance = 64 * float(jnp.finfo(jnp.float32).eps) * float(np.abs(terms).sum())
    assert abs(float(slope - terms.sum())) < tolerance


def _remat(programs):
    """As the gradient, whose program it is."""
    if "remat" not in programs.derivatives[0]:
        programs.differentiated(("remat",))(*programs.arrays)
    _grad(programs)


def _scanned(function):
    """``jax.vmap`` by a loop."""
    return lambda *stacks: jax.lax.scan(lambda _, a: (None, function(*a)), None, stacks)[1]


def _on_devices(function):
    """``jax.vmap`` over two devices: data parallelism by hand."""
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,))

    def on_device(*parts):
        return jax.tree.map(lambda a: a[None], function(*[part[0] for part in parts]))

    spec = P("batch")
    return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


_MAPS = {"vmap": jax.vmap, "scan": _scanned, "shard_map": _on_devices}


def _stacked(names, programs):
    """In each of the maps, one inside the next, over an axis of two problems each.

    The function, its arrays, and what it gives for each problem by itself.
    """
    function, shape = programs.function, (2,) * len(names)
    for name in names:
        function = _MAPS[name](function)
    factors = np.linspace(-1, 1, 2 ** len(names), dtype=np.float32)
    alone = [programs.function(*[factor * a for a in programs.arrays]) for factor in factors]
    arrays = [np.multiply.outer(factors.reshape(shape), a) for a in programs.arrays]
    stack = lambda *leaves: np.stack(leaves).reshape(shape + leaves[0].shape)  # noqa: E731
    return function, arrays, jax.tree.map(stack, *alone)


def _mapped(names, programs):
    function, arrays, wanted = _stacked(names, programs)
    compare(jax.jit(function)(*arrays), wanted, jnp.float32)


def _together(names, narrow, widest, programs):
    """In all of the maps at once, in the widest dtype, and by itself in each narrow one."""
    mapped, arrays, alone = _stacked(names, programs)
    inputs, wanted = {widest: arrays}, {widest: alone}
    for name in narrow:
        inputs[name], wanted[name] = _in_dtype(name, programs)

    @jax.jit
    def program(inputs):
        return {
            name: (mapped if name == widest else programs.function)(*arrays)
            for name, arrays in inputs.items()
        }

    with jax.enable_x64(widest == "float64"):
        inputs[widest] = [a.astype(widest) for a in inputs[widest]]
        got = jax.tree.map(np.asarray, program(inputs))
    for name in inputs:
        compare(got[name], wanted[name], jnp.float32, factor=_coarser(name))


def _in_dtype(name, programs):
    """Arrays of a dtype, and what the function gives for the same numbers in float32."""
    arrays = [a.astype(jnp.dtype(name)) for a in programs.arrays]
    return arrays, programs.function(*[a.astype(np.float32) for a in arrays])


def _dtype(name, programs):
    arrays, wanted = _in_dtype(name, programs)
    with jax.enable_x64(name == "float64"):
        # Of arrays that only choose a key, what draws is a program that is there.
        function = programs.function if programs.subject.by_key else programs.jitted
        got = jax.tree.map(np.asarray, function(*arrays))
    compare(got, wanted, jnp.float32, factor=_coarser(name))


_EXPERIMENTS = {
    "jit": _jit, "grad": _grad, "jvp": _jvp, "remat": _remat,
    **{name: partial(_mapped, (name,)) for name in _MAPS},
}  # fmt: skip


def transformation(programs: Programs, name: str) -> str:
    """Whether the transformation works, compared with the function as it is."""
    if name in ("grad", "jvp", "remat") and not programs.subject.differentiable:
        return NONE
    if name == "jvp" and programs.forward == NO:
        return NO
    return YES if name in programs.together else _attempt(_EXPERIMENTS[name], programs)


def dtype(programs: Programs, name: str) -> str:
    """Whether the function takes a dtype, compared with itself in float32 on the same numbers."""
    if name == "float32":
        return _attempt(lambda programs: programs.function(*programs.arrays), programs)
    return YES if name in programs.together else _attempt(partial(_dtype, name), programs)


def platform(programs: Programs, name: str) -> str:
    """On CPU it runs, as in other cells; for others it lowers, with its gradient if it has one."""
    if name not in programs.subject.platforms:
        return NONE
    if name == "cpu":
        return YES
    if programs.subject.pallas:
        with compiling_for(name):
            return _attempt(partial(_lowers, (name,)), Programs(programs.subject))
    return YES if name in programs.lowered else _attempt(partial(_lowers, (name,)), programs)


def _lowers(platforms, programs):
    subject = programs.subject
    wanted = tuple("cuda" if platform == "gpu" else platform for platform in platforms)
    if subject.pallas:
        program = programs.differentiated(())
    else:  # what has run, so that nothing is traced again
        program = programs.derivatives[1] if subject.differentiable else programs.jitted
    if subject.pallas and platforms == ("gpu",):
        assert for_gpu(program, *programs.arrays)
    else:
        exported = jax.export.export(program, platforms=wanted)(*programs.arrays)
        assert exported.platforms == wanted
        assert exported.mlir_module_serialized


def compiled_for(subject: Subject):
    """Where its experiments run."""
    if subject.pallas:
        return compiling_for(subject.platforms[0], interpret=True)
    return contextlib.nullcontext()


def _attempt(experiment, programs) -> str:
    """``YES``, or ``NO`` where JAX or a check of ours refuses; a wrong number is an error."""
    try:
        experiment(programs)
    except AssertionError:
        raise
    except REFUSALS:
        return NO
    return YES
