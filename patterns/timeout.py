"""
Timeout: a handling that runs too long is cancelled and counts as failed.
"""

import asyncio
import math
from asyncio import AbstractEventLoop, CancelledError, TimerHandle
from collections.abc import Awaitable
from typing import cast
from weakref import WeakKeyDictionary

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, HandlerTimeout
from brokerkit.patterns._interrupt import Handling, as_coroutine, rest
from brokerkit.pipeline import Handler
from brokerkit.settlement import Retry, Settle, Settlement

__all__ = ["TimeoutPattern", "timeout"]


def timeout(seconds: float) -> "TimeoutPattern":
    """
    Cancel a handling after so many seconds and fail it with `HandlerTimeout`, which `retry` tries again.

    The time runs from the first moment at which the handler waits for something; what it computes before that nothing
    could interrupt anyway. A commit of an inbox inside is covered.

    Raises `ConfigurationError` unless `seconds` is a finite number above 0.

    Guarantees that a handling over its time never acks, not even if the handler swallows the cancellation and returns, and
    that a cancellation by anybody else passes untouched. It cannot stop a `def` handler: that one keeps its thread, its slot
    and its lease until it returns, and fails then. A handler that computes without waiting is not stopped either.
    """
    return TimeoutPattern(seconds)


class TimeoutPattern:
    """What `timeout(...)` returns."""

    kind = "timeout"

    def __init__(self, seconds: float) -> None:
        given: object = seconds
        good = (
            isinstance(given, int | float)
            and not isinstance(given, bool)
            and math.isfinite(given)
            and given > 0
        )
        if not good:
            message = f"timeout({seconds!r}): give seconds above 0"
            raise ConfigurationError(message)
        self.seconds = float(seconds)
        self._loop: AbstractEventLoop | None = None
        self._watch: _Watch

    def __repr__(self) -> str:
        return f"timeout({self.seconds:g})"

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with the timeout around it."""
        watched, step = self._watched, as_coroutine(handler)

        async def timed(delivery: Delivery) -> Settlement:
            started = step(delivery)
            try:
                waiting = started.send(None)
            except StopIteration as done:
                return cast("Settlement", done.value)
            return await watched(rest(started, waiting), delivery)

        return timed

    async def _watched(self, running: Awaitable[Settlement], delivery: Delivery) -> Settlement:
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._watch = loop, _watch(loop, self.seconds)
        watch = self._watch
        handling = Handling(delivery, loop, loop.time() + self.seconds)
        watch.active[handling] = None
        if watch.timer is None:
            watch.arm(loop, handling.due)
        cause: BaseException | None = None
        try:
            settlement = await running
        except BaseException as error:
            cause = error
            if handling.why is None or not isinstance(error, Exception | CancelledError | Settle):
                raise
        else:
            if handling.why is None:
                return settlement
            if isinstance(settlement, Retry) and not settlement.counts:
                await handling.take_back()  # what stands inside has found that the handler never began
                return settlement
        finally:
            watch.active.pop(handling, None)
        await handling.take_back()
        message = f"the handler ran longer than {self.seconds:g} s and was cancelled"
        raise HandlerTimeout(message) from cause


class _Watch:
    """
    The handlings of one duration on one loop, in the order in which they fall due, and one timer for all of them.

    The timer looks at the oldest only, so a busy loop pays one call for each duration, not one for each message.
    """

    __slots__ = ("active", "timer")

    def __init__(self) -> None:
        self.active: dict[Handling, None] = {}
        self.timer: TimerHandle | None = None

    def arm(self, loop: AbstractEventLoop, due: float) -> None:
        self.timer = loop.call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        loop = asyncio.get_running_loop()
        # A timer may come a clock tick early; what it was set for is due all the same
        now = max(due, loop.time())
        self.timer = None
        for handling in list(self.active):
            if handling.due > now:
                self.arm(loop, handling.due)
                return
            del self.active[handling]
            handling.stop("timeout")


_watches: "WeakKeyDictionary[AbstractEventLoop, dict[float, _Watch]]" = WeakKeyDictionary()


def _watch(loop: AbstractEventLoop, seconds: float) -> _Watch:
    mine = _watches.get(loop)
    if mine is None:
        for closed in [other for other in _watches if other.is_closed()]:
            del _watches[closed]  # a timer that never came would keep it
        mine = _watches[loop] = {}
    watch = mine.get(seconds)
    if watch is None:
        watch = mine[seconds] = _Watch()
    return watch
