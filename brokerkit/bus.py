"""
The bus: one broker, handlers on it, publishing to it.
"""

import asyncio
import functools
import logging
import math
import os
import random
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import copy_context
from types import TracebackType
from typing import Any, Literal, Self, TypeVar, cast

from brokerkit.adapter import Adapter, Order, Provisions, Start, open_adapter, redacted
from brokerkit.clock import SYSTEM, Clock
from brokerkit.codec import Codec, JsonCodec
from brokerkit.engine import Engine
from brokerkit.envelope import Form
from brokerkit.errors import BadName, Closed, ConfigurationError, ConnectionLost, NotFound
from brokerkit.event import Event
from brokerkit.hooks import Hook
from brokerkit.message import Address
from brokerkit.names import check_name, with_prefix
from brokerkit.pipeline import Keeps, Pattern
from brokerkit.publisher import HeadersLike, Outcome, Outgoing, Publisher, flush_outputs
from brokerkit.router import Consumption, Router

__all__ = ["Bus", "SyncBus"]

T = TypeVar("T")
Lifespan = Callable[["Bus"], AbstractAsyncContextManager[Any]]
Provisioning = Literal["create", "verify", "off"]

_log = logging.getLogger("brokerkit")
_LONGEST_BACKOFF = 5.0
_ONE_REQUEST = 0.3
_LONGEST_PREFIX = 20
_MEMORY = "memory://"


class Bus(Router):
    """
    One event bus over one broker.

    url: `memory://`, `sqlite:///events.db`, or what an installed adapter understands.
    name: the `source` of what is published; the same over restarts and replicas. Optional on `memory://` only.
    prefix: one word, put before every channel's name at the broker to keep deployments apart; a deployment without a
    prefix must not use another's as the first word of a channel.
    patterns: default patterns of every handler. envelope: `structured`, `binary` or `plain`.
    lifespan: an async context manager of the bus that yields state for handlers, a mapping or one object.
    connect_timeout, publish_timeout, grace: seconds.
    provisioning: `create` what is missing, `verify` and name all that is missing, or `off`.

    A deployment's `BROKERKIT_URL`, `BROKERKIT_NAME` and `BROKERKIT_PREFIX` win over what the code says. Nothing touches
    the broker before `async with bus`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        name: str | None = None,
        prefix: str = "",
        patterns: Sequence[Pattern] = (),
        envelope: Form = "structured",
        codec: Codec | None = None,
        lifespan: Lifespan | None = None,
        hooks: Sequence[Hook] = (),
        connect_timeout: float = 30.0,
        publish_timeout: float = 30.0,
        grace: float = 30.0,
        provisioning: Provisioning = "create",
        clock: Clock = SYSTEM,
        **options: object,
    ) -> None:
        super().__init__(patterns=patterns)
        url = _deployed_url(url)
        if not url:
            message = (
                "no broker: give Bus(url) or set BROKERKIT_URL, for example memory:// or sqlite:///events.db"
            )
            raise ConfigurationError(message)
        prefix = os.environ.get("BROKERKIT_PREFIX") or prefix
        if prefix:
            _check_prefix(prefix)
        if envelope not in ("structured", "binary", "plain"):
            message = f"envelope={envelope!r}: use 'structured', 'binary' or 'plain'"
            raise ConfigurationError(message)
        name = os.environ.get("BROKERKIT_NAME") or name
        if name is None and url.startswith(_MEMORY):
            name = "memory"
        self.url = url
        self.prefix = prefix
        self.grace = grace
        self.hooks: list[Hook] = list(hooks)
        self.adapter: Adapter = open_adapter(url, **options)
        self.engines: list[Engine] = []
        self.abandoned = 0
        """Handlers that were still running when the last drain gave up on them."""
        self._lifespan = lifespan
        self.connect_timeout = connect_timeout
        self._provisioning: Provisioning = provisioning
        self._clock = clock
        self._codec = codec or JsonCodec()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._consuming = False
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None
        self._stop: asyncio.Event | None = None
        self._sync: SyncBus | None = None
        self.publisher = Publisher(
            name=name, codec=self._codec, form=envelope, prefix=prefix, timeout=publish_timeout, clock=clock
        )

    def __repr__(self) -> str:
        return f"Bus({redacted(self.url)!r}, name={self.name!r})"

    @property
    def name(self) -> str | None:
        """Return the `source` of what is published."""
        return self.publisher.name

    @property
    def ready(self) -> bool:
        """Say whether the bus is connected and every group takes messages."""
        working = bool(self.engines) or not self.subscribers
        return self._loop is not None and working and all(engine.ready for engine in self.engines)

    # -- connecting

    async def connect(self) -> None:
        """
        Connect, trying again with back-off and jitter for `connect_timeout` seconds.

        Raises `ConnectionLost` when the time is over, and at once what cannot get better (`Unauthorised`,
        `ConfigurationError`).
        """
        if self._loop is not None:
            message = f"{self!r} is connected already"
            raise ConfigurationError(message)
        if self._closed:
            message = f"{self!r} was closed and cannot be connected again; make a new Bus"
            raise Closed(message)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.connect_timeout
        backoff = 0.1
        while True:
            try:
                await self._connect_once(deadline)
                break
            except ConnectionLost as error:
                wait = random.uniform(backoff / 2, backoff)  # noqa: S311 - jitter
                if loop.time() + wait >= deadline:
                    raise
                _log.warning("%s cannot be reached (%s); trying again", redacted(self.url), error)
            await asyncio.sleep(wait)
            backoff = min(backoff * 2, _LONGEST_BACKOFF)
        self._loop = loop
        self.publisher.adapter = self.adapter

    async def _connect_once(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.adapter.connect()
        except TimeoutError as error:
            message = (
                f"{redacted(self.url)} did not answer within connect_timeout, {self.connect_timeout:g} s"
            )
            raise ConnectionLost(message) from error

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        self.publisher.adapter = None
        self._loop = None
        await self.adapter.close()

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # -- publishing

    async def publish(
        self,
        channel: str,
        data: Any,
        *,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 - the attribute's own name in CloudEvents
        id: str | None = None,  # noqa: A002 - the attribute's own name in CloudEvents
        subject: str | None = None,
        time: str | None = None,
        headers: HeadersLike = (),
        extensions: Mapping[str, str] | None = None,
        envelope: Form | None = None,
        must_route: bool = False,
        hold: bool = True,
        timeout: float | None = None,
    ) -> Event[bytes]:
        """
        Publish one event and return it, once the broker has confirmed it.

        Tried again under the same id for `timeout` seconds (default: the bus's `publish_timeout`) while the broker is
        unreachable or the outcome unknown; then `PublishUnknown` or `ConnectionLost` is raised. What cannot travel raises
        its typed error before anything moves. `must_route=True` raises `Unroutable` if no group reads the channel.

        Inside a handler it returns at once and the event is sent when the handler has succeeded, with an id that a second
        run repeats; `hold=False` sends it now.
        """
        outgoing = Outgoing(
            data=data,
            key=key,
            type=type,
            id=id,
            subject=subject,
            time=time,
            headers=headers,
            extensions=extensions or {},
        )
        (outcome,) = await self.publisher.publish(
            channel, [outgoing], form=envelope, must_route=must_route, hold=hold, timeout=timeout
        )
        if outcome.error is not None:
            raise outcome.error
        return outcome.event

    async def publish_many(
        self,
        channel: str,
        items: Iterable[Any],
        *,
        envelope: Form | None = None,
        must_route: bool = False,
        hold: bool = True,
        timeout: float | None = None,
    ) -> list[Outcome]:
        """
        Publish several events and return one outcome for each, in order.

        An item is an `Outgoing`, or the data alone. What cannot travel raises before anything moves; a failure at the
        broker is an outcome and harms only its own message. What has to be sent again goes behind what was confirmed, so
        after a partial failure messages of one key may stand in another order than they were given.
        """
        outgoing = [item if isinstance(item, Outgoing) else Outgoing(data=item) for item in items]
        if not outgoing:
            return []
        return await self.publisher.publish(
            channel, outgoing, form=envelope, must_route=must_route, hold=hold, timeout=timeout
        )

    @property
    def sync(self) -> "SyncBus":
        """Return the blocking face of this bus, for threads and scripts."""
        if self._sync is None:
            self._sync = SyncBus(self)
        return self._sync

    # -- consuming

    @asynccontextmanager
    async def consuming(self) -> AsyncGenerator[Self]:
        """
        Run the consumers in the background until the block is left, then drain them.

        Everything that can be refused is refused here, before the first message: handlers that conflict, a policy that the
        order cannot keep, state that the lifespan does not give, places that are missing.
        """
        if self._loop is None:
            message = "connect first: 'async with bus:' around 'async with bus.consuming():'"
            raise Closed(message)
        if self._consuming:
            message = f"{self!r} is consuming already; one 'async with bus.consuming():' at a time"
            raise ConfigurationError(message)
        self._consuming = True
        try:
            async with self._consume():
                yield self
        finally:
            self._consuming = False

    @asynccontextmanager
    async def _consume(self) -> AsyncGenerator[None]:
        consumptions = self.consumptions()
        for consumption in consumptions:
            consumption.check(self.adapter.capabilities)
        async with AsyncExitStack() as stack:
            state = await self._enter_lifespan(stack)
            for consumption in consumptions:
                for subscriber in consumption.subscribers:
                    subscriber.endpoint.check_state(state)
            await self._start_patterns(consumptions, stack)
            await self._provision(consumptions)
            stack.push_async_callback(self._drain)
            await self._start_engines(consumptions, state)
            yield

    async def _enter_lifespan(self, stack: AsyncExitStack) -> Mapping[str, Any]:
        if self._lifespan is None:
            return {}
        state = await stack.enter_async_context(self._lifespan(self))
        if state is None:
            return {}
        return cast("Mapping[str, Any]", state) if isinstance(state, Mapping) else _Same(state)

    async def _start_patterns(self, consumptions: Sequence[Consumption], stack: AsyncExitStack) -> None:
        started: set[int] = set()
        for consumption in consumptions:
            for pattern in consumption.patterns:
                if isinstance(pattern, Keeps) and id(pattern) not in started:
                    started.add(id(pattern))
                    await pattern.start()
                    stack.push_async_callback(pattern.close)

    async def _provision(self, consumptions: Sequence[Consumption]) -> None:
        if self._provisioning == "off":
            return
        missing = await self._provisioned(self._places(consumptions), create=self._provisioning == "create")
        if missing and self._provisioning == "verify":
            message = f"missing at {redacted(self.url)}: {', '.join(missing)}; create them, or use provisioning='create'"
            raise NotFound(message)

    def places(self) -> list[tuple[Address, Start, Order]]:
        """Return the inlets that the handlers need at the broker, with where a new group starts and its order."""
        return self._places(self.consumptions())

    async def provision(self, *, create: bool) -> Sequence[str]:
        """
        Create what the handlers need at the broker, or with `create=False` only look; returns what was missing.

        The bus is connected. Where a broker needs nothing made beforehand, nothing is missing. Raises what the broker
        says, `Unauthorised` for one.
        """
        return await self._provisioned(self.places(), create=create)

    async def _provisioned(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        adapter = self.adapter
        return await adapter.provision(places, create=create) if isinstance(adapter, Provisions) else ()

    def _places(self, consumptions: Sequence[Consumption]) -> list[tuple[Address, Start, Order]]:
        return [
            (
                Address(with_prefix(self.prefix, each.channel), each.group, "inlet"),
                each.settings.start,
                each.settings.order,
            )
            for each in consumptions
        ]

    async def _start_engines(self, consumptions: Sequence[Consumption], state: Mapping[str, Any]) -> None:
        alone = asyncio.Lock()
        for consumption in consumptions:
            engine = Engine(
                self.adapter,
                consumption.channel,
                consumption.group,
                consumption.bind(self._codec, self._threads, state, flush_outputs),
                consumption.settings,
                prefix=self.prefix,
                hooks=self.hooks,
                clock=self._clock,
                alone=alone,
            )
            await engine.start()
            self.engines.append(engine)
        for line in self.plan():
            _log.info("%s", line)

    def _threads(self) -> Executor:
        """Return the pool of `def` handlers: as many threads as may run at once."""
        if self._executor is None:
            blocking = sum(each.settings.concurrency for each in self.subscribers if each.endpoint.blocking)
            self._executor = ThreadPoolExecutor(max_workers=max(1, blocking), thread_name_prefix="brokerkit")
        return self._executor

    async def _drain(self) -> None:
        stops = (engine.stop(self.grace) for engine in self.engines)
        results = await asyncio.gather(*stops, return_exceptions=True)
        self.abandoned = sum(engine.counts.abandoned for engine in self.engines)
        self.engines = []
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
            self._executor = None
        for result in results:
            if isinstance(result, BaseException):
                raise result

    def plan(self) -> list[str]:
        """Return what will be consumed, by whom and inside which patterns, line by line."""
        return [line for consumption in self.consumptions() for line in consumption.describe()]

    async def run(self) -> None:
        """
        Connect, consume until SIGTERM or SIGINT (or `stop()`), drain within `grace`, close.

        A second signal, at least 0.3 s after the first, cuts the grace to nothing.
        """
        self._stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals = (
            (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
        )
        asked = -math.inf

        def on_signal() -> None:
            # shells, `timeout` and process managers signal a process and its group: one request, two signals
            nonlocal asked
            if loop.time() - asked > _ONE_REQUEST:
                self.stop()
            asked = loop.time()

        for number in signals:
            loop.add_signal_handler(number, on_signal)
        try:
            if await self._connect_unless(self._stop):
                try:
                    async with self.consuming():
                        await self._stop.wait()
                finally:
                    await self.close()
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            self._stop = None

    async def _connect_unless(self, stop: asyncio.Event) -> bool:
        """Connect, or give up as soon as somebody asks to stop; True if connected."""
        connecting = asyncio.create_task(self.connect())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait([connecting, stopping], return_when=asyncio.FIRST_COMPLETED)
            if connecting.done():
                connecting.result()
                return True
        finally:
            stopping.cancel()
            if not connecting.done():
                connecting.cancel()
                await asyncio.gather(connecting, return_exceptions=True)
                await self.close()
        return False

    def stop(self) -> None:
        """End `run()`: drain and leave. Called again, it cancels what still runs."""
        if self._stop is None:
            return
        if self._stop.is_set():
            for engine in self.engines:
                engine.hurry()
        self._stop.set()


def _check_prefix(prefix: str) -> None:
    """One short word: with dots, or too long, prefix and channel could not be told apart, or be too long together."""
    if "." in check_name("prefix", prefix) or len(prefix) > _LONGEST_PREFIX:
        message = f"prefix {prefix!r}: use one word without dots, of at most {_LONGEST_PREFIX} characters"
        raise BadName(message)


def _deployed_url(url: str | None) -> str | None:
    """Return the deployment's URL if there is one; that it overrides another is said aloud, once for each bus."""
    deployed = os.environ.get("BROKERKIT_URL")
    if deployed and url and deployed != url:
        _log.warning("BROKERKIT_URL (%s) is used instead of %s", redacted(deployed), redacted(url))
    return deployed or url


class _Same(Mapping[str, Any]):
    """The one object that a lifespan yielded, under whatever name a handler asks for it."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __getitem__(self, name: str) -> Any:
        return self._value

    def __contains__(self, name: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 1


class SyncBus:
    """
    The bus for code without an event loop: threads and scripts.

    Where the bus is connected already, its own loop does the work; else `with bus.sync:` connects it on a thread of its own.
    Every method blocks until its outcome is known and must not be called from the bus's own loop.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._thread: threading.Thread | None = None
        self._own: asyncio.AbstractEventLoop | None = None

    def __enter__(self) -> Self:
        self._own = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._own.run_forever, name="brokerkit sync", daemon=True)
        self._thread.start()
        try:
            self._call(self._own, self._bus.connect)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._own is not None  # noqa: S101 - entered
        try:
            self._call(self._own, self._bus.close)
        finally:
            self._end()

    def _end(self) -> None:
        assert self._own is not None  # noqa: S101 - entered
        assert self._thread is not None  # noqa: S101 - entered
        self._own.call_soon_threadsafe(self._own.stop)
        self._thread.join()
        self._own.close()
        self._own = self._thread = None

    def publish(self, channel: str, data: Any, **how: Any) -> Event[bytes]:
        """Do what `Bus.publish` does, and block until it is done."""
        return self._run(functools.partial(self._bus.publish, channel, data, **how))

    def publish_many(self, channel: str, items: Iterable[Any], **how: Any) -> list[Outcome]:
        """Do what `Bus.publish_many` does, and block until it is done."""
        return self._run(functools.partial(self._bus.publish_many, channel, items, **how))

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        loop = self._bus._loop  # noqa: SLF001 # pyright: ignore[reportPrivateUsage] - two faces of one thing
        if loop is None:
            message = "the bus is not connected: use it inside 'with bus.sync:' or 'async with bus:'"
            raise Closed(message)
        return self._call(loop, work)

    def _call(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            message = "bus.sync was called from the bus's own event loop and would wait for itself; use 'await bus.publish'"
            raise ConfigurationError(message)
        context = copy_context()
        done: Future[T] = Future()

        def begin() -> None:
            task = loop.create_task(work(), context=context)
            task.add_done_callback(functools.partial(_hand_over, done))

        loop.call_soon_threadsafe(begin)
        return done.result()


def _hand_over(done: "Future[T]", task: "asyncio.Task[T]") -> None:
    if task.cancelled():
        done.set_exception(Closed("the bus's event loop was stopped before this was done"))
    elif (error := task.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(task.result())
