"""
A door that can be shut, for playing a frozen process or a frozen broker.
"""

import asyncio
import threading

__all__ = ["Gate"]


class Gate:
    """Open at first; while it is shut, `passed` waits. Usable from several event loops and threads."""

    def __init__(self) -> None:
        self.shut = False
        self._lock = threading.Lock()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    def close(self) -> None:
        """Shut the door."""
        self.shut = True

    def open(self) -> None:
        """Open the door for those who wait and those who come."""
        with self._lock:
            self.shut = False
            waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(_finish, future)

    async def passed(self) -> None:
        """Return when the door is open."""
        while self.shut:
            loop = asyncio.get_running_loop()
            future: asyncio.Future[None] = loop.create_future()
            with self._lock:
                if not self.shut:
                    return
                self._waiting.append((loop, future))
            await future


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
