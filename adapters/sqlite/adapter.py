"""
The adapter: one process's connection to a file.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from brokerkit.adapter import Capabilities, Measurement, OnLost, Order, Start
from brokerkit.adapters.sqlite import survey
from brokerkit.adapters.sqlite.log import publish, put_copies
from brokerkit.adapters.sqlite.places import channel_of, find_channel, find_place, open_place
from brokerkit.adapters.sqlite.row import Row, row_of
from brokerkit.adapters.sqlite.session import Session
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.adapters.sqlite.transaction import Transaction
from brokerkit.adapters.sqlite.url import read_url
from brokerkit.clock import SYSTEM
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    Closed,
    DelayTooLong,
    SendError,
    TooLarge,
    Unroutable,
    Unsupported,
)
from brokerkit.message import Address, Message
from brokerkit.names import check_name

__all__ = ["SqliteAdapter"]

_MAX_DELAY = 12 * 3600.0


class SqliteAdapter:
    """
    One process's connection to a file; also `Browses`, `Measures` and `Provisions`.

    Belongs to the event loop that connected it. Options as in the URL: `lease`, `retention`, `dead_retention`
    and `lock_timeout` in seconds, `max_message` in bytes; others raise `ConfigurationError`.
    """

    def __init__(self, url: str, **options: object) -> None:
        self._options = read_url(url, options)
        self.capabilities = Capabilities(
            order_key=True,
            durable=True,
            processes=True,
            counts_arrivals=True,
            marks=True,
            log=False,
            lease=self._options.lease,
            key_returns=True,
            max_delay=min(_MAX_DELAY, self._options.retention / 2),
            max_message=self._options.max_message,
        )
        self._session: Session | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """
        Open the file and create what is missing in it; does nothing if it is open.

        Raises `ConfigurationError` for a file that is not ours, `Unauthorised` without the right to write it,
        `ConnectionLost` if it is locked for longer than `lock_timeout`.
        """
        if self._closed:
            raise self._not_open()
        if self._session is None:
            session = Session(self._options, SYSTEM)
            await session.open()
            self._session = session

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """
        Store some messages in one transaction and return one outcome for each, after it is on the disk.

        `after` is for an inlet only: anything else raises `Unsupported`. A place of an unknown group yields
        `NotFound`. Cancelled, it may have stored them.
        """
        _check_names(to)
        delays = [float(after)] * len(messages) if isinstance(after, int | float) else list(after)
        if to.place != "inlet" and any(delay > 0 for delay in delays):
            reason = f"after={after}: only what is sent to a group's inlet can be delayed, not {to}"
            raise Unsupported(reason)
        outcomes: list[SendError | None] = [None] * len(messages)
        rows: list[Row] = []
        waits: list[float] = []
        good: list[int] = []
        for index, (message, delay) in enumerate(zip(messages, delays, strict=True)):
            try:
                rows.append(self._row(message, delay))
            except SendError as error:
                outcomes[index] = error
            else:
                waits.append(max(delay, 0.0))
                good.append(index)
        failure = await self._store(to, rows, waits, must_route=must_route) if rows else None
        for index in good:
            outcomes[index] = failure
        return outcomes

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> SqliteSubscription:
        """
        Join a group; made if it is missing. `prefetch` is the engine's own business here.

        Raises `ConfigurationError` if its other members use the other order mode.
        """
        del prefetch
        _check_place(at)
        session = self._opened()
        subscription = SqliteSubscription(session.desk, at, order, start, on_lost)
        await subscription.enrol()
        session.keep(subscription)
        return subscription

    async def close(self) -> None:
        """Close every subscription and the file. Idempotent; ends within about 10 s even if the file is locked."""
        self._closed = True
        if self._session is None:
            return
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._session.close())
        await asyncio.shield(self._closing)

    async def measure(self, at: Address) -> Measurement:
        """Measure a group's inlet or dead place; `NotFound` for an unknown group."""
        _check_place(at)
        return await self._opened().writer.read(partial(survey.measure, at=at))

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page of a channel or of the copies in a place; the cursor is None when the page is empty."""
        _check_names(at)
        writer = self._opened().writer
        if cursor == "end":
            return [], str(await writer.read(survey.last))
        page, last = await writer.read(partial(survey.browse, at=at, after=_position(cursor), limit=limit))
        return page, None if last is None else str(last)

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        return await self._opened().writer.read(survey.groups)

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create what is missing, or only name it."""
        for at, _, _ in places:
            _check_names(at)
        writer = self._opened().writer
        if not create:
            missing = await writer.read(partial(_missing, places=places))
        else:
            missing = await writer.write(partial(_create, places=places), synced=True)
        return [str(at) for at, _, _ in missing]

    def _opened(self) -> Session:
        if self._session is None or self._closed:
            raise self._not_open()
        return self._session

    def _not_open(self) -> Closed:
        return Closed(f"{self._options.path} is {'closed' if self._closed else 'not connected'}")

    def _row(self, message: Message, delay: float) -> Row:
        if message.size > self._options.max_message:
            reason = f"{message.size} bytes with headers; at most {self._options.max_message}"
            raise TooLarge(reason)
        if not delay <= self.capabilities.max_delay:
            reason = f"after={delay}: at most {self.capabilities.max_delay:.0f} seconds"
            raise DelayTooLong(reason)
        return row_of(message)

    async def _store(
        self, to: Address, rows: Sequence[Row], waits: Sequence[float], *, must_route: bool
    ) -> SendError | None:
        try:
            writer = self._opened().writer
            if to.group is not None:
                await writer.write(partial(put_copies, to=to, rows=rows, after=waits), synced=True)
                return None
            work = partial(publish, channel=to.channel, rows=rows, must_route=must_route)
            routed = await writer.write(work, synced=True)
        except SendError as error:
            return error
        return None if routed else Unroutable(f"no group reads {to}")


Places = Sequence[tuple[Address, Start, Order]]


def _missing(tx: Transaction, places: Places) -> Places:
    return [
        (at, start, order)
        for at, start, order in places
        if (find_channel(tx, at.channel) if at.group is None else find_place(tx, at)) is None
    ]


def _create(tx: Transaction, places: Places) -> Places:
    missing = _missing(tx, places)
    for at, start, order in missing:
        if at.group is None:
            channel_of(tx, at.channel)
        else:
            open_place(tx, at, start, order)
    return missing


def _check_names(at: Address) -> None:
    check_name("channel", at.channel)
    if at.group is not None:
        check_name("group", at.group)


def _check_place(at: Address) -> None:
    _check_names(at)
    if at.group is None:
        message = f"name a group's inlet or dead place, not {at}"
        raise Unsupported(message)


def _position(cursor: str | None) -> int:
    return 0 if cursor is None else int(cursor)
