"""
One queue as it is consumed: one channel, the deliveries that came by it, and which of them are out.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.adapters.rabbitmq.channel import Channel, Raw
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.tags import Tags
from brokerkit.adapters.rabbitmq.wire import arrivals_of, message_of
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, SettleError, Stale, Unavailable
from brokerkit.message import Address

__all__ = ["Receipt", "Source", "count_of", "delivery_of"]

_log = logging.getLogger(__name__)

Taken = Callable[["Source", int, Raw], None]


@dataclass(frozen=True, slots=True, eq=False)
class Receipt:
    """A delivery belongs to a channel, not to a queue: the same tag on the next channel is another message."""

    source: "Source"
    tag: int


class Source:
    """
    A queue consumed on a channel of its own.

    ready: what may be handed out, in order. out: what is handed out, by tag. waiting: what is held for a while, by tag.
    part: which partition it is. seen: something has come. resting: nothing is handed out for now; until: when that is
    looked at again. lost: the channel is gone, and everything of it is somebody else's.
    """

    def __init__(self, queue: str, part: int, taken: Taken, changed: Callable[["Source"], None]) -> None:
        self.queue = queue
        self.part = part
        self.ready: deque[Delivery] = deque()
        self.out: dict[int, Delivery] = {}
        self.waiting: dict[int, asyncio.TimerHandle] = {}
        self.forwards = 0
        self.seen = False
        self.resting = False
        self.until = 0.0
        self.cancelled = False
        self.lost = False
        self.closed = False
        self._taken = taken
        self._changed = changed
        self._tags = Tags()
        self._channel: Channel | None = None

    async def open(self, client: Client, prefetch: int) -> None:
        """Begin to consume; raises `NotFound`, `Unauthorised` and `ConnectionLost`."""
        channel = await client.channel()
        self._channel = channel
        channel.closed.add_done_callback(lambda _: self._ended())
        await channel.consume(self.queue, self._arrived, self._cancelled, prefetch=prefetch)
        if self.closed:  # meanwhile; whoever closed it may have found no channel yet
            await channel.close()

    @property
    def alive(self) -> bool:
        """Whether what is out is still ours, as far as is known here."""
        channel = self._channel
        return channel is not None and channel.alive and not (self.lost or self.closed)

    @property
    def idle(self) -> bool:
        """Whether nothing of it is out, on its way elsewhere or held."""
        return not (self.out or self.waiting or self.forwards)

    def _arrived(self, raw: Raw) -> None:
        if not (self.closed or self.lost):
            self.seen = True
            tag = int(raw.delivery.delivery_tag)
            try:
                self._taken(self, tag, raw)
            except Exception:  # noqa: BLE001 - whatever a stranger can make of a header; nobody else would answer for the tag
                # A tag that nobody knows is never acked, and no ack behind it is short any more.
                _log.exception(
                    "queue %s: a message is handed out without headers that cannot be read", self.queue
                )
                raw.header.properties.headers = None
                self._taken(self, tag, raw)

    def _cancelled(self) -> None:
        """The broker has ended the consumer (its queue was deleted or has moved): what is out may still be acked."""
        if not self.closed:
            self.cancelled = True
            self.ready.clear()
            self._changed(self)

    def _ended(self) -> None:
        if not self.closed:
            self.fence()
            self._changed(self)

    def fence(self) -> None:
        """Take everything for lost: from now on nothing here is settled any more."""
        self.lost = True
        self.ready.clear()
        self._cancel_timers()

    def _cancel_timers(self) -> None:
        for timer in self.waiting.values():
            timer.cancel()
        self.waiting.clear()

    def finish(self, tags: Sequence[int]) -> bool:
        """Ack tags that were not acked before; False if the channel is gone."""
        channel = self._channel
        if channel is None or self.lost or self.closed or not channel.alive:
            return False  # behind the close of a channel an ack would end the whole connection
        return channel.ack(self._tags.finish(tags))

    async def ask(self) -> SettleError | None:
        """Ask the broker whether the channel is alive: then everything that is out is ours."""
        failure: BrokerkitError | None = None
        if self._channel is not None and self.alive:
            try:
                await self._channel.ask()
            except BrokerkitError as error:
                failure = error
        if not self.alive:
            return Stale(f"queue {self.queue!r}: its channel is gone")
        return None if failure is None else Unavailable(str(failure))

    async def close(self) -> None:
        """Leave, within about 2 s: what is unsettled goes back to the head of the queue, in order."""
        self.closed = True
        self.ready.clear()
        self.out.clear()
        self._cancel_timers()
        if self._channel is not None and self._channel.alive and not self.lost:
            await self._channel.close()


def delivery_of(raw: Raw, address: Address, receipt: Receipt, arrivals: int | None) -> Delivery:
    """Return a message of the client as a delivery."""
    properties: Any = raw.header.properties
    message = message_of(properties.content_type, properties.headers or {}, raw.body)
    return Delivery(message, address, receipt, arrivals=arrivals, native=raw)


def count_of(raw: Raw) -> int | None:
    """Return the broker's count of the arrivals of a message."""
    return arrivals_of(raw.header.properties.headers or {}, redelivered=bool(raw.delivery.redelivered))
