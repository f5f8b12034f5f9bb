"""A case in a process of its own, which runs once for each line that it is given."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness import Case


class WorkerCase(Case):
    """``python -m module arguments``, whose ``answer`` runs the case; ``close`` it in the end."""

    def __init__(
        self, name: str, module: str, *arguments: Any, flops: float | None = None,
        environment: Mapping[str, str] | None = None,
    ):  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        super().__init__(name, self._ask, flops)

    def _ask(self) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: there is no answer
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            raise RuntimeError(f"{self.name} ended with {self.process.returncode}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate("")


def answer(run: Callable[[], Any]) -> None:
    """In the process of its own: runs each time a line comes in, and says when it is done."""
    for _ in sys.stdin:
        run()
        print("done", flush=True)
