"""Estimates of the TPU compiler, libtpu: cycles by part, how full the units are, memory."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.compilers import bundles, hlo
from benchmarks.compilers.compile import Asked, collectives, compile_for
from benchmarks.compilers.devices import Device
from benchmarks.compilers.records import Part, TpuRecord, why


def environment(folder: Path, *, dumps: bool) -> dict[str, str]:
    """What must be set before a process that compiles for TPU starts; dumps go to ``folder``.

    The first three keep libtpu from asking the cloud which TPU it is on. Of the dumps only the last
    pass is wanted: all passes of all kernels are some forty megabytes a program. Even so they take
    as long as compiling does.
    """
    flags = (
        f"--xla_jf_dump_to={folder}", "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=final_",
    )  # fmt: skip
    return {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is no TPU that two processes could fight for
        "LIBTPU_INIT_ARGS": " ".join(flags) if dumps else "",
    }


def estimate(device: Device, asked: Asked, folder: Path) -> TpuRecord:
    """What the compiler says of a function; ``folder`` is that of the :func:`environment`."""
    for old in folder.iterdir():
        old.unlink()
    try:
        compiled, fields = compile_for(device, asked)
    except Exception as error:  # whatever Pallas or a compiler has to say
        return TpuRecord(device.name, **why(error))
    if not asked.counted:
        return TpuRecord(device.name, **fields)
    text = compiled.as_text() or ""
    try:
        return read(device, text, folder, **fields)
    except ValueError as error:  # it compiles, and its text is not to be read
        said = f"{error}; {len(text):,} characters, the last {text[-80:]!r}"
        return TpuRecord(device.name, **fields, **why(ValueError(said)))


def read(device: Device, text: str, folder: Path, **fields: Any) -> TpuRecord:
    """A record from a program's text and the schedules in ``folder``; ``fields`` are kept."""
    executed = hlo.executed(hlo.parse(text), cycles_of)
    schedules: dict[str, bundles.Schedule | None] = {}
    parts: list[Part] = []
    busy: dict[str, float] = {}
    unknown = hlo.unknown_loops(executed)
    for run in executed:
        instruction = run.instruction
        cycles, pallas = cycles_of(instruction), _PALLAS in instruction.rest
        if not cycles and not pallas:
            continue
        if instruction.name not in schedules:
            schedules[instruction.name] = bundles.read(folder, instruction.name)
        schedule = schedules[instruction.name]
        if pallas:
            cycles = schedule.cycles if schedule else 0
            unknown += schedule.unknown_loops if schedule else 1
        parts.append(Part(instruction.name, instruction.source, run.times, cycles, pallas))
        for unit, share in schedule.units.items() if schedule else ():
            busy[unit] = busy.get(unit, 0.0) + share * cycles * run.times
    total = sum(part.times * part.cycles for part in parts)
    return TpuRecord(
        device.name, cycles=total, parts=tuple(sorted(parts, key=lambda p: -p.times * p.cycles)),
        units={unit: cycles / total for unit, cycles in busy.items()} if total else {},
        vmem_bytes=max((_vmem_bytes(run.instruction) for run in executed), default=0),
        unknown_loops=unknown, collectives=collectives(executed), **fields,
    )  # fmt: skip


_PALLAS = 'custom_call_target="tpu_custom_call"'


def cycles_of(instruction: hlo.Instruction) -> int:
    """The compiler's estimate for one run; 0 where it gives none, as for Pallas kernels."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
    return int(found[1]) if found else 0


def _vmem_bytes(instruction: hlo.Instruction) -> int:
    used = r'"used_scoped_memory_configs":\[\{"memory_space":"1","offset":"\d+","size":"(\d+)"'
    found = re.search(used, instruction.rest)
    return int(found[1]) if found else 0
