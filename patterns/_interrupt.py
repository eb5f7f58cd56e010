"""
Stopping a handling from outside, and taking the stop back so that nothing of it is left on the task.

Shared by the patterns that do so; no part of the public face.
"""

import asyncio
import contextlib
import inspect
from collections.abc import Callable, Coroutine, Generator
from types import coroutine
from typing import Any, cast

from brokerkit.delivery import Delivery
from brokerkit.pipeline import Handler
from brokerkit.settlement import Settlement

__all__ = ["Handling", "Step", "as_coroutine", "rest"]

Step = Callable[[Delivery], Coroutine[Any, Any, Settlement]]


class Handling:
    """
    One handling that waits for something, made in the task that runs it.

    why: the reason for which it was stopped through this object, or None.
    due: free for whoever keeps it.
    """

    __slots__ = ("_before", "_task", "delivery", "due", "why")

    def __init__(self, delivery: Delivery, loop: asyncio.AbstractEventLoop, due: float) -> None:
        task = asyncio.current_task(loop)
        if task is None:
            message = "a handling runs inside a task of asyncio"
            raise RuntimeError(message)
        self._task = task
        self._before = task.cancelling()
        self.delivery = delivery
        self.due = due
        self.why: str | None = None

    def stop(self, why: str) -> None:
        """Cancel the task that runs it, unless somebody else is already cancelling it."""
        if self.why is None and self._task.cancelling() <= self._before:
            self.why = why
            self.delivery.stopped = why
            self._task.cancel()

    async def take_back(self) -> None:
        """
        Undo a stop of ours; called in the task itself, when the handling is over.

        Raises `CancelledError` if somebody else wants the task to stop as well: theirs is not ours to swallow.
        """
        self._task.uncancel()
        with contextlib.suppress(asyncio.CancelledError):
            # Up to Python 3.12 uncancel() leaves a cancellation that was asked for but not yet thrown; it is thrown here
            await asyncio.sleep(0)
        if self._task.cancelling() > self._before:
            raise asyncio.CancelledError
        self.delivery.stopped = None


def as_coroutine(handler: Handler) -> Step:
    """Return the handler as a function that makes coroutines, whose first step can be made by hand."""
    if inspect.iscoroutinefunction(handler):
        return handler

    async def run(delivery: Delivery) -> Settlement:
        return await handler(delivery)

    return run


@coroutine
def rest(started: Coroutine[Any, Any, Settlement], waiting: object) -> Generator[object, Any, Settlement]:
    """
    Await a coroutine that has made its first step already and waits for `waiting`.

    That a handler which never waits can be told from one that does makes the watching of the first free.
    """
    while True:
        try:
            yield waiting
        except BaseException as error:  # noqa: BLE001 - what is thrown in belongs to the inner coroutine
            try:
                waiting = started.throw(error)
            except StopIteration as done:
                return cast("Settlement", done.value)
        else:
            settlement = yield from cast("Generator[object, Any, Settlement]", started)
            return settlement
