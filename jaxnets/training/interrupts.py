"""Ctrl-C between steps, and never within one."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


class Interrupts:
    """While it is entered, Ctrl-C waits for the end of what runs in ``with interrupts.held():``.

    Within a step the old state is given away and the new one is not there: nothing could be handed
    back. A second Ctrl-C does not wait. Only the main thread gets signals; in another this does
    nothing.
    """

    def __init__(self) -> None:
        self._holding = self._pending = False
        before = signal.getsignal(signal.SIGINT)
        in_main = threading.current_thread() is threading.main_thread()
        self._before: Any = before if in_main and callable(before) else None

    def __enter__(self) -> Interrupts:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        if self._holding and not self._pending:
            self._pending = True
        else:
            self._before(number, frame)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Ctrl-C within is raised at the end."""
        self._holding = True
        try:
            yield
        finally:
            self._holding, pending, self._pending = False, self._pending, False
            if pending:
                self._before(signal.SIGINT, None)
