"""
What the demo sees of a service from outside: which handlings stand between their first write and their settlement.

An ordinary service has none of this. Each process appends to a file of its own, with one system call a line, so that the lines
written before a SIGKILL are there after it: `+ <number> <event id>` after a handler's first write, `- <number>`
when the delivery has ended.
"""

import os
from itertools import count

from brokerkit import Delivery, Handler, Settlement
from brokerkit.examples.github_webhooks.settings import WITNESS
from brokerkit.hooks import HookEvent, Settled

__all__ = ["Witness"]


class Witness:
    """A hook of the bus, and a pattern around its handlers."""

    def __init__(self, path: str = WITNESS) -> None:
        self._path = path
        self._file: int | None = None
        self._open: dict[int, int] = {}
        self._numbers = count(1)

    def wrote(self, delivery: Delivery) -> None:
        """Note that a handler has made its first write."""
        if self._path and id(delivery) not in self._open:
            number = self._open[id(delivery)] = next(self._numbers)
            self._note(f"+ {number} {delivery.event.id}\n")

    def hook(self, event: HookEvent) -> None:
        """Note that the broker has confirmed how a delivery ended."""
        if isinstance(event, Settled):
            self._ended(event.delivery)

    def __call__(self, handler: Handler) -> Handler:
        """Watch a handler for endings after which no settlement comes: it was cancelled, or the delivery was lost."""

        async def watched(delivery: Delivery) -> Settlement:
            try:
                settlement = await handler(delivery)
            except BaseException:
                self._ended(delivery)
                raise
            if delivery.stopped is not None:
                self._ended(delivery)
            return settlement

        return watched

    def _ended(self, delivery: Delivery) -> None:
        number = self._open.pop(id(delivery), None)
        if number is not None:
            self._note(f"- {number}\n")

    def _note(self, line: str) -> None:
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.write(self._file, line.encode())
