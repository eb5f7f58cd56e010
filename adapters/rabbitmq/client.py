"""
The seam to aiormq: the one module that knows the client.

Every call runs in a task of its own and within a limit of time. The client ends calls with a `CancelledError` that nobody
has asked for when a connection breaks; such a cancellation ends the task in here and never its caller.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import aiormq
import aiormq.abc
import pamqp.frame
from aiormq.connection import TransportFactory
from pamqp import commands
from yarl import URL

from brokerkit.adapters.rabbitmq.failure import at_connect, meaning
from brokerkit.adapters.rabbitmq.frames import Reader
from brokerkit.adapters.rabbitmq.url import Options
from brokerkit.errors import ConnectionLost

__all__ = ["Channel", "Client", "Raw", "apart", "open_client"]

_log = logging.getLogger(__name__)

T = TypeVar("T")
Raw = Any
"""A message as the client has it (`aiormq.abc.DeliveredMessage`)."""

CALL = 10.0
"""Seconds for one call that declares or asks something."""

_CLOSE = 2.0


async def apart(work: Coroutine[Any, Any, T], what: str, timeout: float | None = CALL) -> T:
    """
    Await a call of the client in a task of its own, at most so many seconds.

    Raises what `meaning` makes of its error; `ConnectionLost` if time is up or the client has cancelled it.
    """
    task = asyncio.get_running_loop().create_task(work)
    task.add_done_callback(_forget)
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


def _forget(task: "asyncio.Future[Any]") -> None:
    """Retrieve the error of a task that nobody may be waiting for any more."""
    if not task.cancelled():
        task.exception()


class _Transport(TransportFactory):
    """Opens the socket, so that it can be aborted when the broker does not answer."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        self._place = (host, port)
        self._context = context
        self.writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **kwargs: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        del url, kwargs
        reader, writer = await asyncio.open_connection(*self._place, ssl=self._context)
        self.writer = writer
        mending: Any = Reader(reader)
        return mending, writer

    def abort(self) -> None:
        """Cut the connection."""
        if self.writer is not None:
            self.writer.transport.abort()


class Client:
    """
    One connection, from its opening to its end; a new one is made after it.

    version: (major, minor) of the broker. product: its name and version. lost: done when the connection has ended, for
    whatever reason. known: names that were seen to exist on this connection.
    """

    def __init__(self, connection: aiormq.Connection, transport: _Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self.version = _version_of(connection.server_properties)
        self.product = " ".join(
            str(connection.server_properties.get(name, "?")) for name in ("product", "version")
        )
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.error: BaseException | None = None
        self.known: set[str] = set()
        watched: Any = connection  # its futures say nothing of their type
        self._watch: asyncio.Future[Any] = watched.closing
        self._watch.add_done_callback(self._closed)

    @property
    def alive(self) -> bool:
        """Whether the connection has not ended yet."""
        return not self.lost.done() and not self._connection.is_closed

    def _closed(self, closing: "asyncio.Future[Any]") -> None:
        if not closing.cancelled():
            self.fail(closing.exception())

    def fail(self, error: BaseException | None) -> None:
        """Give the connection up: something on it has failed that makes all of it doubtful."""
        if not self.lost.done():
            self.error = error
            self.lost.set_result(None)

    async def unblocked(self, timeout: float) -> bool:
        """Wait until the broker takes publishes: it blocks them during a memory or disk alarm."""
        task = self._loop.create_task(self._connection.ready())
        task.add_done_callback(_forget)
        await asyncio.wait({task, self.lost}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        ready = task.done()
        task.cancel()
        return ready or self.lost.done()

    async def channel(self, *, confirms: bool = False) -> "Channel":
        """Open a channel."""
        raw = await apart(self._connection.channel(publisher_confirms=confirms), "opening a channel")
        return Channel(raw, self._transport)

    async def close(self) -> None:
        """Close within 2 s; a broker that does not answer is left."""
        with suppress(ConnectionLost):
            await apart(self._connection.close(), "closing the connection", _CLOSE)
        self._transport.abort()
        self.fail(None)

    def abort(self) -> None:
        """Cut the connection, without a word to the broker."""
        self._transport.abort()
        self.fail(None)


class Channel:
    """
    One channel.

    closed: done when it has ended.
    """

    def __init__(self, raw: aiormq.abc.AbstractChannel, transport: _Transport) -> None:
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

    def publish(
        self, body: bytes, exchange: str, key: str, properties: commands.Basic.Properties, *, mandatory: bool
    ) -> "asyncio.Task[Any]":
        """Start to publish; the task ends with the broker's confirmation, an error, or a stray cancellation."""
        task = self._loop.create_task(
            self._raw.basic_publish(
                body,
                exchange=exchange,
                routing_key=key,
                properties=properties,
                mandatory=mandatory,
                wait=False,
            )
        )
        task.add_done_callback(_forget)
        return task

    def say(self, body: bytes, exchange: str) -> None:
        """Publish something transient, unconfirmed."""
        self._said = self.publish(
            body, exchange, "", commands.Basic.Properties(delivery_mode=1), mandatory=False
        )

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

        self._prefetch = prefetch

        def ended(_: Any) -> None:
            on_cancel()

        self._raw.on_consumer_cancel_callbacks.add(ended)
        await apart(self._raw.basic_qos(prefetch_count=prefetch), "setting the prefetch")
        await apart(self._raw.basic_consume(queue, arrived, no_ack=no_ack), f"consuming queue {queue!r}")

    def ack(self, acks: Sequence[tuple[int, bool]]) -> bool:
        """
        Write acks, each a tag and whether it stands for all below it, to the socket, now; False if it is closed.

        Past the client's queue: a process that is stopped right after an answer must not take its acks with it. Whole
        frames may go between the client's own, and an ack depends on nothing that still waits there.
        """
        writer = self._transport.writer
        if writer is None or writer.is_closing() or not self._is_open():
            return False
        frames = [commands.Basic.Ack(delivery_tag=tag, multiple=multiple) for tag, multiple in acks]
        writer.write(b"".join(pamqp.frame.marshal(frame, self._raw.number) for frame in frames))
        return True

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
            self._asked.add_done_callback(_forget)
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
            await apart(self._raw.close(), "closing a channel", _CLOSE)


async def open_client(options: Options, context: ssl.SSLContext | None, name: str) -> Client:
    """
    Connect to the first host that answers.

    Raises `Unauthorised`, `ConfigurationError`, or `ConnectionLost` if none does.
    """
    failure: Exception = ConnectionLost(f"{options.url.text}: no host")
    for host, port in options.url.hosts:
        try:
            return await _open(options, context, host, port, name)
        except ConnectionLost as error:
            failure = error
    raise failure


async def _open(options: Options, context: ssl.SSLContext | None, host: str, port: int, name: str) -> Client:
    place = f"amqp{'s' if context else ''}://{f'[{host}]' if ':' in host else host}:{port}"
    transport = _Transport(host, port, context)
    connection = aiormq.Connection(_url_of(options, host, port, name), transport_factory=transport)
    connecting: Any = connection
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(connecting.connect())
    task.add_done_callback(_forget)
    try:
        await asyncio.wait({task}, timeout=options.connect_timeout)
    finally:
        if not task.done():
            transport.abort()
            task.cancel()
    if not task.done():
        raise at_connect(TimeoutError(), place)
    if task.cancelled():
        raise at_connect(ConnectionResetError("the connection was lost"), place)
    if error := task.exception():
        transport.abort()
        raise at_connect(error, place) from error
    return Client(connection, transport)


def _url_of(options: Options, host: str, port: int, name: str) -> URL:
    url = options.url
    return URL.build(
        scheme="amqp",
        host=host,
        port=port,
        user=url.user,
        password=url.password,
        path="/" if options.vhost == "/" else f"/{options.vhost}",
        query={"heartbeat": str(options.heartbeat), "name": name},
    )


def _version_of(properties: Mapping[str, Any]) -> tuple[int, int]:
    parts = str(properties.get("version", "")).split(".")
    numbers = [int(part) if part.isdigit() else 0 for part in (*parts, "0", "0")[:2]]
    return numbers[0], numbers[1]
