"""
One at a time, over threads and processes.
"""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["locked"]


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold a lock while the block runs; the system takes it from a process that dies. Not to be taken twice by one thread."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
