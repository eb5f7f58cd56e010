"""
Dedupe: handle an event once, as far as a memory of ids can.
"""

import asyncio
import logging
import math
import random
from asyncio import AbstractEventLoop, CancelledError, Task, TimerHandle
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError
from brokerkit.hooks import Alarm, Hook, tell
from brokerkit.patterns._identity import Scope, scope_of
from brokerkit.patterns._interrupt import Handling, as_coroutine, rest
from brokerkit.patterns.dedupe.memory import MemoryStore
from brokerkit.patterns.dedupe.store import Done, Store, Taken, Token
from brokerkit.pipeline import Control, Handler, Keeps, Place
from brokerkit.settlement import ACK, Ack, Retry, Settle, Settlement

__all__ = ["DedupePattern", "dedupe"]

T = TypeVar("T")

_log = logging.getLogger("brokerkit.dedupe")

_REASON = "dedupe"
_LONGEST_PAUSE = 10.0
_GRACE = 5.0


def dedupe(
    store: Store | None = None,
    *,
    lease: float = 60.0,
    window: float = 7 * 86400.0,
    key: Callable[[Delivery], str] | None = None,
    hooks: Sequence[Hook] = (),
) -> "DedupePattern":
    """
    Ack what has finished before, and let nobody handle an event while another does.

    store: the memory. None for one inside this process, which is an optimisation only: it forgets at a restart and sees no
        other process. `sql_store(engine)` is shared and durable.
    lease: seconds for which a claim holds without a sign of life; renewed every third of it while the handler runs. After a
        crash a redelivery waits for the rest of it.
    window: seconds for which what finished is remembered. Keep it above the longest way back of a message: all retries, the
        retention of the dead letters, and the time until a person redrives one.
    key: what tells one piece of work from another, instead of the event's source and id. What it raises is
        an error of the pattern, not of the message: the engine returns that uncounted, with an alarm.
    hooks: hear of a store that is down and of a lost lease, as `Alarm`.

    Raises `ConfigurationError` for figures that make no sense.

    Remembered is only what ended in `Ack`. A failed, returned or cancelled handling and a dead letter give the claim
    back, so that a retry or a redrive runs. What is taken is returned uncounted for the rest of the lease; what is done
    is acked without the handler. While the store cannot be reached the intake is held and the message waits: never acked, never
    counted. If a lease is lost, the handling is cancelled and the message returned uncounted.

    It does not make an effect happen exactly once: a crash between the effect and the mark repeats the effect. `inbox` closes
    that gap for effects in one database. Ids made from a broker's coordinates are only as good as these: clear the store after
    a topic or queue was made anew.
    """
    return DedupePattern(store, lease=lease, window=window, key=key, hooks=hooks)


class DedupePattern:
    """What `dedupe(...)` returns."""

    kind = "dedupe"

    def __init__(
        self,
        store: Store | None,
        *,
        lease: float,
        window: float,
        key: Callable[[Delivery], str] | None,
        hooks: Sequence[Hook],
    ) -> None:
        if store is not None and not all(
            hasattr(store, call) for call in ("claim", "done", "release", "renew")
        ):
            message = (
                f"dedupe({store!r}): give a store such as MemoryStore() or sql_store(engine), or nothing"
            )
            raise ConfigurationError(message)
        _check_seconds("lease", lease)
        _check_seconds("window", window)
        if window < lease:
            message = f"dedupe(lease={lease:g}, window={window:g}): what finished is forgotten before a claim would end"
            raise ConfigurationError(message)
        self.store: Store = MemoryStore() if store is None else store
        self.lease = float(lease)
        self.window = float(window)
        self.key = key
        self._hooks = tuple(hooks)
        self._scope = scope_of if key is None else self._keyed
        self._loop: AbstractEventLoop | None = None
        self._renewer: _Renewer
        self._renewers: WeakKeyDictionary[AbstractEventLoop, _Renewer] = WeakKeyDictionary()
        self._held: dict[int, int] = {}
        self._leaving: set[Task[Any]] = set()

    def __repr__(self) -> str:
        key = "" if self.key is None else f", key={getattr(self.key, '__name__', self.key)}"
        return f"dedupe({self.store!r}, lease={self.lease:g}, window={self.window:g}{key})"

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with the memory around it."""
        claim, done, lease, window = self.store.claim, self.store.done, self.lease, self.window
        scope_of_delivery, step = self._scope, as_coroutine(handler)

        async def deduped(delivery: Delivery) -> Settlement:
            scope = scope_of_delivery(delivery)
            if scope is None:
                return await handler(delivery)
            try:
                token = await claim(scope, lease)
            except Exception as error:  # noqa: BLE001 - whatever a store raises: it cannot be asked
                token = await self._when_back(delivery, lambda: claim(scope, lease), error)
            if not isinstance(token, Token):
                return _refused(token)
            try:
                started = step(delivery)
                try:
                    waiting = started.send(None)
                except StopIteration as end:
                    settlement: Settlement = end.value
                else:
                    settlement = await self._renewed(rest(started, waiting), delivery, token)
            except BaseException:
                await self._release(token)
                raise
            if type(settlement) is not Ack:
                await self._release(token)
                return settlement
            try:
                kept = await done(token, window)
            except Exception as error:  # noqa: BLE001
                kept = await self._when_back(delivery, lambda: done(token, window), error)
            except CancelledError:
                self._leave(done(token, window))
                raise
            if not kept:
                self._alarm("lease_lost", "a lease ended before its handling was marked as done", delivery)
            return settlement

        return deduped

    def check(self, place: Place) -> None:
        """Refuse a lease that is longer than a lane may be held: what is taken waits for the rest of it."""
        if place.order == "key" and self.lease > place.max_hold:
            message = (
                f"handler {place.handler} ({place.channel}/{place.group}): the lease of its dedupe ({self.lease:g} s) is "
                f"above max_hold ({place.max_hold:g} s); give a shorter lease or raise max_hold"
            )
            raise ConfigurationError(message)

    async def start(self) -> None:
        """Start the store, if it has something to start."""
        if isinstance(self.store, Keeps):
            await self.store.start()

    async def close(self) -> None:
        """Give claims of cancelled handlings a moment to go back, and close the store."""
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=_GRACE)
        if isinstance(self.store, Keeps):
            await self.store.close()

    def _keyed(self, delivery: Delivery) -> Scope | None:
        assert self.key is not None  # noqa: S101 - for the type checker
        # No event has an empty source, so a key never meets an id
        return (delivery.channel, delivery.group, "", self.key(delivery))

    async def _renewed(self, running: Awaitable[Settlement], delivery: Delivery, token: Token) -> Settlement:
        """Run a handling that waits for something, with its claim renewed meanwhile."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._renewer = loop, self._renewer_on(loop)
        renewer = self._renewer
        handling = Handling(delivery, loop, loop.time())
        renewer.add(handling, token)
        try:
            settlement = await running
        except BaseException as error:
            lost = not renewer.remove(handling)
            stopped = (
                handling.why is not None
                if isinstance(error, CancelledError)
                else isinstance(error, Exception | Settle)
            )
            if not (lost and stopped):
                raise
        else:
            if renewer.remove(handling):
                return settlement
        if handling.why is not None:
            await handling.take_back()
        self._alarm(
            "lease_lost", "a claim was lost, so its handling was stopped and returned uncounted", delivery
        )
        return Retry(after=self.lease, reason="lease lost", counts=False)

    def _renewer_on(self, loop: AbstractEventLoop) -> "_Renewer":
        for closed in [other for other in self._renewers if other.is_closed()]:
            del self._renewers[closed]
        renewer = self._renewers.get(loop)
        if renewer is None:
            renewer = self._renewers[loop] = _Renewer(self.store, self.lease)
        return renewer

    async def _release(self, token: Token) -> None:
        """Give a claim back, as well as it goes: what stays behind ends with its lease."""
        try:
            await self._released(token)
        except CancelledError:
            self._leave(self._released(token))
            raise

    async def _released(self, token: Token) -> None:
        try:
            async with asyncio.timeout(_GRACE):
                await self.store.release(token)
        except Exception as error:  # noqa: BLE001
            _log.warning(
                "a claim could not be released and ends with its lease: %s: %s", type(error).__name__, error
            )

    def _leave(self, work: Awaitable[object]) -> None:
        """Finish a piece of work although its handling was cancelled."""
        task = asyncio.ensure_future(work)
        self._leaving.add(cast("Task[Any]", task))
        task.add_done_callback(self._left)

    def _left(self, task: "asyncio.Future[Any]") -> None:
        self._leaving.discard(cast("Task[Any]", task))
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("a claim ends with its lease: %s: %s", type(error).__name__, error)

    async def _when_back(self, delivery: Delivery, ask: Callable[[], Awaitable[T]], error: Exception) -> T:
        """Hold the intake and ask the store until it answers; only a cancellation ends that."""
        control: Control | None = getattr(delivery, "control", None)  # none outside a bus
        pause = 0.1
        self._held[id(control)] = self._held.get(id(control), 0) + 1
        self._alarm(
            "dedupe_store_down", f"{self.store!r} does not answer ({type(error).__name__}: {error})", delivery
        )
        try:
            while True:
                if control is not None:
                    control.hold(_REASON)
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter
                pause = min(pause * 2, _LONGEST_PAUSE)
                try:
                    return await ask()
                except Exception as again:  # noqa: BLE001
                    _log.warning("%r does not answer yet: %s: %s", self.store, type(again).__name__, again)
        finally:
            self._held[id(control)] -= 1
            if not self._held[id(control)]:
                del self._held[id(control)]
                if control is not None:
                    control.release(_REASON)

    def _alarm(self, code: str, text: str, delivery: Delivery) -> None:
        _log.warning("%s: %s (%s)", code, text, delivery)
        tell(self._hooks, Alarm(code, text, delivery))


class _Renewer:
    """One timer and at most one task that keep all claims of a pattern on one loop alive."""

    def __init__(self, store: Store, lease: float) -> None:
        self._store = store
        self._lease = lease
        self._claims: dict[Handling, Token] = {}
        self._timer: TimerHandle | None = None
        self._task: Task[None] | None = None

    def add(self, handling: Handling, token: Token) -> None:
        self._claims[handling] = token
        if self._timer is None and self._task is None:
            self._wake_in(self._lease / 3)

    def remove(self, handling: Handling) -> bool:
        """Forget a handling; False if its claim is lost already."""
        return self._claims.pop(handling, None) is not None

    def _wake_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(seconds, self._wake)

    def _wake(self) -> None:
        self._timer = None
        if self._claims:
            self._task = asyncio.get_running_loop().create_task(self._renew(list(self._claims.items())))

    async def _renew(self, claims: list[tuple[Handling, Token]]) -> None:
        loop = asyncio.get_running_loop()
        asked = loop.time()
        kept: Sequence[bool | None]
        pause = self._lease / 3
        try:
            async with asyncio.timeout(self._lease / 3):
                kept = await self._store.renew([token for _, token in claims], self._lease)
        except Exception as error:  # noqa: BLE001
            _log.warning("claims could not be renewed: %s: %s", type(error).__name__, error)
            kept = [None] * len(claims)
            pause = self._lease / 12
        self._task = None
        for (handling, _), renewed in zip(claims, kept, strict=True):
            if renewed:
                handling.due = asked
            elif renewed is False or loop.time() + pause - handling.due > self._lease:
                self._lose(handling)
        if self._claims:
            self._wake_in(pause)

    def _lose(self, handling: Handling) -> None:
        # Not there any more: it has ended meanwhile, and a finished claim cannot be renewed
        if self._claims.pop(handling, None) is not None:
            handling.stop("lease_lost")


def _refused(answer: Taken | Done) -> Settlement:
    return Retry(after=answer.remaining, reason="taken", counts=False) if isinstance(answer, Taken) else ACK


def _check_seconds(name: str, value: object) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or cast("float", value) <= 0:
        message = f"dedupe({name}={value!r}): give seconds above 0"
        raise ConfigurationError(message)
