"""
The seam to aiormq, with `channel`, `calls` and `transport`: the modules that know the client.
"""

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import aiormq
from yarl import URL

from brokerkit.adapters.rabbitmq.calls import CLOSE, apart, forget
from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.failure import at_connect
from brokerkit.adapters.rabbitmq.transport import Transport
from brokerkit.adapters.rabbitmq.url import Options
from brokerkit.errors import ConnectionLost

__all__ = ["Client", "open_client"]


class Client:
    """
    One connection, from its opening to its end; a new one is made after it.

    version: (major, minor) of the broker. product: its name and version. lost: done when the connection has ended, for
    whatever reason. known: names that were seen to exist on this connection.
    """

    def __init__(self, connection: aiormq.Connection, transport: Transport) -> None:
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

    @property
    def ready(self) -> bool:
        """
        Whether it takes publishes right now.

        The client says so by a call that does not wait then; so it is asked for one step, which needs no task.
        """
        asking = self._connection.ready()
        try:
            asking.send(None)
        except StopIteration:
            return True
        asking.close()
        return False

    async def unblocked(self, timeout: float) -> bool:
        """Wait until the broker takes publishes: it blocks them during a memory or disk alarm."""
        task = self._loop.create_task(self._connection.ready())
        task.add_done_callback(forget)
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
            await apart(self._connection.close(), "closing the connection", CLOSE)
        self._transport.abort()
        self.fail(None)

    def abort(self) -> None:
        """Cut the connection, without a word to the broker."""
        self._transport.abort()
        self.fail(None)


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
    transport = Transport(host, port, context)
    connection = aiormq.Connection(_url_of(options, host, port, name), transport_factory=transport)
    connecting: Any = connection
    task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(connecting.connect())
    task.add_done_callback(forget)
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
