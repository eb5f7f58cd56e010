"""
Publishing: each message confirmed, or one honest outcome within the send's time.

A bounded number of messages is out and unconfirmed. When the connection ends or time is up, what has no confirmation has
an unknown outcome, and nothing more is sent on that connection: what it holds is not published a second time by it.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pamqp import commands

from brokerkit.adapters.rabbitmq.client import Channel, Client
from brokerkit.adapters.rabbitmq.failure import at_publish
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.errors import BrokerkitError, ConnectionLost, NotFound, PublishUnknown, SendError, Throttled

__all__ = ["Parcel", "Publisher"]

_WINDOW = 1000
_PERSISTENT = 2
_STARTED = itertools.count()
_PENDING = PublishUnknown("no outcome yet")
_UNSENT = ConnectionLost("not sent: the connection was lost, or too much is unconfirmed")


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """One message as it goes out, and where to. Mandatory: it must reach a queue, else `NotFound`."""

    exchange: str
    key: str
    body: bytes
    content_type: str | None
    headers: dict[str, Any]
    mandatory: bool = False


@dataclass(slots=True, eq=False)
class _Batch:
    """Counts down to the last outcome."""

    outcomes: list[SendError | None]
    open: int
    done: asyncio.Future[None]

    def begin(self, index: int) -> None:
        """Note that one is on its way."""
        self.outcomes[index] = _PENDING
        self.open += 1

    def settle(self, index: int, outcome: SendError | None) -> None:
        """Note one outcome."""
        self.outcomes[index] = outcome
        self.count_down()

    def count_down(self) -> None:
        """Note that one thing less is open: a message, or the starting of them all."""
        self.open -= 1
        if self.open == 0 and not self.done.done():
            self.done.set_result(None)


class Publisher:
    """Publishes through one connection, and one channel of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._client: Client | None = None
        self._channel: Channel | None = None
        self._opening: asyncio.Lock = asyncio.Lock()
        self._window = asyncio.Semaphore(_WINDOW)
        self._out: set[asyncio.Task[Any]] = set()
        self._ids = secrets.token_hex(8)

    async def client(self) -> Client:
        """Return the connection on which is published."""
        return await self._link.client()

    async def publish(self, parcels: Sequence[Parcel], deadline: float) -> Sequence[SendError | None]:
        """
        Publish and return one outcome for each, in order; ends by the deadline, a time of the loop.

        Cancelled, what is on its way stays on its way.
        """
        try:
            async with asyncio.timeout_at(deadline):
                client, channel = await self._ready(deadline)
        except TimeoutError:
            return [ConnectionLost("no connection to publish on in time")] * len(parcels)
        except SendError as error:
            return [error] * len(parcels)
        except BrokerkitError as error:
            lost = ConnectionLost(str(error))
            lost.__cause__ = error
            return [lost] * len(parcels)
        return await self._through(client, channel, parcels, deadline)

    async def _ready(self, deadline: float) -> tuple[Client, Channel]:
        async with self._opening:
            client = await self._link.client()
            if not await client.unblocked(max(deadline - asyncio.get_running_loop().time() - 0.05, 0.05)):
                reason = "the broker takes no publishes (memory or disk alarm)"
                raise Throttled(reason)
            if self._channel is None or self._client is not client or not self._channel.alive:
                self._channel = await client.channel(confirms=True)
                self._client = client
                self._channel.closed.add_done_callback(partial(_give_up, client, self._channel))
                # What was out on a connection that is gone may hang in the client for ever, and its permits with it.
                self._window = asyncio.Semaphore(_WINDOW)
                self._out = set()
                client.lost.add_done_callback(partial(_let_go, self._out))
            return client, self._channel

    async def _through(
        self, client: Client, channel: Channel, parcels: Sequence[Parcel], deadline: float
    ) -> Sequence[SendError | None]:
        loop = asyncio.get_running_loop()
        window, out = self._window, self._out
        batch = _Batch([_UNSENT] * len(parcels), 1, loop.create_future())
        try:
            async with asyncio.timeout_at(deadline):
                for index, parcel in enumerate(parcels):
                    await window.acquire()
                    if not (client.alive and channel.alive):
                        window.release()
                        break
                    batch.begin(index)
                    task = self._start(channel, parcel)
                    out.add(task)
                    task.add_done_callback(out.discard)
                    task.add_done_callback(partial(_ended, parcel, window, partial(batch.settle, index)))
        except TimeoutError:
            pass
        batch.count_down()
        if batch.open:
            left = max(deadline - loop.time(), 0.0)
            await asyncio.wait({batch.done, client.lost}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not (batch.done.done() or client.lost.done()):
                client.abort()  # nothing more goes out on it, or each message that waits would go out twice
        error = channel.error or client.error
        return [
            at_publish(error, len(parcel.body)) if isinstance(outcome, PublishUnknown) else outcome
            for parcel, outcome in zip(parcels, batch.outcomes, strict=True)
        ]

    def _start(self, channel: Channel, parcel: Parcel) -> "asyncio.Task[Any]":
        properties = commands.Basic.Properties(
            content_type=parcel.content_type,
            headers=parcel.headers,
            delivery_mode=_PERSISTENT,
            message_id=f"{self._ids}-{next(_STARTED)}",
        )
        return channel.publish(
            parcel.body, parcel.exchange, parcel.key, properties, mandatory=parcel.mandatory
        )


def _ended(
    parcel: Parcel,
    window: asyncio.Semaphore,
    settle: Callable[[SendError | None], None],
    task: "asyncio.Task[Any]",
) -> None:
    window.release()
    if task.cancelled():
        settle(at_publish(None, len(parcel.body)))
    elif (error := task.exception()) is not None:
        settle(at_publish(error, len(parcel.body)))
    elif isinstance(task.result(), commands.Basic.Ack):
        settle(None)
    else:
        settle(NotFound("the broker has returned it: no queue takes it"))


def _let_go(out: set["asyncio.Task[Any]"], _: object) -> None:
    """End the publishes of a connection that is gone; their outcome is unknown either way."""
    for task in list(out):
        task.cancel()


def _give_up(client: Client, channel: Channel, _: object) -> None:
    """A publish channel that the broker has closed takes the connection with it: all that was out is unknown."""
    client.fail(channel.error)
