"""
How the client is called: each call in a task of its own and within a limit of time.

It ends calls with a `CancelledError` that nobody has asked for when a connection breaks; such a cancellation ends the task in
here and never its caller.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from brokerkit.adapters.rabbitmq.failure import meaning
from brokerkit.errors import ConnectionLost

__all__ = ["CALL", "CLOSE", "apart", "forget"]

T = TypeVar("T")

CALL = 10.0
"""Seconds for one call that declares or asks something."""

CLOSE = 2.0
"""Seconds for a polite end."""


async def apart(work: Coroutine[Any, Any, T], what: str, timeout: float | None = CALL) -> T:
    """
    Await a call of the client in a task of its own, at most so many seconds.

    Raises what `meaning` makes of its error; `ConnectionLost` if time is up or the client has cancelled it.
    """
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(forget)
    try:
        await asyncio.wait({task}, timeout=timeout)
    except asyncio.CancelledError:
        task.cancel()
        raise
    if not task.done():
        task.cancel()
        message = f"{what}: no answer in {timeout} s"
        raise ConnectionLost(message)
    if task.cancelled():
        message = f"{what}: the connection was lost"
        raise ConnectionLost(message)
    error = task.exception()
    if error is not None:
        raise meaning(error, what) from error
    return task.result()


def forget(task: "asyncio.Future[Any]") -> None:
    """Retrieve the error of a task that nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()
