"""This machine's matmul peak and copy bandwidth, measured again between the cases."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

_SIDE, _LENGTH = 2048, 64 * 2**20  # of the matmul's square matrices and of the copied array


class Limits:
    """The best rates that were seen so far, in operations and in bytes a second.

    Whatever else the machine does makes a run slower, never faster, so the best run is the nearest
    to its limit. ``probe`` belongs between the cases of every round: a limit that is measured once
    may have met a busy machine, and its cases an idle one.
    """

    def __init__(self) -> None:
        square, large = jnp.ones((_SIDE, _SIDE)), jnp.ones(_LENGTH)
        matmul, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: a + 1)
        self._probes: dict[str, tuple[Callable, float]] = {
            "matmul_flops": (lambda: matmul(square), 2.0 * _SIDE**3),
            "copy_bytes_per_s": (lambda: copy(large), 2.0 * large.nbytes),
        }
        self._measured = dict.fromkeys(self._probes, 0.0)
        self._cases = dict.fromkeys(self._probes, ("", 0.0))  # the fastest, and its rate
        for run, _ in self._probes.values():
            jax.block_until_ready(run())  # compiles
        for _ in range(5):
            self.probe()

    def probe(self) -> None:
        """Runs the matmul and the copy once."""
        for name, (run, work) in self._probes.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            rate = work / (time.perf_counter() - start)
            self._measured[name] = max(self._measured[name], rate)

    def saw(self, case: str, seconds: float, flops: float = 0.0, copied: float = 0.0) -> None:
        """A case did so many operations, and moved so many bytes, in its fastest round."""
        for name, work in (("matmul_flops", flops), ("copy_bytes_per_s", copied)):
            if work / seconds > self._cases[name][1]:
                self._cases[name] = case, work / seconds

    def rates(self) -> dict[str, float]:
        """``matmul_flops`` and ``copy_bytes_per_s``: what was measured, or a case that beat it."""
        return {name: max(rate, self._cases[name][1]) for name, rate in self._measured.items()}

    def notes(self) -> list[str]:
        """A sentence for each limit that a case beat."""
        words = {"matmul_flops": "matmul peak, GFLOP/s", "copy_bytes_per_s": "copy bandwidth, GB/s"}
        return [
            f"{words[name]}: {rate / 1e9:.3g} was measured, but {case!r} reached "
            f"{reached / 1e9:.3g}, which is taken as the limit."
            for name, rate in self._measured.items()
            for case, reached in [self._cases[name]]
            if reached > rate
        ]
