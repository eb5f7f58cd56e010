"""
What a subscription does beside: tasks whose end is seen to, and calls at a later time.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

__all__ = ["Chores"]

_log = logging.getLogger("brokerkit.nats")


class Chores:
    """The tasks and timers of one subscription."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    def spawn(self, work: Awaitable[None]) -> None:
        """Run something beside; what goes wrong with it is told."""
        task: asyncio.Task[None] = self._loop.create_task(_run(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call in so many seconds, unless everything is cancelled by then."""

        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = self._loop.call_later(seconds, due)
        self._timers.add(timer)

    def cancel(self) -> None:
        """End all of it."""
        for timer in self._timers:
            timer.cancel()
        for task in list(self._tasks):
            task.cancel()


async def _run(work: Awaitable[None]) -> None:
    try:
        await work
    except Exception:  # noqa: BLE001 - told, and the subscription goes on
        _log.exception("a task of a NATS subscription failed")
