"""Compiles a function for a device that is not here, by its vendor's compiler."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.compilers.devices import DEVICES, Device
from benchmarks.compilers.hlo import Executed
from benchmarks.compilers.traffic import bytes_of
from jaxnets.kernels import compiling_for

_TARGETS = {"tpu": "tpu", "gpu": "cuda"}
_COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
    "ragged-all-to-all", "collective-broadcast",
)  # fmt: skip


class Asked(NamedTuple):
    """What is to be compiled.

    Attributes:
      function: of arrays.
      arguments: a tuple of trees of ``jax.ShapeDtypeStruct``, or a function that makes it where it
        is compiled, since a sharding does not travel; one without a sharding is whole on a device.
      donated: how many of the first arguments the results may overwrite.
      counted: whether more is wanted than that it compiles, and on a TPU in what memory.
    """

    function: Callable
    arguments: Any
    donated: int = 0
    counted: bool = True


@functools.cache
def topology(name: str, larger: str = "") -> topologies.TopologyDescription:
    """Compile-only devices of a kind: of the least topology, or of a ``larger`` as "v5e:4x4"."""
    device = DEVICES[name]
    if device.platform == "tpu":
        return topologies.get_topology_desc(platform="tpu", topology_name=larger or device.topology)
    return topologies.get_topology_desc(
        platform="cuda", topology_name=device.topology, target_config=device.target,
        topology="1x1x1",
    )  # fmt: skip


def compile_for(
    device: Device, asked: Asked, options: dict[str, Any] | None = None
) -> tuple[jax.stages.Compiled, dict[str, Any]]:
    """The program for ``device`` by the compiler's ``options``, and what a record keeps of it."""
    whole = SingleDeviceSharding(topology(device.name).devices[0])

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = leaf.sharding or whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def traced_afresh(*arrays):  # what JAX has traced for another platform it keeps
        return asked.function(*arrays)

    arguments = asked.arguments() if callable(asked.arguments) else asked.arguments
    jitted = jax.jit(traced_afresh, donate_argnums=range(asked.donated))
    with compiling_for(device.platform, device_kind=device.kind), _lowering_for(device):
        traced = jitted.trace(*jax.tree.map(placed, arguments))
        lowered = traced.lower(lowering_platforms=(_TARGETS[device.platform],))
    start, start_cpu = time.perf_counter(), time.process_time()
    compiled = lowered.compile(compiler_options=options or {})
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    memory = compiled.memory_analysis()
    assert memory is not None, "this compiler reports no memory"
    return compiled, {
        "compile_s": seconds,
        "compile_cpu_s": cpu_seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
    }


@contextlib.contextmanager
def _lowering_for(device: Device) -> Iterator[None]:
    """From jax 0.12 on Pallas asks which GPU it lowers a kernel for.

    Mosaic GPU takes one that does not say its compute capability, as JAX's own, for a Hopper.
    """
    if device.platform != "gpu" or jax.__version_info__ < (0, 12):
        yield
        return

    class Gpu(jax.sharding.AbstractDevice):
        compute_capability = device.capability

    abstract = Gpu(device.topology, device.cores, "gpu")
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=abstract)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


def collectives(executed: list[Executed]) -> dict[str, tuple[int, int]]:
    """How often each kind of communication runs, and the bytes that it gives out."""
    totals: dict[str, tuple[int, int]] = {}
    for run in executed:
        kind = run.instruction.opcode.removesuffix("-done")
        if kind in _COLLECTIVES:  # of an asynchronous one the start gives out buffers beside them
            times, moved = totals.get(kind, (0, 0))
            size = bytes_of(run.instruction.shape)
            totals[kind] = times + run.times, moved + run.times * size
    return totals
