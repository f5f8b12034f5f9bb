"""Which implementation of an operation runs where, and why.

An operation has one implementation on XLA that runs anywhere, and others that run on some
platforms, shapes and dtypes. Which is taken is said, in this order, by

1. the caller, by name; one that cannot run is refused, with the reason;
2. :func:`xla_only`, or ``JAXNETS_IMPLEMENTATION=xla`` in the environment: the one on XLA;
3. what the tuner (:mod:`jaxnets.kernels.tuning`) measured on this device;
4. the table that comes with the package for this kind of device (:mod:`jaxnets.kernels.tuned`);
5. the platform's rule: ``Operation.preferred``;
6. and else it is the one on XLA.

XLA splits a program over devices by itself where a mesh has ``Auto`` axes, which is seen only once
it is compiled, and it cannot split a Pallas kernel: JAX refuses the program. So 3 to 5 give one
only where there is one device, or in a ``shard_map``: the caller's, or ours over ``Explicit`` axes.
The choice is made where an operation is traced, for the platform of JAX's default device.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from jaxnets.kernels import tuned, tuning_cache
from jaxnets.kernels.pallas import triton

PLATFORMS = ("cpu", "gpu", "tpu")
PALLAS = ("pallas", "mosaic_gpu")  # the implementations that XLA cannot split
# "NVIDIA H100 80GB HBM3", "NVIDIA GH200 480GB", "NVIDIA B200". The smaller chips of Blackwell lack
# the tensor memory of these, and other names.
_GENERATIONS = {"Hopper": re.compile(r"\bG?H\d+\b"), "Blackwell": re.compile(r"\bG?B[12]00\b")}


class Target(NamedTuple):
    """What a program is compiled for; static under ``jit``."""

    platform: str
    interpret: bool = False  # run Pallas kernels as JAX programs, on whatever device there is


class Choice(NamedTuple):
    """An implementation, the tiles it is to use (None: its own), why, and what it compiles for."""

    implementation: str
    tiles: tuple[int, ...] | None
    reason: str
    target: Target


# Why an implementation cannot run for these sizes and this dtype; None: it can.
Obstacle = Callable[[Target, jnp.dtype, Mapping[str, Any]], str | None]


class Operation(NamedTuple):
    """A public function with several implementations; the first is on XLA, and has no limit.

    ``implementations`` maps a name to what may stand in its way; ``defaults`` holds the sizes that
    need not be given; ``preferred`` names the implementation of a platform, where it can run.
    """

    name: str
    sizes: tuple[str, ...]
    implementations: dict[str, Obstacle]
    defaults: Mapping[str, Any] = {}
    preferred: Mapping[str, str] = {}

    @property
    def default(self) -> str:
        return next(iter(self.implementations))


_OPERATIONS: dict[str, Operation] = {}
_target: ContextVar[Target | None] = ContextVar("target", default=None)
_device_kind: ContextVar[str | None] = ContextVar("device_kind", default=None)
_tiles: ContextVar[tuple[int, ...] | None] = ContextVar("tiles", default=None)
_xla_only: ContextVar[bool] = ContextVar("xla_only", default=False)


def register(operation: Operation) -> Operation:
    """Makes ``operation`` known to :func:`explain` and the tuner."""
    _OPERATIONS[operation.name] = operation
    return operation


def operation_named(name: str) -> Operation:
    """The registered operation ``name``."""
    if name not in _OPERATIONS:
        raise ValueError(f"operation must be one of {sorted(_OPERATIONS)}, got {name!r}")
    return _OPERATIONS[name]


def target() -> Target:
    """What the next program will be compiled for."""
    chosen = _target.get()
    if chosen is not None:
        return chosen
    device = _default_device()
    return Target(device if isinstance(device, str) else device.platform)


def _default_device() -> jax.Device | str:
    return jax.config.values["jax_default_device"] or jax.devices()[0]


def _kind_of_device() -> str | None:
    """As JAX names the kind of the device that is compiled for; None: it is not known."""
    if _target.get() is not None:
        return _device_kind.get()
    device = _default_device()
    return None if isinstance(device, str) else device.device_kind


@contextlib.contextmanager
def compiling_for(
    platform: str, *, interpret: bool = False, device_kind: str | None = None
) -> Iterator[None]:
    """Choose as if JAX's default device were of ``platform``.

    For ``jax.export`` to another platform, and, with ``interpret``, to run its Pallas kernels here,
    slowly, as JAX programs. What is already traced is not traced again: enter it before ``jit``.

    Args:
      platform: "cpu", "gpu" or "tpu".
      interpret: run Pallas kernels in interpret mode.
      device_kind: as JAX names it ("TPU v5 lite"), to choose as on such a device; None: by what
        holds for the platform.

    Raises:
      ValueError: another platform.

    Example:
      >>> with compiling_for("tpu"):
      ...     target()
      Target(platform='tpu', interpret=False)
    """
    if platform not in PLATFORMS:
        raise ValueError(f"platform must be one of {PLATFORMS}, got {platform!r}")
    token, kind = _target.set(Target(platform, interpret)), _device_kind.set(device_kind)
    try:
        yield
    finally:
        _device_kind.reset(kind)
        _target.reset(token)


@contextlib.contextmanager
def xla_only() -> Iterator[None]:
    """Take the implementation on XLA wherever a call names none, whatever tables and tuner say.

    For whoever meets a fault in a kernel or its compiler. ``JAXNETS_IMPLEMENTATION=xla`` in the
    environment does it for a whole process. What is already traced stays as it is.

    Example:
      >>> with compiling_for("tpu"), xla_only():
      ...     print(explain("lstm", batch=8, time=16, features=8, hidden=128).splitlines()[1])
        scan: chosen (only XLA was asked for)
    """
    token = _xla_only.set(True)
    try:
        yield
    finally:
        _xla_only.reset(token)


def may_be_split() -> bool:
    """Whether XLA may split what is traced here over devices by itself.

    :func:`compiling_for` does not say over how many, and counts as one.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and set(mesh.axis_types) == {AxisType.Manual}:
        return False
    return _target.get() is None and jax.device_count() > 1


def may_call_host() -> bool:
    """Whether what is traced here runs on this process' CPU, undivided, and may call NumPy."""
    here = _target.get() is None and target().platform == "cpu"
    return here and not _is_xla_only() and not may_be_split()


def _is_xla_only() -> bool:
    asked = os.environ.get("JAXNETS_IMPLEMENTATION", "")
    if asked not in ("", "xla"):
        raise ValueError(f"JAXNETS_IMPLEMENTATION must be 'xla' or not set, got {asked!r}")
    return bool(asked) or _xla_only.get()


@contextlib.contextmanager
def with_tiles(tiles: tuple[int, ...] | None) -> Iterator[None]:
    """Has implementations that are asked for by name use ``tiles``; for the tuner."""
    token = _tiles.set(tiles)
    try:
        yield
    finally:
        _tiles.reset(token)


def choose(
    operation: Operation, dtype: Any, sizes: Mapping[str, Any], requested: str | None = None, *,
    own_rows: bool = False,
) -> Choice:  # fmt: skip
    """The implementation to run, and why: see the top of this file.

    ``own_rows``: each device will run it on its own rows, whatever the mesh.

    Raises:
      ValueError: ``requested`` is not an implementation, or cannot run here; or
        ``JAXNETS_IMPLEMENTATION`` is none.
    """
    where, dtype = target(), jnp.dtype(dtype)
    implementations = operation.implementations
    if requested is not None:
        if requested not in implementations:
            raise ValueError(
                f"implementation must be None or one of {tuple(implementations)}, got {requested!r}"
            )
        obstacle = implementations[requested](where, dtype, sizes)
        if obstacle is not None:
            raise ValueError(f"implementation={requested!r} cannot run here: {obstacle}")
        return Choice(requested, _tiles.get(), "asked for by name", where)
    if _is_xla_only():
        return Choice(operation.default, None, "only XLA was asked for", where)

    split = may_be_split() and not own_rows

    def can_run(name):
        known = implementations.get(name)
        fits = known is not None and known(where, dtype, sizes) is None
        return fits and not (name in PALLAS and split)

    measured = None if where.interpret else tuning_cache.look_up(operation.name, dtype, sizes)
    if measured is not None and can_run(measured.implementation):
        return Choice(*measured, "fastest when measured on this device", where)
    row = tuned.look_up(_kind_of_device(), operation.name, dtype, sizes)
    if row is not None and can_run(row.implementation):
        why = f"{row.source}, for {row.device_kind} at {row.sizes_in_words}"
        return Choice(row.implementation, row.tiles, why, where)
    preferred = operation.preferred.get(where.platform)
    if preferred is not None and can_run(preferred):
        why = f"the default on {where.platform}; nothing was measured on this device"
        return Choice(preferred, None, why, where)
    why = "the default; nothing was measured on this device"
    if preferred == "pallas" and split:
        why = "XLA may split the program over these devices, and cannot split a Pallas kernel"
    return Choice(operation.default, None, why, where)


def explain(operation: str, *, dtype: Any = "float32", **sizes: Any) -> str:
    """Which implementation of an operation would run for these sizes, and why.

    Args:
      operation: "linear_softmax_cross_entropy", "sampled_softmax_cross_entropy", "lstm", "gru" or
        "pointwise_conv".
      dtype: of its arrays.
      **sizes: what its choice depends on; a missing or unknown one is named in the error. What a
        call uses beyond the plain operation (``extras``, ``per_token``, ``groups``,
        ``channels_first``) may be left out.

    Returns:
      A line for the operation and one for each implementation.

    Raises:
      ValueError: an unknown operation, or wrong sizes.

    Example:
      >>> import jaxnets.kernels
      >>> with compiling_for("cpu"):
      ...     print(explain("linear_softmax_cross_entropy", tokens=64, features=8, vocab_size=100))
      linear_softmax_cross_entropy on cpu, float32, tokens=64, features=8, vocab_size=100
        tiled: chosen (the default; nothing was measured on this device)
        pallas: cannot run: Pallas kernels need a GPU or TPU, this is cpu
        mosaic_gpu: cannot run: Mosaic GPU kernels need a GPU, this is cpu
    """
    found = operation_named(operation)
    sizes = all_sizes(found, sizes)
    choice = choose(found, dtype, sizes)
    listed = ", ".join(f"{name}={sizes[name]}" for name in found.sizes)
    lines = [f"{operation} on {choice.target.platform}, {jnp.dtype(dtype).name}, {listed}"]
    for name, obstacle_of in found.implementations.items():
        obstacle = obstacle_of(choice.target, jnp.dtype(dtype), sizes)
        if name == choice.implementation:
            tiles = f", tiles {choice.tiles}" if choice.tiles else ""
            lines.append(f"  {name}: chosen ({choice.reason}{tiles})")
        else:
            lines.append(
                f"  {name}: {'can run' if obstacle is None else f'cannot run: {obstacle}'}"
            )
    return "\n".join(lines)


def all_sizes(operation: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes that the operation is chosen by, with defaults for what is not ``given``.

    Raises:
      ValueError: one is missing, or unknown.
    """
    sizes = {**operation.defaults, **given}
    if set(sizes) != set(operation.sizes):
        raise ValueError(
            f"sizes of {operation.name} must be {operation.sizes}, got {tuple(sorted(given))}"
        )
    return {name: sizes[name] for name in operation.sizes}


def anywhere(_target: Target, _dtype: Any, _sizes: Mapping[str, Any]) -> None:
    """No obstacle."""


def pallas_obstacle(where: Target, dtype: Any, _: Mapping[str, Any] | None = None) -> str | None:
    """What stands in the way of any Pallas kernel of this package."""
    if where.platform == "cpu":
        return "Pallas kernels need a GPU or TPU, this is cpu"
    if where.platform == "gpu" and (removed := triton.obstacle()):
        return removed
    if where.platform == "tpu" and dtype == jnp.float16 and not where.interpret:
        return "Mosaic has no float16: give float32 or bfloat16"
    if dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"Pallas kernels take float32, bfloat16 and float16, got {jnp.dtype(dtype).name}"
    return None


def mosaic_gpu_obstacle(
    where: Target, dtype: Any, _: Mapping[str, Any] | None = None
) -> str | None:
    """What stands in the way of a kernel on Mosaic GPU with a tensor core's newer instructions."""
    if where.platform != "gpu":
        return f"Mosaic GPU kernels need a GPU, this is {where.platform}"
    if jax.__version_info__ < (0, 12):
        return f"Mosaic GPU kernels need jax >= 0.12, this is {jax.__version__}"
    kind = _kind_of_device()
    if kind is not None and not where.interpret and gpu_generation() is None:
        return f"it is written for Hopper (H100, H200) and Blackwell (B200), this is {kind}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"Mosaic GPU kernels take bfloat16 and float16, got {jnp.dtype(dtype).name}"
    return None


def gpu_generation() -> str | None:
    """Hopper or Blackwell, if the kind of the device that is compiled for says one of them."""
    kind = _kind_of_device() or ""
    return next((name for name, names in _GENERATIONS.items() if names.search(kind)), None)
