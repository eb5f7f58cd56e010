"""
Bulkhead: named compartments that bound how many handlings use one thing at a time.
"""

import asyncio
from asyncio import AbstractEventLoop, Future
from collections import deque
from contextlib import suppress
from weakref import WeakKeyDictionary, WeakValueDictionary

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, Unsupported
from brokerkit.pipeline import Handler
from brokerkit.settlement import Retry, Settlement

__all__ = ["BulkheadPattern", "bulkhead"]

_FULL = 1.0


def bulkhead(
    name: str, limit: int, *, max_waiting: int | None = None, isolation: str = "task"
) -> "BulkheadPattern":
    """
    Let at most `limit` handlings into the compartment `name` at a time; the others wait in order of arrival.

    name: the compartment. All bulkheads of one name share it, over handlers, groups and buses of one event loop.
    max_waiting: how many may wait; one more is returned uncounted for a second. None for no bound but the concurrency.
    isolation: `task`, the only kind there is yet.

    Raises `ConfigurationError` for figures that make no sense, and, at start or else at the first message, if
    two live bulkheads of one name have different limits.

    Guarantees that a waiter that is cancelled takes no slot with it, and that nothing is refused or counted for being full
    (beyond `max_waiting`, a return that does not count). A handling that waits here keeps its worker: with one handler of a
    subscription in a full compartment, its waiting messages can use up the `concurrency` that the others need. Bound that
    share with `max_waiting`. The limit holds within a process, not over several.
    """
    return BulkheadPattern(name, limit, max_waiting=max_waiting, isolation=isolation)


class BulkheadPattern:
    """What `bulkhead(...)` returns."""

    kind = "bulkhead"

    def __init__(self, name: str, limit: int, *, max_waiting: int | None, isolation: str) -> None:
        if isolation != "task":
            message = f'bulkhead({name!r}, isolation={isolation!r}): only "task" is there yet, not threads or processes'
            raise Unsupported(message)
        if not (_is_text(name) and name):
            message = f"bulkhead({name!r}): the name of a compartment is text"
            raise ConfigurationError(message)
        if not _is_count(limit) or limit < 1:
            message = f"bulkhead({name!r}, {limit!r}): the limit is a whole number above 0"
            raise ConfigurationError(message)
        if max_waiting is not None and not _is_count(max_waiting):
            message = (
                f"bulkhead({name!r}, max_waiting={max_waiting!r}): give a whole number, or None for no bound"
            )
            raise ConfigurationError(message)
        self.name = name
        self.limit = limit
        self.max_waiting = max_waiting
        self._loop: AbstractEventLoop | None = None
        self._room: _Room

    def __repr__(self) -> str:
        waiting = "" if self.max_waiting is None else f", max_waiting={self.max_waiting}"
        return f"bulkhead({self.name!r}, {self.limit}{waiting})"

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with the compartment around it."""
        running_loop = asyncio.get_running_loop

        async def compartmented(delivery: Delivery) -> Settlement:
            room = self._room if running_loop() is self._loop else self._bind()
            if room.free:
                room.free -= 1
            elif self.max_waiting is not None and len(room.waiting) >= self.max_waiting:
                return Retry(after=_FULL, reason=f"bulkhead {self.name} is full", counts=False)
            else:
                await room.wait()
            try:
                return await handler(delivery)
            finally:
                if room.waiting:
                    room.hand_on()
                else:
                    room.free += 1

        return compartmented

    async def start(self) -> None:
        """Bind to the compartment of the running loop; raises `ConfigurationError` if its limit is another one."""
        self._bind()

    async def close(self) -> None:
        """Do nothing: a compartment ends with its last bulkhead."""

    def _bind(self) -> "_Room":
        loop = asyncio.get_running_loop()
        rooms = _rooms.get(loop)
        if rooms is None:
            rooms = _rooms[loop] = WeakValueDictionary()
        room = rooms.get(self.name)
        if room is None:
            room = rooms[self.name] = _Room(self.limit)
        if room.limit != self.limit:
            message = (
                f"bulkhead({self.name!r}, {self.limit}): another bulkhead of that name has the limit {room.limit}; "
                "one compartment has one limit, so share the object or use another name"
            )
            raise ConfigurationError(message)
        self._loop, self._room = loop, room
        return room


class _Room:
    """
    The slots of one compartment on one loop.

    A slot that comes free while somebody waits is handed to the first waiter and never shows in `free`, so that nobody
    overtakes.
    """

    __slots__ = ("__weakref__", "free", "limit", "waiting")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.free = limit
        self.waiting: deque[Future[None]] = deque()

    async def wait(self) -> None:
        turn: Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled():
                self.hand_on()  # the slot came in the same step as the cancellation
            else:
                turn.cancel()
                with suppress(ValueError):  # it was skipped already
                    self.waiting.remove(turn)
            raise

    def hand_on(self) -> None:
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


_rooms: "WeakKeyDictionary[AbstractEventLoop, WeakValueDictionary[str, _Room]]" = WeakKeyDictionary()


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
