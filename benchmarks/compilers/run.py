"""Compiles all programs for all devices: the rows of the report."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import jax

from benchmarks.compilers.devices import DEVICES, Device
from benchmarks.compilers.programs import Program, programs
from benchmarks.compilers.records import Record
from benchmarks.compilers.report import NAME, cost_in_words
from benchmarks.compilers.sharded import sharded_programs
from benchmarks.compilers.worker import Worker
from benchmarks.harness import progress

_KEPT = 12  # of a program's instructions or kernels, those that cost most
PACKAGES = {"tpu": "libtpu", "gpu": "jax-cuda13-plugin"}


def missing() -> list[str]:
    """The packages of the extra ``compilers`` that are not installed."""
    found = {dist.name.lower() for dist in importlib.metadata.distributions()}
    wanted = (*PACKAGES.values(), "nvidia-cuda-nvcc")
    return [name for name in wanted if name not in found]


def row(program: Program, device: Device, record: Record) -> dict[str, Any]:
    """A program on a device, as the JSON has it.

    ``bound_s`` is the data sheet's lower bound, for the operation, by any program.
    """
    kept = asdict(record)
    for many in ("parts", "kernels"):
        if many in kept:
            kept[many] = kept[many][:_KEPT]
    bound = device.bound_s(program.flops, program.moved, program.dtype)
    return {
        "device": device.name, "platform": device.platform, "operation": program.operation,
        "shape": program.shape, "program": program.name, "bound_s": bound,
        "bound_cycles": bound * device.clock, "record": kept,
    }  # fmt: skip


def run(devices: Iterable[str] = DEVICES, *, quick: bool = False) -> dict[str, Any]:
    """The result; ``quick``: of each operation one shape, ours by default and naive."""
    rows = []
    with Worker() as worker:
        for name in devices:
            for program in (*programs(quick=quick), *sharded_programs(name)):
                record = worker.estimate(
                    name, program.function, program.arguments, donated=program.donated
                )
                rows.append(row(program, DEVICES[name], record))
                words = f"{name}: {program.operation}, {program.shape}, {program.name}"
                progress(f"{words}: {record.error or cost_in_words(rows[-1])}")
    return {
        "name": NAME,
        "rows": rows,
        "suite": "quick" if quick else "full",
        "versions": {
            "jax": jax.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES.values()},
        },
        "datetime": datetime.now(UTC).isoformat(timespec="seconds"),
    }
