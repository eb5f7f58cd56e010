"""
The client library, and what is done otherwise here: this module alone knows its private parts.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client

from brokerkit.adapters.nats.reading import MessageParser, read_headers

__all__ = ["BrokerClient", "Incoming", "OnMessage"]

_log = logging.getLogger("brokerkit.nats")
_FULL = 1024 * 1024


class Incoming(NamedTuple):
    """What arrived. headers: empty if there are none; `Status` stands among them for a message of the server's own."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str]


OnMessage = Callable[[Incoming], None]


class BrokerClient(Client):
    """
    The client, made quicker and more careful.

    It refuses a server that does not offer the encryption that was asked for, passes a message on in the step in which it
    was read, where the client has a queue and a task for each subscription, and takes commands without waiting.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = MessageParser(self)
        self._hears: dict[int, OnMessage] = {}
        self._kick = asyncio.get_running_loop().create_future()
        self._kick.set_result(None)
        self._written = self._kick

    @property
    def told_version(self) -> str:
        """Return the server's version as it says it."""
        return str(self._server_info.get("version", "unknown"))

    def _connect_command(self) -> bytes:
        if "tls" in self.options and not self._server_info.get("tls_required"):
            message = "nats: the server offers no TLS, and the URL asks for it"
            raise nats.errors.Error(message)
        return super()._connect_command()

    # -- reading

    async def listen(self, subject: str, on_message: OnMessage) -> Any:
        """Subscribe; return what `drain` ends. Called while a message is read, so what is slow has to go elsewhere."""
        number = self._sid + 1  # which `subscribe` gives it before anything else can run
        self._hears[number] = on_message
        client: Any = self  # a future in the signature of `subscribe` has no type
        return await client.subscribe(subject, pending_msgs_limit=0, pending_bytes_limit=0)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        super()._remove_sub(sid, max_msgs)
        self._hears.pop(sid, None)

    def take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """Pass a message on to who listens."""
        hear = self._hears.get(sid)
        if hear is None:
            return
        try:
            hear(Incoming(subject.decode(), reply.decode(), data, read_headers(headers) if headers else {}))
        except Exception:  # noqa: BLE001 - one message that cannot be read must not end the reading
            _log.exception("a message at %r could not be taken", subject)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        self.take(sid, bytes(subject), bytes(reply), data, headers)

    # -- writing

    def put(self, command: bytes) -> None:
        """Have a command, or several in one, written after all that was put before."""
        self._pending.append(command)
        self._pending_data_size += len(command)
        queue: asyncio.Queue[Any] | None = self._flush_queue
        if queue is not None and queue.empty():
            queue.put_nowait(self._kick)

    @property
    def full(self) -> bool:
        """Say whether so much waits to be written that whoever adds more should wait for `room`."""
        return self._pending_data_size > _FULL

    async def room(self) -> None:
        """Wait until the socket has taken something, but not for ever: at most as long as a flush may take."""
        queue: asyncio.Queue[Any] | None = self._flush_queue
        if queue is None or not self.is_connected:
            return
        # Not the client's own wait, which swallows a cancellation; and one for all, for its pings go by the same short queue.
        if self._written.done() and not queue.full():
            self._written = asyncio.get_running_loop().create_future()
            queue.put_nowait(self._written)
        await asyncio.wait([self._written], timeout=self._flush_timeout)

    # -- leaving

    def let_go(self) -> None:
        """Drop the connection, and what the system has not yet taken of what was written."""
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()

    async def _attempt_reconnect(self) -> None:
        """
        Let go of the connection before a new one is made.

        The client would wait until all is written, so for ever if the server has stopped reading; and what was not written it
        would write to the next connection, when its sender has long been told that it is lost.
        """
        self.let_go()
        self._pending = [each for each in self._pending if each.startswith((b"SUB ", b"UNSUB "))]
        self._pending_data_size = sum(map(len, self._pending))
        await super()._attempt_reconnect()
