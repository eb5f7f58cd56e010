"""
One timer for many that wait: a timer each costs more than what is waited for.
"""

import asyncio
from collections import deque
from typing import Any

__all__ = ["Patience"]

_SWEEP = 0.1


class Patience:
    """Ends futures with None that are not done so many seconds after they were added."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, future: "asyncio.Future[Any]") -> None:
        """Wait for one more."""
        loop = future.get_loop()
        self._waiting.append((loop.time() + self._seconds, future))
        if self._timer is None:
            self._timer = loop.call_later(min(_SWEEP, self._seconds), self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what is overdue, and let go of what was answered; those behind one that waits are kept as long as it waits."""
        now, waiting = loop.time(), self._waiting
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now):
            _, future = waiting.popleft()
            if not future.done():
                future.set_result(None)
        self._timer = loop.call_at(min(now + _SWEEP, waiting[0][0]), self._sweep, loop) if waiting else None
