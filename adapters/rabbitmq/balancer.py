"""
Shares the partitions of a group among its members.

Every member consumes every partition; the broker makes one of them the active one, the others stand in line. A member for
whom a partition is not meant hands it back: it rests the partition (nothing more is handed out), waits until nothing of it
is out, closes its channel, and goes to the end of the line. No handler is ever cancelled for that: if the partition does not
fall idle within some seconds, it goes on as before and is tried again later.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from brokerkit.adapters.rabbitmq.presence import Presence
from brokerkit.adapters.rabbitmq.source import Source

__all__ = ["Balancer"]

_REST = 5.0
_AGAIN = 30.0

Requeue = Callable[[Source], Coroutine[Any, Any, None]]


class Balancer:
    """
    Decides which partitions to hand back.

    sources: what the member consumes now. requeue: closes one and consumes the same queue anew.
    """

    def __init__(
        self, sources: Sequence[Source], requeue: Requeue, start: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._sources = sources
        self._requeue = requeue
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._members: Sequence[str] = ()
        self.presence: Presence | None = None

    def review(self) -> None:
        """Look at every partition: called on each change of the members, and with each of our own signs of life."""
        presence = self.presence
        if presence is None:
            return
        changed = presence.members != self._members
        self._members = presence.members
        now = self._loop.time()
        for source in self._sources:
            if presence.owns(source.part):
                source.resting = False
            elif source.resting:
                if now > source.until:
                    source.resting = False
                    source.until = now + _AGAIN
            elif changed or (source.seen and now > source.until):
                source.resting = True
                source.until = now + _REST
        self.settled()

    def settled(self) -> None:
        """Hand back what rests and has fallen idle."""
        for source in list(self._sources):
            if source.resting and source.idle and not source.closed:
                source.closed = True
                self._start(self._requeue(source))
