"""What the GPU compiler makes of a function: kernels, their bytes, registers and spills.

XLA for GPU says no cycles, so nothing here is a time but the data sheet's bounds.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.compilers import hlo, ptx
from benchmarks.compilers.compile import Asked, collectives, compile_for
from benchmarks.compilers.devices import Device
from benchmarks.compilers.records import GpuRecord, Kernel, why
from benchmarks.compilers.traffic import traffic

# Nothing is launched for these; what "-done" ends was launched by its start.
_NOTHING = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "async-start", "after-all", "add-dependency", "opt-barrier", "partition-id",
    "replica-id",
}  # fmt: skip


_MOSAIC_GPU = "mosaic_gpu.txt"  # what ptxas said of the kernels that XLA does not assemble


class _Launch(NamedTuple):
    """How XLA launches a kernel."""

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int


def estimate(device: Device, asked: Asked) -> GpuRecord:
    """What the compiler makes of a function; autotuning, which needs the device, is off."""
    with tempfile.TemporaryDirectory() as name:
        options: dict[str, Any] = {"xla_gpu_autotune_level": 0}
        if asked.counted:  # of all that XLA can dump of a kernel only the PTX
            options |= {"xla_dump_to": name, "xla_dump_emitter_re": "ptx"}
        else:  # XLA's own matmuls as calls of cuBLAS: else they are up to half of its time
            options |= {"xla_gpu_enable_triton_gemm": False, "xla_backend_optimization_level": 0}
        try:
            with ptx.printed(Path(name, _MOSAIC_GPU)):
                compiled, fields = compile_for(device, asked, options)
        except Exception as error:  # whatever Pallas or a compiler has to say
            return GpuRecord(device.name, **why(error))
        if not asked.counted:
            return GpuRecord(device.name, **fields)
        return read(device, compiled.as_text() or "", Path(name), **fields)


def read(device: Device, text: str, folder: Path, **fields: Any) -> GpuRecord:
    """A record from a program's text and its dump in ``folder``; ``fields`` are kept."""
    program = hlo.parse(text)
    executed = hlo.executed(program, lambda instruction: 1.0)
    assembled = ptx.assemble(device, sorted(folder.glob("*.ptx")))
    if (said := folder / _MOSAIC_GPU).exists():
        assembled |= ptx.parse(said.read_text())
    launches = _launches(folder)
    kernels = []
    for run in executed:
        instruction = run.instruction
        if instruction.opcode in _NOTHING or instruction.opcode.endswith("-done"):
            continue
        moved = traffic(program, run.computation, instruction)
        launch = launches.get(instruction.name, _Launch(_name(instruction), 0, 0, 0))
        made = assembled.get(launch.kernel)
        kernel = Kernel(
            launch.kernel, instruction.source, run.times, moved.read, moved.written,
            blocks=launch.blocks, threads=launch.threads, shared_bytes=launch.shared_bytes,
        )  # fmt: skip
        kernels.append(_with_registers(device, kernel, made) if made else kernel)
    kernels.sort(key=lambda kernel: -kernel.launches * (kernel.read + kernel.written))
    read, written = (
        sum(getattr(kernel, way) * kernel.launches for kernel in kernels)
        for way in ("read", "written")
    )
    return GpuRecord(
        device.name, kernels=tuple(kernels), launches=sum(kernel.launches for kernel in kernels),
        read=read, written=written, memory_s=(read + written) / device.bandwidth,
        spilled=max((kernel.spilled or 0 for kernel in kernels), default=0),
        unknown_loops=hlo.unknown_loops(executed), collectives=collectives(executed), **fields,
    )  # fmt: skip


def _name(instruction: hlo.Instruction) -> str:
    """What an instruction launches, where XLA's own list of kernels does not say."""
    *_, kernel, primitive = "", "", *instruction.source.split("/")
    return f"{kernel}_mosaic_gpu_kernel" if primitive == "mpmd_map" else instruction.name


def _with_registers(device: Device, kernel: Kernel, made: ptx.Assembled) -> Kernel:
    shared = kernel.shared_bytes + made.shared_bytes
    return Kernel(
        **vars(kernel)
        | {
            "registers": made.registers,
            "spilled": made.spilled,
            "shared_bytes": shared,
            "occupancy": ptx.occupancy(device, kernel.threads, made.registers, shared)
            if kernel.threads
            else None,
        }
    )


_STEP = re.compile(
    r"^ *(\d+): kCustomKernel .*\] (\S+) grid: \[(\d+), (\d+), (\d+)\] "
    r"threads: \[(\d+), (\d+), (\d+)\] +shared_memory: (\d+)",
    re.MULTILINE,
)
_THUNK = re.compile(r'profile_annotation: "([^"]*)"\s+thunk_id: (\d+)')


def _launches(folder: Path) -> dict[str, _Launch]:
    """How each instruction is launched: kernels by number, and the instructions of the numbers."""
    steps = {}
    for file in folder.glob("*.thunk_sequence.txt"):
        for number, kernel, *sizes in _STEP.findall(file.read_text()):
            x, y, z, a, b, c, shared = map(int, sizes)
            steps[int(number)] = _Launch(kernel, x * y * z, a * b * c, shared)
    return {
        instruction: steps[int(number)]
        for file in folder.glob("*.thunk_metadata.txt")
        for instruction, number in _THUNK.findall(file.read_text())
        if int(number) in steps
    }
