"""
One channel of the client.
"""

import asyncio
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import aiormq.abc
from pamqp import commands

from brokerkit.adapters.rabbitmq.calls import CALL, CLOSE, apart, forget
from brokerkit.adapters.rabbitmq.reader import Intake
from brokerkit.adapters.rabbitmq.transport import Transport
from brokerkit.errors import ConnectionLost

__all__ = ["Channel", "Raw"]

_ACK = struct.Struct(">BHIHHQ?B")

Raw = Any
"""A message as the client has it (`aiormq.abc.DeliveredMessage`)."""


class Confirmation(Protocol):
    """What the client needs of the future of a publish's confirmation."""

    def done(self) -> bool:
        """Whether there is an outcome."""
        ...

    def cancelled(self) -> bool:
        """Whether nobody waits for it."""
        ...

    def set_result(self, frame: object) -> None:
        """Take the broker's confirmation."""

    def set_exception(self, error: BaseException) -> None:
        """Take the broker's refusal, or the return."""


class Channel:
    """
    One channel.

    closed: done when it has ended.
    """

    def __init__(self, raw: aiormq.abc.AbstractChannel, transport: Transport) -> None:
        self._raw: Any = raw
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self.error: BaseException | None = None
        self._prefetch = 1
        self._asked: asyncio.Task[Any] | None = None
        self._said: asyncio.Task[Any] | None = None
        self._closing: asyncio.Future[Any] = self._raw.closing
        self._closing.add_done_callback(self._ended)

    def _ended(self, closing: "asyncio.Future[Any]") -> None:
        if not self.closed.done():
            self.error = None if closing.cancelled() else closing.exception()
            self.closed.set_result(None)

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return not self.closed.done() and not self._raw.is_closed

    @property
    def number(self) -> int:
        """Its number on the connection."""
        return int(self._raw.number)

    @property
    def largest(self) -> int:
        """Bytes of the largest frame."""
        return int(self._raw.max_content_size) + int(self._raw.CONTENT_FRAME_SIZE)

    def expect(self, slot: "Confirmation", name: str | None) -> "Callable[[], None] | None":
        """
        Take a number for the message that is written next, and let the client tell the slot what the broker says of it.

        name: its `message_id` where it may come back, by which a return is known. Returns what forgets that name.
        """
        raw = self._raw
        raw.delivery_tag += 1
        raw.confirmations[raw.delivery_tag] = slot
        if name is None:
            return None
        raw.message_id_delivery_tag[name] = raw.delivery_tag
        return partial(raw.message_id_delivery_tag.pop, name, None)

    def write(self, frames: bytes) -> bool:
        """
        Write whole frames of this channel to the socket, now; False, and nothing written, if it is closed.

        Past the client's queue: they may go between the client's own, and must not depend on what still waits there.
        """
        writer = self._transport.writer
        if writer is None or writer.is_closing() or not self._is_open():
            return False
        writer.write(frames)
        return True

    def say(self, body: bytes, exchange: str) -> None:
        """Publish something transient, unconfirmed."""
        properties = commands.Basic.Properties(delivery_mode=1)
        self._said = self._loop.create_task(
            self._raw.basic_publish(body, exchange=exchange, properties=properties, wait=False)
        )
        self._said.add_done_callback(forget)

    async def consume(
        self,
        queue: str,
        on_message: Callable[[Raw], None],
        on_cancel: Callable[[], None],
        *,
        prefetch: int,
        no_ack: bool = False,
    ) -> None:
        """Begin to consume a queue; the callbacks are called in the order of the broker's frames."""

        async def arrived(raw: Raw) -> None:
            on_message(raw)

        if (reader := self._transport.reader) is not None:
            intake = Intake(self._raw, on_message)
            reader.give(self.number, intake)
            self.closed.add_done_callback(lambda _: reader.take(self.number, intake))
        self._prefetch = prefetch

        def ended(_: Any) -> None:
            on_cancel()

        self._raw.on_consumer_cancel_callbacks.add(ended)
        await apart(self._raw.basic_qos(prefetch_count=prefetch), "setting the prefetch")
        await apart(self._raw.basic_consume(queue, arrived, no_ack=no_ack), f"consuming queue {queue!r}")

    def ack(self, acks: Sequence[tuple[int, bool]]) -> bool:
        """
        Write acks, each a tag and whether it stands for all below it, to the socket, now; False if it is closed.

        A process that is stopped right after an answer must not take its acks with it.
        """
        number = self._raw.number
        return self.write(
            b"".join(_ACK.pack(1, number, 13, 60, 80, tag, multiple, 0xCE) for tag, multiple in acks)
        )

    def _is_open(self) -> bool:
        """
        Whether the broker has this channel under its number still.

        Some turns lie between its word that it has closed it and `closed`; a frame for it would end the connection then.
        """
        return self._raw.connection.channels.get(self._raw.number) is self._raw

    async def ask(self) -> None:
        """
        Ask the broker something that changes nothing: an answer proves that the channel is alive.

        Raises `ConnectionLost` without one. The question stays out then: to cancel it would close the channel.
        """
        if self._asked is None or self._asked.done():
            self._asked = self._loop.create_task(self._raw.basic_qos(prefetch_count=self._prefetch))
            self._asked.add_done_callback(forget)
        asked = self._asked
        await asyncio.wait({asked, self.closed}, timeout=CALL, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done() or asked.cancelled() or asked.exception() is not None:
            message = "the broker gives no sign of life"
            raise ConnectionLost(message)

    async def declare_exchange(
        self,
        name: str,
        kind: str = "topic",
        arguments: Mapping[str, Any] | None = None,
        *,
        passive: bool = False,
    ) -> None:
        """Declare a durable exchange, or with `passive` only see that it is there."""
        await apart(
            self._raw.exchange_declare(
                name, exchange_type=kind, passive=passive, durable=True, arguments=dict(arguments or {})
            ),
            f"exchange {name!r}",
        )

    async def declare_queue(
        self, name: str, arguments: Mapping[str, Any] | None = None, *, passive: bool = False
    ) -> int:
        """Declare a durable queue, or with `passive` only see that it is there; return how many messages are ready."""
        found = await apart(
            self._raw.queue_declare(name, passive=passive, durable=True, arguments=dict(arguments or {})),
            f"queue {name!r}",
        )
        return int(found.message_count or 0)

    async def declare_own_queue(self) -> str:
        """Declare a queue that lives as long as this connection, and return the name that the broker gives it."""
        found = await apart(
            self._raw.queue_declare("", exclusive=True, auto_delete=True), "a queue of this connection's own"
        )
        return str(found.queue)

    async def delete_queue(self, name: str) -> None:
        """Delete a queue with what is in it; one that is not there is no error."""
        await apart(self._raw.queue_delete(name), f"deleting queue {name!r}")

    async def drop_one(self, name: str) -> None:
        """Take one message out of a queue, for good."""
        await apart(self._raw.basic_get(name, no_ack=True), f"taking from queue {name!r}")

    async def store(self, body: bytes, queue: str) -> None:
        """Publish one persistent message to a queue of that name and wait until it is confirmed; `ConnectionLost` if not."""
        properties = commands.Basic.Properties(delivery_mode=2)
        answer = await apart(
            self._raw.basic_publish(
                body, exchange="", routing_key=queue, properties=properties, mandatory=True, wait=False
            ),
            f"storing in queue {queue!r}",
        )
        if not isinstance(answer, commands.Basic.Ack):
            message = f"queue {queue!r} has not taken the message: {type(answer).__name__}"
            raise ConnectionLost(message)

    async def bind_queue(self, queue: str, exchange: str, key: str) -> None:
        """Bind a queue to an exchange."""
        await apart(self._raw.queue_bind(queue, exchange, key), f"binding queue {queue!r} to {exchange!r}")

    async def bind_exchange(self, destination: str, source: str, key: str) -> None:
        """Bind an exchange to another."""
        await apart(
            self._raw.exchange_bind(destination, source, key),
            f"binding exchange {destination!r} to {source!r}",
        )

    async def close(self) -> None:
        """Close within 2 s: what is unsettled goes back to the head of its queue, in order."""
        with suppress(ConnectionLost):
            await apart(self._raw.close(), "closing a channel", CLOSE)
