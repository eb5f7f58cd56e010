"""
The folder of a person in which downloads are kept, shared by all sandboxes.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from brokerkit.sandbox.lock import locked

__all__ = ["Cache"]


class Cache:
    """
    Finished things by name; what is half done is never seen under its name.

    folder: where; else `BROKERKIT_CACHE`, else `brokerkit` in `XDG_CACHE_HOME`, else in `~/.cache`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or _default()).absolute()

    def get(self, name: str, build: Callable[[Path], None]) -> Path:
        """
        Return the folder of this name; if it is not there, `build` fills one first.

        Two processes that want the same build it once. A build that raises leaves nothing behind.
        """
        place = self.folder / name
        if place.is_dir():
            return place
        with locked(self.folder / f"{name}.lock"):
            if place.is_dir():
                return place
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=self.folder))
            try:
                build(unfinished)
                unfinished.rename(place)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
        return place

    def log(self, name: str) -> Path:
        """Return the file that keeps what the download of `name` printed."""
        place = self.folder / "logs"
        place.mkdir(parents=True, exist_ok=True)
        return place / f"{name}.log"


def _default() -> Path:
    if given := os.environ.get("BROKERKIT_CACHE"):
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "brokerkit"
