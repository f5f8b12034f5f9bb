"""What ptxas says of a kernel's PTX, and how many blocks of it a multiprocessor has room for."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.compilers.devices import Device

_REGISTERS, _WARPS, _BLOCKS = 65_536, 64, 32  # of a multiprocessor, A100 to B200
_RESERVED = 1024  # bytes of shared memory that a block costs beside its own


class Assembled(NamedTuple):
    """A kernel by ptxas: registers a thread, bytes spilled by a thread, static shared memory."""

    registers: int
    spilled: int
    shared_bytes: int


@functools.cache
def ptxas() -> Path:
    """The assembler of the wheel ``nvidia-cuda-nvcc``."""
    files = importlib.metadata.files("nvidia-cuda-nvcc") or []
    return Path(str(next(file for file in files if file.name == "ptxas").locate()))


def assemble(device: Device, files: Sequence[Path]) -> dict[str, Assembled]:
    """Every kernel of some files of PTX, by name."""
    made: dict[str, Assembled] = {}
    for file in files:  # one at a time: files of one program define the same constants
        flags = "-v", f"-arch={device.architecture}", "-o", "/dev/null"
        command = [str(ptxas()), *flags, str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        made |= parse(done.stdout + done.stderr)  # nothing of a file that ptxas refuses
    return made


@contextlib.contextmanager
def printed(path: Path) -> Iterator[None]:
    """Has this process write its standard output to ``path``, that of its libraries too.

    ``MOSAIC_GPU_DUMP_PTXAS`` has Mosaic GPU, which assembles its kernels itself, print what ptxas
    said of them.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    with path.open("w") as file:
        os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


_ENTRY = re.compile(r"Compiling entry function '(\S+)' for")


def parse(text: str) -> dict[str, Assembled]:
    """What ``ptxas -v`` printed.

    >>> parse('''ptxas info    : Compiling entry function 'add' for 'sm_90a'
    ... ptxas info    : Function properties for add
    ...     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
    ... ptxas info    : Used 30 registers, used 1 barriers, 512 bytes smem''')
    {'add': Assembled(registers=30, spilled=4, shared_bytes=512)}
    """
    names = _ENTRY.findall(text)
    sections = _ENTRY.split(text)[2::2]

    def number(pattern: str, section: str) -> int:
        found = re.search(pattern, section)
        return int(found[1]) if found else 0

    return {
        name: Assembled(
            number(r"Used (\d+) registers", section),
            number(r"(\d+) bytes spill stores", section),
            number(r"(\d+) bytes smem", section),
        )
        for name, section in zip(names, sections, strict=True)
        if "Used" in section
    }


def occupancy(device: Device, threads: int, registers: int, shared_bytes: int) -> float:
    """The share of a multiprocessor's warps that can be resident; registers come by 256 a warp.

    >>> from benchmarks.compilers.devices import DEVICES
    >>> occupancy(DEVICES["H100"], threads=128, registers=255, shared_bytes=0)
    0.125
    """
    warps = -(-threads // 32)
    registers_of_warp = -(-max(registers, 1) * 32 // 256) * 256
    room = (
        _BLOCKS,
        _WARPS // warps,
        _REGISTERS // (registers_of_warp * warps),
        device.shared_bytes // (shared_bytes + _RESERVED),
    )
    return min(room) * warps / _WARPS
