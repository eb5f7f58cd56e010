"""
Running one handling inside a `contextvars` copy of its own, without a task of its own.

A task for each message costs several microseconds; a long-lived worker that drives the coroutine inside a copied context
costs less than one. `current()` says which delivery is being handled.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, Generic, TypeVar

from brokerkit.delivery import Delivery

__all__ = ["CURRENT", "Driven", "absorb_cancellation", "asked_to_stop", "current"]

T = TypeVar("T")

CURRENT: ContextVar[Delivery | None] = ContextVar("brokerkit_delivery", default=None)


def current() -> Delivery | None:
    """Return the delivery whose handling this code is part of, or None."""
    return CURRENT.get()


class Driven(Generic[T]):
    """Await a coroutine that has already yielded once, each of its steps inside `context`."""

    __slots__ = ("_context", "_coroutine", "_yielded", "closed")

    def __init__(self, context: Context, coroutine: Coroutine[Any, Any, T], yielded: object) -> None:
        self._context = context
        self._coroutine = coroutine
        self._yielded = yielded
        self.closed = False
        """Whether it was closed from outside, as the collector does with what nobody awaits any more."""

    def __await__(self) -> Generator[Any, Any, T]:
        run = self._context.run
        send = self._coroutine.send
        throw = self._coroutine.throw
        yielded = self._yielded
        try:
            while True:
                try:
                    value = yield yielded
                except GeneratorExit:
                    self.closed = True
                    run(self._coroutine.close)
                    raise
                except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                    yielded = run(throw, error)
                else:
                    yielded = run(send, value)
        except StopIteration as stop:
            result: T = stop.value
            return result


def asked_to_stop() -> bool:
    """Say whether the running task is being cancelled; else a `CancelledError` is a client library's own way to fail."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def absorb_cancellation(task: asyncio.Task[Any]) -> None:
    """
    Clear every cancellation that stands against the running task and has not been acted on.

    Before Python 3.13 `uncancel` leaves a request that was not delivered yet pending; one turn of the loop delivers it.
    """
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling():
        task.uncancel()
