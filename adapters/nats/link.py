"""
The connection.

It reconnects for ever, also where the client itself gives up, answers its own requests through one inbox, and ends what
waits for an answer at the moment the connection breaks. Nothing of the client's leaves this module but `Incoming`.
"""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import nats.errors

from brokerkit.adapters.nats.client import BrokerClient, Incoming, OnMessage
from brokerkit.adapters.nats.failure import NoAnswer, meaning
from brokerkit.adapters.nats.options import Options
from brokerkit.errors import BrokerkitError, Closed, ConnectionLost, Unauthorised

__all__ = ["Call", "Incoming", "Link", "Listener"]

_log = logging.getLogger("brokerkit.nats")
_FLUSH = 2.0
_CLOSE = 2.0
_LONGEST_BACKOFF = 5.0
_RECONNECT = (0.2, 0.5)
_DENIED = re.compile(r"permissions violation for (?:publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)


class Listener:
    """A subscription of the core protocol; it outlives every connection."""

    def __init__(self, subject: str, on_message: OnMessage) -> None:
        self.subject = subject
        self.on_message = on_message
        self.native: Any = None


class Call(NamedTuple):
    """
    A request that was written: the number by which its answer comes, where it went, and what ends with the answer.

    stores: it is a message for a stream, so what others who listen there may answer is passed over.
    """

    number: str
    subject: str
    future: "asyncio.Future[Incoming | None]"
    stores: bool = False


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
        self._client: BrokerClient | None = None
        self._replacing = False
        self._closed = False
        self._listeners: dict[Listener, None] = {}
        self._calls: dict[str, Call] = {}
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

    async def _try(self, *, verbose: bool) -> tuple[BrokerClient | None, BaseException | None]:
        """Try every host once; return a client that is connected, or what went wrong last."""
        client = BrokerClient()
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

    def _arguments(self, client: BrokerClient) -> dict[str, Any]:
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
        for call in list(self._calls.values()):
            if call.subject.lower() == denied[1].lower():
                self._fail(call, Unauthorised(f"{self.where}: {error}"))

    def _lost(self, client: BrokerClient) -> None:
        if client is self._client:
            self._end_calls("the connection broke")

    def _back(self, client: BrokerClient) -> None:
        if client is self._client:
            _log.info("%s: connected again", self.where)
            self._tell_back()

    def _tell_back(self) -> None:
        self._up_again.set()
        for tell in list(self.on_back):
            tell()

    def _gone(self, client: BrokerClient) -> None:
        """Replace a client that has given up: it does so when a server refuses it with an error."""
        if client is not self._client or self._closed:
            return
        self._end_calls("the connection was ended")
        if not self._replacing:  # else it is noticed there
            self._replacing = True
            self._spawn(self._replace())

    async def _replace(self) -> None:
        try:
            await self._replace_client()
        finally:
            self._replacing = False

    async def _replace_client(self) -> None:
        pause = 0.1
        gone = self._client
        while not self._closed:
            try:
                await self._open()
                client = self._client
                for listener in list(self._listeners):
                    await self._attach(listener)
                if client is not None and not client.is_closed:
                    self._tell_back()
                    return
            except (BrokerkitError, nats.errors.Error, OSError) as error:
                _log.warning("%s: cannot connect again: %s", self.where, error)
            half, self._client = self._client, gone
            if half is not None and half is not gone:
                await _abandon(half, None)  # else what it listens to would come twice
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
            pause = min(_LONGEST_BACKOFF, pause * 2)

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end_calls(self, why: str) -> None:
        for call in list(self._calls.values()):
            self._fail(call, NoAnswer(why))

    def _fail(self, call: Call, error: Exception) -> None:
        self._calls.pop(call.number, None)
        if not call.future.done():
            call.future.set_exception(error)
            call.future.exception()  # it is no news for the loop if nobody waits for it any more

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

    async def publish(self, subject: str, data: bytes = b"", *, reply: str = "") -> None:
        """Write; nothing is known of the outcome. Raises `NoAnswer` if there is no connection: nothing is kept for later."""
        self._put(_pub(subject, reply, data))
        await self.room()

    def _put(self, command: bytes) -> None:
        client = self._client
        if client is None or not client.is_connected:
            message = "there is no connection"
            raise NoAnswer(message, written=False)
        client.put(command)

    @property
    def full(self) -> bool:
        """Say whether so much waits to be written that `room` is worth a wait."""
        return self._client is not None and self._client.full

    async def room(self) -> None:
        """Wait while too much waits to be written, but not for ever."""
        client = self._client
        if client is not None and client.full:
            await client.room()

    def begin(self, subject: str, data: bytes = b"", head: bytes | None = None, before: bytes = b"") -> Call:
        """
        Write a request, at once and without a look at how much is waiting; who drops the answer calls `forget`.

        head: its headers as they are on the wire; one that has them is a message to be stored. before: commands that are
        written with it. Raises `NoAnswer`, nothing written, if there is no connection. The future ends with the
        answer or with `NoAnswer` or `Unauthorised`.
        """
        self._count += 1
        number = str(self._count)
        reply = f"{self._inbox}.{number}"
        self._put(
            before + (_pub(subject, reply, data) if head is None else _hpub(subject, reply, head, data))
        )
        call = Call(number, subject, asyncio.get_running_loop().create_future(), stores=head is not None)
        self._calls[number] = call
        return call

    def forget(self, call: Call) -> None:
        """Listen no more for the answer."""
        self._calls.pop(call.number, None)

    async def call(
        self, subject: str, data: bytes = b"", *, timeout: float, before: Sequence[tuple[str, bytes]] = ()
    ) -> Incoming:
        """
        Ask and return the answer. before: messages that are written just before, all in one.

        Raises `NoAnswer`; `responders` is False if nobody listens there, `written` if there was no connection.
        """
        call = self.begin(subject, data, before=b"".join(_pub(to, "", what) for to, what in before))
        try:
            await self.room()
            await asyncio.wait([call.future], timeout=timeout)
        finally:
            self.forget(call)
        answer = call.future.result() if call.future.done() else None
        if answer is None:
            message = f"no answer from {subject} within {timeout:g} s"
            raise NoAnswer(message)
        return answer

    def _answered(self, message: Incoming) -> None:
        call = self._calls.get(message.subject.rpartition(".")[2])
        if call is None:
            return
        if message.headers.get("Status") == "503":
            self._fail(call, NoAnswer(f"nothing listens at {call.subject}", responders=False))
        elif not call.stores or b'"stream"' in message.data or b'"error"' in message.data:
            self.forget(call)
            if not call.future.done():
                call.future.set_result(message)

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
        listener.native = await self._client.listen(listener.subject, listener.on_message)

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
            client.let_go()
        self._listeners.clear()


def _pub(subject: str, reply: str, data: bytes) -> bytes:
    return b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply.encode(), len(data), data)


def _hpub(subject: str, reply: str, head: bytes, data: bytes) -> bytes:
    return b"HPUB %b %b %d %d\r\n%b%b\r\n" % (
        subject.encode(),
        reply.encode(),
        len(head),
        len(head) + len(data),
        head,
        data,
    )


async def _abandon(client: BrokerClient, connecting: "asyncio.Future[None] | None") -> None:
    """Let go of a client that is not used."""
    ending: list[asyncio.Future[None]] = [asyncio.ensure_future(client.close())]
    if connecting is not None:
        connecting.cancel()
        ending.append(connecting)
    for future in ending:
        future.add_done_callback(_retrieve)
    await asyncio.wait(ending, timeout=_CLOSE)
    client.let_go()


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Look at an exception that nobody waits for."""
    if not future.cancelled():
        future.exception()
