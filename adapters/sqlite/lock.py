"""
Locks on small files beside the database, which the kernel frees when their process dies.

Never the database file itself: closing a second handle of it would drop SQLite's own locks.
"""

import os
import sys
import time
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["FileLock"]

_AGAIN = 0.001
_PRIVATE = 0o600


class FileLock:
    """
    An exclusive lock between open files, thus also between two adapters of one process.

    Waiting is in the order of arrival where the kernel queues (Linux, macOS), by trying again every
    millisecond on Windows. Not for use by two threads at once.
    """

    def __init__(self, path: Path, *, create: bool) -> None:
        """Open the file. Raises `OSError`; `FileNotFoundError` if it is not there and may not be created."""
        flags = os.O_RDWR | getattr(os, "O_CLOEXEC", 0) | (os.O_CREAT if create else 0)
        self.path = path
        self._file = os.open(path, flags, _PRIVATE)

    def acquire(self) -> None:
        """Wait for the lock, for ever."""
        if sys.platform == "win32":
            while not self.try_acquire():
                time.sleep(_AGAIN)
        else:
            fcntl.flock(self._file, fcntl.LOCK_EX)

    def try_acquire(self) -> bool:
        """Take the lock if it is free now."""
        try:
            if sys.platform == "win32":
                os.lseek(self._file, 0, os.SEEK_SET)
                msvcrt.locking(self._file, msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, BlockingIOError | PermissionError):
                return False
            raise
        return True

    def release(self) -> None:
        """Give the lock to the next."""
        if sys.platform == "win32":
            os.lseek(self._file, 0, os.SEEK_SET)
            msvcrt.locking(self._file, msvcrt.LK_UNLCK, 1)
        else:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which frees the lock unless a forked child still has it. Idempotent."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
