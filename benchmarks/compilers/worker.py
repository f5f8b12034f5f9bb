"""A process that compiles, one program after another; another takes over if a compiler ends it.

It is a process of its own since libtpu reads its flags once, where it is loaded, and since JAX
would otherwise take programs from its cache, which dump nothing, or compile them as the settings of
this process say. Each architecture of GPUs has another: Mosaic GPU compiles for the first it meets.
So have the TPU programs whose schedule nobody asks for: its dumps take as long as compiling.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.compilers import gpu, tpu
from benchmarks.compilers.compile import Asked
from benchmarks.compilers.devices import DEVICES
from benchmarks.compilers.records import GpuRecord, Record, TpuRecord

_SETTINGS = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "0",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # nothing is run, so cuDNN need not be there
    "MOSAIC_GPU_DUMP_PTXAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


class Worker:
    """Compiles what it is asked to; to be used with ``with``."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="jaxnets-")
        self._pools: dict[tuple[str, bool], ProcessPoolExecutor] = {}

    def estimate(
        self,
        device: str,
        function: Callable,
        arguments: Any,
        *,
        donated: int = 0,
        counted: bool = True,
        scheduled: bool = True,
    ) -> Record:
        """What the compiler of ``device``, by its name, says of a function.

        Args:
          device: a key of ``devices.DEVICES``.
          function: a module's function, or a ``functools.partial`` of one.
          arguments: a tuple of trees of ``jax.ShapeDtypeStruct``, or such a function that makes it.
          donated: how many of the first arguments the results may overwrite.
          counted: False: only whether it compiles, and on a TPU in what memory; sooner.
          scheduled: False: of a TPU's units, and of Pallas kernels' cycles, nothing; sooner, too.
        """
        folder, where = Path(self._folder.name), DEVICES[device]
        # Of TPUs there are two, since all that one compiles it dumps or none of it.
        dumps = counted and scheduled and where.platform == "tpu"
        which = where.architecture, dumps
        before = os.environ.copy()
        # Its process starts with the first.
        os.environ.update(_SETTINGS | tpu.environment(folder, dumps=dumps))
        try:
            asked = Asked(function, arguments, donated, counted)
            if which not in self._pools:
                self._pools[which] = _pool()
            return self._pools[which].submit(estimate, device, asked, folder).result()
        except BrokenProcessPool:
            del self._pools[which]
            kind = TpuRecord if where.platform == "tpu" else GpuRecord
            return kind(device, error="the compiler ended its process")
        finally:
            os.environ.clear()
            os.environ.update(before)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.shutdown()
        self._folder.cleanup()


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def estimate(device: str, asked: Asked, folder: Path) -> Record:
    """In the worker's process."""
    where = DEVICES[device]
    if where.platform == "tpu":
        return tpu.estimate(where, asked, folder)
    return gpu.estimate(where, asked)
