"""A folder for one run at a time."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

# A process may take its own POSIX lock twice, so what it holds is kept here.
_held: set[Path] = set()


class FolderLock:
    """Makes ``folder`` and takes it for this run; ``release`` gives it back.

    A POSIX lock of a file in it: the system drops it when the process ends, however it ends, and a
    forked worker that lives on does not have it. The file is removed at the end.

    Raises:
      RuntimeError: another run has it.
      OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path):
        self._path = folder / ".lock"
        if self._path in _held:
            raise RuntimeError(f"another run, of this process, is using the folder {folder}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
        except BlockingIOError:
            owner = self._path.read_text().strip()
            raise RuntimeError(f"another run, {owner}, is using the folder {folder}") from None
        except OSError as error:
            what = f"folder must be one that can be made and written to: {error.strerror}"
            raise OSError(error.errno, what, str(folder)) from None
        _held.add(self._path)

    def _open(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), os.stat(self._path)):
                    os.ftruncate(file, 0)
                    os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                    return file
            except FileNotFoundError:
                pass  # the run before removed it as it ended, between our two calls: again
            except OSError:
                os.close(file)
                raise
            os.close(file)

    def release(self) -> None:
        """Gives the folder back."""
        self._path.unlink(missing_ok=True)  # while it is ours: nobody else can have locked it
        os.close(self._file)
        _held.discard(self._path)
