"""
The connection: the one place that touches the client library.

It reconnects for ever, also where the client itself gives up, answers its own requests through one inbox, and ends what
waits for an answer at the moment the connection breaks. Nothing of the client's leaves this module but `Incoming`.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import nats.errors
from nats.aio.client import Client

from brokerkit.adapters.nats.failure import NoAnswer, meaning
from brokerkit.adapters.nats.options import Options
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost, Unauthorised

__all__ = ["Incoming", "Link", "Listener"]

_log = logging.getLogger("brokerkit.nats")
_FLUSH = 2.0
_CLOSE = 2.0
_LONGEST_BACKOFF = 5.0
_RECONNECT = (0.2, 0.5)
_DENIED = re.compile(r"permissions violation for (?:publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)


class Incoming(NamedTuple):
    """What arrived. headers: empty if there are none; `Status` stands among them for a message of the server's own."""

    subject: str
    reply: str
    data: bytes
    headers: Mapping[str, str]


OnMessage = Callable[[Incoming], None]


class Listener:
    """A subscription of the core protocol; it outlives every connection."""

    def __init__(self, subject: str, on_message: OnMessage) -> None:
        self.subject = subject
        self.on_message = on_message
        self.native: Any = None

    async def hear(self, message: Any) -> None:
        """Pass on what the client brings."""
        self.on_message(Incoming(message.subject, message.reply, message.data, message.headers or {}))


class _Client(Client):
    """The client, made to refuse a server that does not offer the encryption that was asked for, and to read headers quickly."""

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        """Do what the client does, at a third of its cost: it looks at every character of every name."""
        found: dict[str, str] = {}
        for line in raw.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            name = name.strip()
            if colon and name.isascii() and not (b" " in name or b"\t" in name):
                found[name.decode()] = value.strip().decode("utf-8", "replace")
        return found

    @property
    def told_version(self) -> str:
        return str(self._server_info.get("version", "unknown"))

    def _connect_command(self) -> bytes:
        if "tls" in self.options and not self._server_info.get("tls_required"):
            message = "nats: the server offers no TLS, and the URL asks for it"
            raise nats.errors.Error(message)
        return super()._connect_command()


class Link:
    """
    One connection, named by the redacted URL `where`.

    on_back: called (all of them) after each reconnection. max_payload: the server's limit in bytes.
    """

    def __init__(self, options: Options) -> None:
        self.where = options.url.text
        self.on_back: set[Callable[[], None]] = set()
        self._options = options
        self._context = options.url.context()
        self._client: _Client | None = None
        self._closed = False
        self._listeners: dict[Listener, None] = {}
        self._calls: dict[str, tuple[asyncio.Future[Incoming], str]] = {}
        self._count = 0
        self._inbox = ""
        self._tasks: set[asyncio.Task[None]] = set()
        self._up_again: asyncio.Event = asyncio.Event()
        self._first_errors: list[Exception] | None = None
        self._failed = asyncio.Event()

    @property
    def up(self) -> bool:
        """Say whether there is a connection now."""
        client = self._client
        return client is not None and not self._closed and client.is_connected

    @property
    def max_payload(self) -> int:
        """Return the server's limit for headers and body of a message together."""
        return self._client.max_payload if self._client is not None else 0

    @property
    def version(self) -> tuple[int, int]:
        """Return the server's version in numbers."""
        found = re.match(r"(\d+)\.(\d+)", self.server_version)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def server_version(self) -> str:
        """Return the server's version as it says it."""
        return self._client.told_version if self._client is not None else "unknown"

    async def connect(self) -> None:
        """Connect; one try at every host. Raises what `failure.meaning` makes of the last failure."""
        if self._closed:
            message = f"{self.where} is closed"
            raise Closed(message)
        if self._client is not None:
            return
        await self._open()
        self._inbox = self.new_inbox()
        await self.listen(f"{self._inbox}.*", self._answered)

    async def _open(self) -> None:
        """Make a client that is connected, or raise what its last failure means."""
        client, error = await self._try(verbose=False)
        if isinstance(error, ConnectionError | nats.errors.UnexpectedEOF):
            # A server that refuses a login closes at once, often before its reason was read. Asked to answer every line, it is
            # heard; the client of that try is not kept, for it would be answered for every message.
            told, reason = await self._try(verbose=True)
            if told is not None:
                await _abandon(told, None)
            error = reason or error
        if client is None:
            raise meaning(error or TimeoutError("no answer"), self.where)
        self._client = client

    async def _try(self, *, verbose: bool) -> tuple[_Client | None, BaseException | None]:
        """Try every host once; return a client that is connected, or what went wrong last."""
        client = _Client()
        errors: list[Exception] = []
        self._first_errors = errors
        self._failed.clear()
        arguments: dict[str, Any] = self._arguments(client)
        arguments["verbose"] = verbose
        connecting: asyncio.Future[None] = asyncio.ensure_future(client.connect(**arguments))
        failed = asyncio.ensure_future(self._failed.wait())
        either: list[asyncio.Future[Any]] = [connecting, failed]
        try:
            await asyncio.wait(
                either,
                timeout=self._options.connect_timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            ended = connecting.done() and not connecting.cancelled()
            error = connecting.exception() if ended else None
            if ended and error is None and client.is_connected:
                return client, None
            return None, error or (errors[-1] if errors else nats.errors.UnexpectedEOF() if ended else None)
        finally:
            failed.cancel()
            self._first_errors = None
            if not client.is_connected or not connecting.done():
                await _abandon(client, connecting)

    def _arguments(self, client: _Client) -> dict[str, Any]:
        options = self._options
        url = options.url
        hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in url.hosts]

        async def lost() -> None:
            self._lost(client)

        async def back() -> None:
            self._back(client)

        async def closed() -> None:
            self._gone(client)

        async def failed(error: Exception) -> None:
            self._heard(error)

        return {
            "servers": [f"nats://{host}" for host in hosts],
            "name": "brokerkit",
            "error_cb": failed,
            "disconnected_cb": lost,
            "reconnected_cb": back,
            "closed_cb": closed,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": random.uniform(*_RECONNECT),  # noqa: S311 - jitter
            "connect_timeout": options.connect_timeout,
            "ping_interval": options.ping_interval,
            "flush_timeout": _FLUSH,
            "tls": self._context,
            "user": url.user,
            "password": url.password,
            "token": options.token,
            "user_credentials": options.credentials,
            "nkeys_seed": options.nkey,
        }

    # -- what the client tells

    def _heard(self, error: Exception) -> None:
        if self._first_errors is not None:
            self._first_errors.append(error)
            if len(self._first_errors) >= len(self._options.url.hosts):
                self._failed.set()
            return
        denied = _DENIED.search(str(error))
        if denied is None:
            _log.info("%s: %s", self.where, str(error) or type(error).__name__)
            return
        _log.error("%s: %s", self.where, error)
        for future, subject in list(self._calls.values()):
            if subject.lower() == denied[1].lower() and not future.done():
                future.set_exception(Unauthorised(f"{self.where}: {error}"))

    def _lost(self, client: _Client) -> None:
        if client is self._client:
            self._end_calls("the connection broke")

    def _back(self, client: _Client) -> None:
        if client is self._client:
            _log.info("%s: connected again", self.where)
            self._tell_back()

    def _tell_back(self) -> None:
        self._up_again.set()
        for tell in list(self.on_back):
            tell()

    def _gone(self, client: _Client) -> None:
        """Replace a client that has given up: it does so when a server refuses it with an error."""
        if client is not self._client or self._closed:
            return
        self._end_calls("the connection was ended")
        self._spawn(self._replace())

    async def _replace(self) -> None:
        pause = 0.1
        while not self._closed:
            try:
                await self._open()
                client = self._client
                for listener in list(self._listeners):
                    await self._attach(listener)
                if client is self._client:
                    self._tell_back()
                    return
            except (BrokerkitError, nats.errors.Error, OSError) as error:
                _log.warning("%s: cannot connect again: %s", self.where, error)
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
            pause = min(_LONGEST_BACKOFF, pause * 2)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_calls(self, why: str) -> None:
        for future, _ in list(self._calls.values()):
            if not future.done():
                future.set_exception(NoAnswer(why))

    # -- what is asked of it

    async def ready(self, timeout: float) -> None:
        """Wait until there is a connection, at most so many seconds; raises `ConnectionLost` or `Closed`."""
        deadline = asyncio.get_running_loop().time() + timeout
        while not self.up:
            if self._closed or self._client is None:
                message = f"{self.where} is {'closed' if self._closed else 'not connected'}"
                raise Closed(message)
            self._up_again.clear()
            left = deadline - asyncio.get_running_loop().time()
            waiting = asyncio.ensure_future(self._up_again.wait())
            await asyncio.wait([waiting], timeout=max(0.0, left))
            waiting.cancel()
            if left <= 0 and not self.up:
                message = f"{self.where} cannot be reached"
                raise ConnectionLost(message)

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        assert self._client is not None  # noqa: S101 - connected
        return str(self._client.new_inbox())

    async def publish(
        self, subject: str, data: bytes = b"", *, reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        """Write; nothing is known of the outcome. Raises `NoAnswer` if there is no connection: nothing is kept for later."""
        client = self._client
        if client is None or not client.is_connected:
            message = "there is no connection"
            raise NoAnswer(message)
        try:
            await client.publish(subject, data, reply, headers)
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(str(error)) from error

    async def start_call(
        self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None
    ) -> "asyncio.Future[Incoming]":
        """Write a request and return the future of its answer; who drops it cancels it."""
        self._count += 1
        number = str(self._count)
        future: asyncio.Future[Incoming] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_retrieve)
        self._calls[number] = (future, subject)
        try:
            await self.publish(subject, data, reply=f"{self._inbox}.{number}", headers=headers)
        except BaseException:
            del self._calls[number]
            raise
        future.add_done_callback(lambda _: self._calls.pop(number, None))
        return future

    async def call(self, subject: str, data: bytes = b"", *, timeout: float) -> Incoming:
        """Ask and return the answer. Raises `NoAnswer`; `responders` is False if nobody listens there."""
        future = await self.start_call(subject, data)
        await asyncio.wait([future], timeout=timeout)
        if not future.done():
            future.cancel()
            message = f"no answer from {subject} within {timeout:g} s"
            raise NoAnswer(message)
        return future.result()

    def _answered(self, message: Incoming) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is None or call[0].done():
            return
        if message.headers.get("Status") == "503":
            call[0].set_exception(NoAnswer(f"nothing listens at {call[1]}", responders=False))
        else:
            call[0].set_result(message)

    async def listen(self, subject: str, on_message: OnMessage) -> Listener:
        """Subscribe; what comes is passed on at once, on every connection from now on."""
        listener = Listener(subject, on_message)
        try:
            await self._attach(listener)
        except (nats.errors.Error, OSError) as error:
            raise NoAnswer(str(error)) from error
        self._listeners[listener] = None
        return listener

    async def _attach(self, listener: Listener) -> None:
        assert self._client is not None  # noqa: S101 - connected
        client: Any = self._client  # a future in its signature has no type
        listener.native = await client.subscribe(
            listener.subject, cb=listener.hear, pending_msgs_limit=0, pending_bytes_limit=0
        )

    async def drain(self, listener: Listener, timeout: float = _FLUSH) -> None:
        """Unsubscribe, and return when all that the server had sent before has been passed on, or the time is over."""
        known = listener in self._listeners
        self._listeners.pop(listener, None)
        if not (known and self.up):
            return
        draining = asyncio.ensure_future(listener.native.drain())
        draining.add_done_callback(_retrieve)
        await asyncio.wait([draining], timeout=timeout)
        draining.cancel()

    async def close(self) -> None:
        """Close, within a few seconds whatever the server does."""
        self._closed = True
        self._end_calls("the connection was closed")
        self._up_again.set()
        for task in list(self._tasks):
            task.cancel()
        client, self._client = self._client, None
        if client is not None:
            closing = asyncio.ensure_future(client.close())
            closing.add_done_callback(_retrieve)
            await asyncio.wait([closing], timeout=_CLOSE)
            closing.cancel()
        self._listeners.clear()


async def _abandon(client: Client, connecting: "asyncio.Future[None] | None") -> None:
    """Let go of a client that is not used."""
    ending: list[asyncio.Future[None]] = [asyncio.ensure_future(client.close())]
    if connecting is not None:
        connecting.cancel()
        ending.append(connecting)
    for future in ending:
        future.add_done_callback(_retrieve)
    await asyncio.wait(ending, timeout=_CLOSE)


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Look at an exception that nobody waits for."""
    if not future.cancelled():
        future.exception()
