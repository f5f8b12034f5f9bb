"""What a vendor's compiler says of a program. Its estimates: no device was seen, no time taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Record:
    """A program as it was compiled for a device.

    Attributes:
      device: its name here, as "v5e" or "H100".
      error: why there is no program; empty where there is one.
      refused: the error is our own refusal, with its reason, and no compiler's.
      compile_s: seconds that compiling took, here.
      compile_cpu_s: and of the CPU, in all threads: what else runs here prolongs these less.
      argument_bytes: of the arguments in the device's memory.
      output_bytes: of the results.
      temp_bytes: of what is live beside them at the worst moment.
      collectives: of each kind of communication, how often it runs and the bytes it gives out.
    """

    device: str
    error: str = ""
    refused: bool = False
    compile_s: float = 0.0
    compile_cpu_s: float = 0.0
    argument_bytes: int = 0
    output_bytes: int = 0
    temp_bytes: int = 0
    collectives: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """An instruction of a TPU's program.

    Attributes:
      name: XLA's.
      source: the JAX operation it comes from.
      times: how often it runs.
      cycles: of one run, the compiler's estimate; of a Pallas kernel its scheduled bundles.
      pallas: it is a Pallas kernel.
    """

    name: str
    source: str
    times: int
    cycles: int
    pallas: bool


@dataclass(frozen=True)
class TpuRecord(Record):
    """What the TPU compiler estimates.

    Attributes:
      cycles: of all parts, times counted; it has no cycles for copies that run beside them.
      parts: those that take cycles, the longest first.
      units: how full each unit of the core is over these cycles, of the parts that were scheduled
        under their own name.
      vmem_bytes: the most that a part asks for.
      unknown_loops: loops whose trips the compiler does not say; they count once.
    """

    cycles: int = 0
    parts: tuple[Part, ...] = ()
    units: dict[str, float] = field(default_factory=dict)
    vmem_bytes: int = 0
    unknown_loops: int = 0

    @property
    def fullest(self) -> str:
        """The unit that is fullest, and how full; empty where no schedule says."""
        if not self.units:
            return ""
        unit = max(self.units, key=lambda name: self.units[name])
        return f"{unit} {self.units[unit]:.0%}"


@dataclass(frozen=True)
class Kernel:
    """A kernel of a GPU's program, or a copy.

    Attributes:
      name: what it is launched by; of a copy or a library's call the instruction's name.
      source: the JAX operation it comes from.
      launches: how often.
      read, written: bytes, of one launch.
      blocks, threads: of one launch, 0 where the compiler does not say.
      registers, spilled: of one thread, the latter in bytes stored; None for no PTX.
      shared_bytes: of a block.
      occupancy: the share of a multiprocessor's warps that registers, shared memory and threads
        leave room for.
    """

    name: str
    source: str
    launches: int
    read: int
    written: int
    blocks: int = 0
    threads: int = 0
    registers: int | None = None
    spilled: int | None = None
    shared_bytes: int = 0
    occupancy: float | None = None


@dataclass(frozen=True)
class GpuRecord(Record):
    """What the GPU compiler made: it estimates no cycles, so this is counted.

    Attributes:
      kernels: those that are launched, copies among them, the most bytes first.
      launches: of all, loop trips counted.
      read, written: bytes of all.
      spilled: bytes a thread stores to spill registers, the worst kernel's.
      memory_s: seconds that these bytes take at the data sheet's bandwidth, were none in a cache.
      unknown_loops: loops whose trips the compiler does not say; they count once.
    """

    kernels: tuple[Kernel, ...] = ()
    launches: int = 0
    read: int = 0
    written: int = 0
    spilled: int = 0
    memory_s: float = 0.0
    unknown_loops: int = 0


def why(error: BaseException) -> dict[str, Any]:
    """The fields ``error`` and ``refused`` of a record, from what was raised."""
    text = str(error).strip()
    first = text.partition("\n")[0][:400]
    return {
        "error": f"{type(error).__name__}: {first}",
        "refused": isinstance(error, ValueError) and "cannot run here" in text,
    }
