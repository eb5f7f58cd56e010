"""
An open file with all that works on it, from connecting to closing.
"""

import asyncio
from collections.abc import Iterable

from brokerkit.adapters.sqlite.cleaner import Cleaner
from brokerkit.adapters.sqlite.database import Database
from brokerkit.adapters.sqlite.desk import Desk
from brokerkit.adapters.sqlite.fork import watch
from brokerkit.adapters.sqlite.keeper import Keeper
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.adapters.sqlite.url import Options
from brokerkit.adapters.sqlite.wake import Listener
from brokerkit.adapters.sqlite.writer import Writer
from brokerkit.clock import Clock

__all__ = ["Session"]

_CLOSE = 5.0
"""Seconds that closing waits for the file, after the subscriptions have had theirs."""


class Session:
    """One open file. Made in the event loop it belongs to."""

    def __init__(self, options: Options, clock: Clock) -> None:
        database = Database(options.path, timeout=options.lock_timeout, clock=clock)
        self.writer = Writer(database, timeout=options.lock_timeout)
        self._subscriptions: list[SqliteSubscription] = []
        self._keeper = Keeper(self.writer, lease=options.lease, clock=clock)
        self._cleaner = Cleaner(
            self.writer, retention=options.retention, dead_retention=options.dead_retention
        )
        self._listener = Listener(self._hear)
        self.desk = Desk(
            self.writer, self._keeper, clock=clock, listener=self._listener, settled=self._cleaner.note
        )

    async def open(self) -> None:
        """Open the file and begin to listen. Raises what `Writer.open` raises."""
        await self.writer.open(self._keeper)
        watch(self._keeper)
        await self._listener.open()
        self._cleaner.start()

    async def close(self) -> None:
        """Close the subscriptions, then the file. Ends within about 10 s even if the file is locked."""
        await _close_all(self._subscriptions)
        await self._cleaner.close()
        self._listener.close()
        await self.writer.close(_CLOSE)

    def keep(self, subscription: SqliteSubscription) -> None:
        """Close this one together with the file."""
        self._subscriptions = [kept for kept in self._subscriptions if not kept.closed]
        self._subscriptions.append(subscription)

    def _hear(self, member: int) -> None:
        local = self._keeper.locals.get(member)
        if local is not None:
            local.nudge()
            local.balance()


async def _close_all(subscriptions: Iterable[SqliteSubscription]) -> None:
    closing = [asyncio.ensure_future(subscription.close()) for subscription in subscriptions]
    if closing:
        await asyncio.wait(closing)
