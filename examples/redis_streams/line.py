"""
Commands to one Redis server, over a few connections that belong to one event loop.

A caller that is cancelled abandons its answer, not the command: a half-read connection is never seen by anybody else. Nothing is
repeated here, and the client's own repeating is off, because only the caller knows what a second try would mean.
"""

import asyncio
import hashlib
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from redis import exceptions
from redis.asyncio.connection import Connection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from brokerkit.brokerurl import BrokerUrl
from brokerkit.errors import Closed
from brokerkit.examples.redis_streams.failure import Broken, connecting

__all__ = ["FAILURES", "Argument", "Line", "Wire", "hang_up"]

_log = logging.getLogger(__name__)

Argument = str | bytes | int
FAILURES = (
    exceptions.RedisError,
    Broken,
    Closed,
)  # what a command may raise, beside `SendError` from connecting

_SCRIPT = Path(__file__).with_name("place.lua").read_text(encoding="utf-8")
_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()
_GONE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.InvalidResponse,
    TimeoutError,
    OSError,
)
_FAREWELL = 1.0  # seconds
_ANSWERS = (exceptions.BusyLoadingError, exceptions.AuthenticationError, exceptions.AuthorizationError)


class Wire(Protocol):
    """What is used of the client's connection."""

    async def connect(self) -> None:
        """Open it and log in."""

    async def disconnect(self, *, nowait: bool = False) -> None:
        """Close it."""

    async def can_read(self) -> bool:
        """Return whether something is there that nobody has asked for, such as the end."""
        ...

    async def send_command(self, *args: Argument) -> None:
        """Write one command."""

    async def read_response(self) -> object:
        """Read one answer; an error of the server is raised."""


class _Encrypted(Connection):
    """A connection with a TLS context that is made already; the client would make its own."""

    context: ssl.SSLContext | None = None

    def _connection_arguments(self) -> Mapping[str, object]:
        return {"host": self.host, "port": self.port, "ssl": self.context}


class Line:
    """The way to the server from one event loop. timeout: seconds for connecting, and for one command."""

    def __init__(self, url: BrokerUrl, *, timeout: float, most: int = 8) -> None:
        self._url = url
        self._timeout = timeout
        self._room = asyncio.Semaphore(most)
        self._idle: list[Wire] = []
        self._running: set[asyncio.Task[object]] = set()
        self._process = os.getpid()
        self._closed = False

    async def script(self, base: str, action: str, *args: Argument) -> object:
        """Run an action of place.lua on the keys of one channel."""
        try:
            return await self.command("EVALSHA", _SHA, 1, base, action, *args)
        except exceptions.NoScriptError:  # nothing was done: the server has been started since
            return await self.command("EVAL", _SCRIPT, 1, base, action, *args)

    async def command(self, *args: Argument) -> object:
        """
        Run one command and return its answer.

        Raises a `SendError` or `ConfigurationError` if there is no connection (nothing was sent), `Broken` if the
        connection ended under way, and the server's own error as the client names it.
        """
        if self._closed or os.getpid() != self._process:
            raise Closed(
                f"{self._url.text} is closed"
                if self._closed
                else "the connection belongs to the parent process"
            )
        task = asyncio.get_running_loop().create_task(self._run(args))
        self._running.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    async def open(self) -> Wire:
        """Return a new connection, logged in; the caller closes it."""
        host, port = self._url.hosts[0]
        settings: dict[str, Any] = {
            "host": host,
            "port": port,
            "db": int(self._url.path or 0),
            "username": self._url.user or None,
            "password": self._url.password,
            "client_name": "brokerkit",
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": self._timeout,
            "retry": Retry(NoBackoff(), 0),
        }
        context = self._url.context()
        if context is None:
            wire = cast("Wire", Connection(**settings))
        else:
            encrypted = _Encrypted(**settings)
            encrypted.context = context
            wire = cast("Wire", encrypted)
        try:
            async with asyncio.timeout(self._timeout):
                await wire.connect()
        except (exceptions.RedisError, OSError, TimeoutError) as error:
            await _drop(wire)
            raise connecting(error, self._url.text) from error
        except BaseException:
            await _drop(wire)
            raise
        return wire

    async def close(self, grace: float = 1.0) -> None:
        """Wait a little for what is under way, and close."""
        self._closed = True
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=grace)
        idle, self._idle = self._idle, []
        await asyncio.gather(*(hang_up(wire) for wire in idle))

    async def _run(self, args: tuple[Argument, ...]) -> object:
        async with self._room:
            wire = await self._wire()
            try:
                async with asyncio.timeout(self._timeout):
                    await wire.send_command(*args)
                    answer = await wire.read_response()
            except exceptions.ResponseError:
                self._idle.append(wire)
                raise
            except _ANSWERS:
                await _drop(wire)
                raise
            except _GONE as error:
                await _drop(wire)
                message = f"the connection to {self._url.text} was lost: {error!r}"
                raise Broken(message) from error
            except BaseException:
                await _drop(wire)
                raise
            self._idle.append(wire)
            return answer

    async def _wire(self) -> Wire:
        while self._idle:
            wire = self._idle.pop()
            if await _usable(wire):
                return wire
            await _drop(wire)
        return await self.open()

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # whoever has asked may be gone


async def _usable(wire: Wire) -> bool:
    try:
        return not await wire.can_read()
    except (exceptions.RedisError, OSError):
        return False


async def hang_up(wire: Wire) -> None:
    """Close a connection and wait a moment for the server to say so too, as TLS wants it."""
    try:
        async with asyncio.timeout(_FAREWELL):
            await wire.disconnect()
    except (exceptions.RedisError, TimeoutError) as error:
        _log.debug("a connection was closed without an answer: %r", error)


async def _drop(wire: Wire) -> None:
    await wire.disconnect(nowait=True)
