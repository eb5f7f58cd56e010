"""
The engine of one group in one process: intake, lanes, workers, and how a handling ends.

    receive -> lane -> worker(chain) -> settler -> settle(batch)

Long-lived workers await the chain directly; a message whose handler never suspends costs no task and no turn of the
loop. Nothing here knows a pattern, and nothing here settles: the settler does.
"""

import asyncio
import inspect
import logging
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from brokerkit.adapter import Adapter, Marks, Order, Start, Subscription
from brokerkit.clock import SYSTEM, Clock
from brokerkit.context import CURRENT, Driven, absorb_cancellation
from brokerkit.copies import TooNew, mark_of, read_delivery
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, SendError
from brokerkit.hooks import Alarm, Hook, Settled, Started, tell
from brokerkit.lanes import Lanes
from brokerkit.message import Address
from brokerkit.pipeline import Handler
from brokerkit.settlement import Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.settler import Settler

__all__ = ["Engine", "Intake", "Settings"]

_log = logging.getLogger("brokerkit")
_TURN = 0.002
_PATIENCE = 1.0
_NEWER = 30.0
_LONGEST_BACKOFF = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    How one group is consumed.

    concurrency: handlers at once. prefetch: messages taken and not waiting behind others. hold_limit: messages that may
    wait in lanes on top. max_hold: longest single wait in a lane, in seconds. grace: seconds for a drain.
    hop_limit: copies of ours after which an event is dead-lettered. crash_limit: standing crash marks that do the same.
    """

    order: Order = "none"
    start: Start = "earliest"
    concurrency: int = 16
    prefetch: int = 32
    hold_limit: int = 1000
    max_hold: float = 300.0
    grace: float = 30.0
    hop_limit: int = 1000
    crash_limit: int = 3


class Intake:
    """Why intake is held, as a set of reasons; outlives reconnects. The `Control` that patterns see."""

    def __init__(self) -> None:
        self.reasons: set[str] = set()
        self._changed: list[Callable[[], None]] = []

    def listen(self, changed: Callable[[], None]) -> None:
        """Call this when the last reason has gone."""
        self._changed.append(changed)

    def hold(self, reason: str) -> None:
        """Stop taking new messages for this reason."""
        self.reasons.add(reason)

    def release(self, reason: str) -> None:
        """Take this reason away; intake goes on when none is left."""
        self.reasons.discard(reason)
        if not self.reasons:
            for changed in self._changed:
                changed()


@dataclass(slots=True)
class _Counts:
    """out: taken and not ended. abandoned: handlers that were still running when the grace was over."""

    out: int = 0
    abandoned: int = 0


class Engine:
    """
    Consumes one channel for one group until stopped.

    Guarantees: a delivery is handed to the handler at most once at a time and, for one key, one after the other; a
    handler that was cancelled or is still running when the grace is over leaves its delivery unsettled, so it comes back;
    a settlement error never runs the handler again.
    """

    def __init__(
        self,
        adapter: Adapter,
        channel: str,
        group: str,
        handler: Handler,
        settings: Settings,
        *,
        prefix: str = "",
        hooks: Sequence[Hook] = (),
        clock: Clock = SYSTEM,
        alone: asyncio.Lock | None = None,
    ) -> None:
        at = f"{prefix}.{channel}" if prefix else channel
        self.channel = channel
        self.group = group
        self.settings = settings
        self.intake = Intake()
        self.counts = _Counts()
        self._adapter = adapter
        self._inlet = Address(at, group, "inlet")
        self._handler = handler if inspect.iscoroutinefunction(handler) else _as_coroutine(handler)
        self._hooks = hooks
        self._clock = clock
        self._alone = alone or asyncio.Lock()
        self._lanes = Lanes()
        self._ready: deque[Delivery] = deque()
        self._suspects: deque[Delivery] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._running: dict[int, tuple[Delivery, asyncio.Task[Any]]] = {}
        self._held: dict[int, tuple[Delivery, asyncio.TimerHandle]] = {}
        self._room: asyncio.Future[None] | None = None
        self._changed: list[asyncio.Future[None]] = []
        self._gate = 0
        self._stopping = False
        self._dismissed = False
        self._hurried = False
        self._subscription: Subscription | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._reader: asyncio.Task[None] | None = None
        self._isolation: asyncio.Task[None] | None = None
        self._subscribed = asyncio.Event()
        self.settler = Settler(
            adapter,
            self._inlet,
            Address(at, group, "dead"),
            on_end=self._on_end,
            on_copied=self._on_copied,
            hooks=hooks,
            clock=clock,
        )
        self.intake.listen(self._more_room)

    @property
    def ready(self) -> bool:
        """Say whether it takes messages: subscribed, not held, and no copy is stuck."""
        return (
            self._subscribed.is_set()
            and not self.intake.reasons
            and not self.settler.blocked
            and not self._stopping
        )

    async def start(self) -> None:
        """Subscribe and begin; raises what the first subscribing raises, and begins nothing then."""
        self._subscription = await self._subscribe()
        self.settler.start()
        for _ in range(self.settings.concurrency):
            self._add_worker()
        self._reader = asyncio.create_task(self._read(), name=f"brokerkit {self.channel}/{self.group} reader")

    def _add_worker(self) -> None:
        worker = asyncio.create_task(self._work(), name=f"brokerkit {self.channel}/{self.group} worker")
        worker.add_done_callback(self._worker_ended)
        self._workers.append(worker)

    def _worker_ended(self, worker: "asyncio.Task[None]") -> None:
        """Replace a worker that something unforeseen has ended, and say so."""
        self._workers.remove(worker)
        if self._stopping or worker.cancelled():
            return
        if (error := worker.exception()) is not None:
            text = f"a worker of {self.channel}/{self.group} ended: {error!r}; its message stays unsettled"
            _log.critical("%s", text, exc_info=error)
            tell(self._hooks, Alarm("worker_ended", text))
            self._add_worker()

    async def stop(self, grace: float | None = None) -> None:
        """
        Drain: start nothing more, let what runs finish within the grace (seconds), flush, leave.

        What runs longer is cancelled; what ignores that for a second is abandoned unsettled and counted. What had not
        started goes back to the group as a polite return.
        """
        grace = self.settings.grace if grace is None else grace
        deadline = asyncio.get_running_loop().time() + grace
        self._stopping = True
        await _cancel(self._reader)
        self._forget_unstarted()
        await self._finish_running(deadline)
        await _cancel(self._isolation)
        await self._dismiss_workers()
        await self._flush(max(deadline, asyncio.get_running_loop().time() + _PATIENCE))
        await self.settler.close()
        if self._subscription is not None:
            await self._subscription.close()

    def hurry(self) -> None:
        """Cut the grace of a running drain to nothing."""
        self._hurried = True
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)

    def _forget_unstarted(self) -> None:
        for _, timer in self._held.values():
            timer.cancel()
        self._held.clear()
        self._ready.clear()
        self._suspects.clear()
        self._lanes.drop_all()

    async def _finish_running(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        await self._until_quiet(deadline)
        for delivery, task in list(self._running.values()):
            delivery.stopped = "drain"
            task.cancel()
        self._hurried = False
        await self._until_quiet(loop.time() + _PATIENCE)
        for delivery, _ in self._running.values():
            self.counts.abandoned += 1
            text = f"the handler of {delivery!r} did not stop when cancelled; its message stays unsettled"
            _log.error("%s", text)
            tell(self._hooks, Settled(delivery, None, "abandoned"))

    async def _until_ended(self, ids: Callable[[], Iterable[int]], deadline: float) -> None:
        """Wait until none of these handlings runs any more, or the deadline."""
        loop = asyncio.get_running_loop()
        while any(one in self._running for one in ids()) and not self._hurried:
            left = deadline - loop.time()
            if left <= 0:
                return
            changed = loop.create_future()
            self._changed.append(changed)
            await asyncio.wait([changed], timeout=left)

    async def _until_quiet(self, deadline: float) -> None:
        await self._until_ended(lambda: self._running, deadline)

    async def _dismiss_workers(self) -> None:
        self._dismissed = True
        busy = {id(task) for _, task in self._running.values()}
        free = [task for task in self._workers if id(task) not in busy]
        for task in free:
            task.cancel()
        await asyncio.gather(*free, return_exceptions=True)

    async def _flush(self, deadline: float) -> None:
        try:
            async with asyncio.timeout_at(deadline):
                await self.settler.flush()
        except TimeoutError:
            _log.error("some settlements of %s/%s could not be flushed in time", self.channel, self.group)

    # -- intake

    async def _subscribe(self) -> Subscription:
        settings = self.settings
        subscription = await self._adapter.subscribe(
            self._inlet,
            order=settings.order,
            start=settings.start,
            prefetch=settings.prefetch + settings.hold_limit,
            on_lost=self._on_lost,
        )
        self._subscribed.set()
        return subscription

    async def _read(self) -> None:
        failures = 0
        while not self._stopping:
            try:
                if self._subscription is None:
                    self._subscription = await self._subscribe()
                    failures = 0
                if not await self._take(self._subscription):
                    self._subscription = None
            except Exception as error:  # noqa: BLE001 - a reader that dies in silence is an outage
                failures += 1
                if not isinstance(error, SendError):
                    _log.exception("taking messages of %s/%s failed", self.channel, self.group)
                await self._reconnect(error, failures)

    async def _reconnect(self, error: Exception, failures: int) -> None:
        """
        After a lost connection: let the old subscription go, back off, and come back.

        The lanes stay: a redelivered message waits for the handler of its key that still runs.
        """
        self._subscribed.clear()
        text = f"{self.channel}/{self.group}: {error}; subscribing again"
        _log.warning("%s", text)
        tell(self._hooks, Alarm(error.code if isinstance(error, BrokerkitError) else "intake_failed", text))
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._lose_all(subscription)
            try:
                await subscription.close()
            except BrokerkitError as closing:
                _log.debug("closing a lost subscription: %s", closing)
        ceiling = min(_LONGEST_BACKOFF, 0.1 * 2 ** min(failures, 10))
        await asyncio.sleep(random.uniform(ceiling / 4, ceiling))  # noqa: S311 - jitter

    async def _lose_all(self, subscription: Subscription) -> None:
        held = [delivery for delivery, _ in self._held.values()]
        lost = [*self._ready, *self._suspects, *held, *self._lanes.all_waiting()]
        await self._on_lost([delivery for delivery in lost if delivery.subscription is subscription], 0)

    async def _take(self, subscription: Subscription) -> bool:
        """Receive once there is room; False when the subscription was closed."""
        limit = self._limit()
        while limit <= 0 or self.intake.reasons:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
            limit = self._limit()
        deliveries = await subscription.receive(limit)
        self.counts.out += len(deliveries)
        self._admit(deliveries, subscription)
        return bool(deliveries)

    def _limit(self) -> int:
        """How many more to take: never above the budget, and not in driblets while there is work."""
        settings = self.settings
        waiting = self._lanes.waiting + len(self._held)
        limit = min(
            settings.prefetch - self.counts.out + waiting,
            settings.prefetch + settings.hold_limit - self.counts.out,
        )
        return limit if limit * 4 >= settings.prefetch or not self._ready else 0

    def _more_room(self) -> None:
        room = self._room
        if room is not None and not room.done() and not self.intake.reasons and self._limit() > 0:
            room.set_result(None)

    def _admit(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Fill in what the core knows of each delivery and put it into its lane."""
        now = self._clock.time()
        channel, group, order, intake = self.channel, self.group, self.settings.order, self.intake
        enter = self._lanes.enter
        for delivery in deliveries:
            delivery.subscription = subscription
            delivery.channel = channel
            delivery.group = group
            delivery.order = order
            delivery.control = intake
            try:
                read_delivery(delivery, now)
            except TooNew as error:
                delivery.extra = {"too_new": error}
            if delivery.message.key is None or enter(delivery):
                self._make_ready(delivery)

    def _make_ready(self, delivery: Delivery) -> None:
        """Queue a delivery that heads its lane, unless it may not start at all, not yet, or only alone."""
        if delivery.unusual or delivery.hop >= self.settings.hop_limit:
            self._make_ready_if_allowed(delivery)
            return
        self._ready.append(delivery)
        if self._idle and not self._gate:
            self._wake_worker()

    def _make_ready_if_allowed(self, delivery: Delivery) -> None:
        if delivery.stopped is not None:
            self._gone(delivery)
        elif delivery.extra is not None and "too_new" in delivery.extra:
            self._too_new(delivery, delivery.extra["too_new"])
        elif delivery.alone >= self.settings.crash_limit:
            detail = f"its handling ended with the process {delivery.alone} times while it ran alone"
            self._conclude(delivery, DeadLetter("crash_loop", detail))
        elif delivery.hop >= self.settings.hop_limit:
            self._conclude(delivery, DeadLetter("hop_limit", f"{delivery.hop} copies of it have been made"))
        elif delivery.due and (left := delivery.due - self._clock.time()) > 0:
            self._wait_in_lane(delivery, min(left, self.settings.max_hold))
        elif delivery.suspect:
            self._suspects.append(delivery)
            if self._isolation is None or self._isolation.done():
                self._isolation = asyncio.create_task(self._isolate(), name="brokerkit isolation")
        else:
            self._ready.append(delivery)
            if self._idle and not self._gate:
                self._wake_worker()

    def _too_new(self, delivery: Delivery, error: TooNew) -> None:
        tell(self._hooks, Alarm("too_new", str(error), delivery))
        _log.error("%s", error)
        self._conclude(delivery, Retry(after=_NEWER, reason="too_new", counts=False))

    def _wake_worker(self) -> None:
        while self._idle:
            worker = self._idle.popleft()
            if not worker.done():
                worker.set_result(None)
                return

    # -- handling

    async def _work(self) -> None:
        """
        Handle what is ready, one delivery after the other.

        This is the hot path: a handling that never suspends is run, concluded and forgotten in this loop.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a worker is a task
        loop = asyncio.get_running_loop()
        ready = self._ready
        time = loop.time
        turn = time()
        while True:
            if not ready or self._gate:
                await self._rest(loop.create_future(), task)
                turn = time()
                continue
            delivery = ready.popleft()
            if delivery.stopped is not None:
                self._gone(delivery)
                continue
            begun = self._begin(delivery)
            if type(begun) is Ack and not task.cancelling() and delivery.stopped is None:
                self._conclude(delivery, begun)
            else:
                await self._see_through(delivery, begun, task)
            if time() - turn > _TURN:
                await asyncio.sleep(0)
                turn = time()

    async def _rest(self, idle: "asyncio.Future[None]", task: asyncio.Task[Any]) -> None:
        """Wait for work. A cancellation that an earlier handler left behind must not end the worker."""
        self._idle.append(idle)
        try:
            await idle
        except asyncio.CancelledError:
            if self._dismissed:
                raise
            await absorb_cancellation(task)

    def _begin(self, delivery: Delivery) -> "Settlement | Driven[Settlement] | None":
        """Run the chain until it first suspends, inside a context of its own: its settlement, or what is to be awaited."""
        if self._hooks:
            tell(self._hooks, Started(delivery))
        CURRENT.set(delivery)
        context = copy_context()
        coroutine: Any = self._handler(delivery)
        try:
            yielded = context.run(coroutine.send, None)
        except StopIteration as stop:
            settlement: Settlement = stop.value
            return settlement
        except BaseException as error:  # noqa: BLE001 - sorted out in _escaped
            return self._escaped(delivery, error)
        return Driven(context, coroutine, yielded)

    async def _see_through(
        self,
        delivery: Delivery,
        begun: "Settlement | Driven[Settlement] | None",
        task: asyncio.Task[Any],
        *,
        marked: bool = False,
    ) -> None:
        """Await what has begun and conclude it; counts as running until both are done."""
        self._running[id(delivery)] = (delivery, task)
        try:
            settlement = await self._outcome(delivery, begun) if isinstance(begun, Driven) else begun
            if task.cancelling():
                await absorb_cancellation(task)
            if marked:
                await self._write_mark(delivery, delivery.alone)
            if settlement is None or delivery.stopped is not None:
                self._gone(delivery)
            else:
                self._conclude(delivery, settlement)
        finally:
            del self._running[id(delivery)]
            for changed in self._changed:
                if not changed.done():
                    changed.set_result(None)
            self._changed.clear()

    async def _outcome(self, delivery: Delivery, driven: Driven[Settlement]) -> Settlement | None:
        try:
            return await driven
        except BaseException as error:  # noqa: BLE001 - sorted out in _escaped
            return self._escaped(delivery, error)

    def _escaped(self, delivery: Delivery, error: BaseException) -> Settlement | None:
        """
        Decide what an exception means that no pattern has turned into a settlement.

        Asked to stop: nothing is settled. Else a pattern has failed, not the handler: the message goes back
        uncounted, because nothing but a failed handling may lead to a dead letter.
        """
        if isinstance(error, Settle):
            return error.settlement
        if isinstance(error, KeyboardInterrupt):
            raise error
        if delivery.stopped is not None:
            return None
        if not isinstance(error, Exception | asyncio.CancelledError):
            _log.error("a handler of %s/%s raised %r", self.channel, self.group, error)
        text = f"a pattern of {self.channel}/{self.group} raised {type(error).__name__}: {error}; the message goes back"
        _log.error("%s", text, exc_info=error)
        tell(self._hooks, Alarm("pattern_failed", text, delivery))
        return Retry(after=1.0, reason="pattern_failed", counts=False)

    def _conclude(self, delivery: Delivery, settlement: Settlement) -> None:
        if type(settlement) is Ack:
            self.settler.settle(delivery, settlement)
        elif isinstance(settlement, DeadLetter):
            self.settler.copy(delivery, settlement)
            if self.settings.order == "key":
                return
        elif not isinstance(settlement, Retry):
            text = f"a pattern of {self.channel}/{self.group} returned {settlement!r}, which is no settlement"
            tell(self._hooks, Alarm("pattern_failed", text, delivery))
            _log.error("%s", text)
            self._conclude(delivery, Retry(after=1.0, reason="pattern_failed", counts=False))
            return
        elif self.settings.order == "key":
            self._hold(delivery, settlement)
            return
        elif settlement.counts:
            self.settler.copy(delivery, settlement)
        else:
            self.settler.settle(delivery, settlement)
        self._next(delivery)

    def _next(self, delivery: Delivery) -> None:
        if delivery.message.key is not None:
            following = self._lanes.leave(delivery)
            if following is not None:
                self._make_ready(following)

    def _hold(self, delivery: Delivery, retry: Retry) -> None:
        """Keep a delivery at the head of its lane, unsettled, until its retry is due."""
        after = retry.after
        if after > self.settings.max_hold:
            _log.warning(
                "%s/%s: a retry after %.0f s is cut to max_hold, %.0f s",
                self.channel,
                self.group,
                after,
                self.settings.max_hold,
            )
            after = self.settings.max_hold
        if retry.counts:
            delivery.attempt += 1
            delivery.due = self._clock.time() + after
            self.settler.mark(delivery, mark_of(delivery, alone=delivery.alone))
        if self._hooks:
            tell(self._hooks, Settled(delivery, retry, "held"))
        if not self._stopping:
            self._wait_in_lane(delivery, after)
            self._more_room()

    def _wait_in_lane(self, delivery: Delivery, after: float) -> None:
        timer = asyncio.get_running_loop().call_later(after, self._resume, delivery)
        self._held[id(delivery)] = (delivery, timer)

    def _resume(self, delivery: Delivery) -> None:
        del self._held[id(delivery)]
        delivery.due = 0.0
        self._make_ready(delivery)

    # -- endings

    def _on_end(self, count: int) -> None:
        self.counts.out -= count
        if self._room is not None:
            self._more_room()

    def _on_copied(self, delivery: Delivery) -> None:
        """Release the lane of a dead letter once its copy is safe: until then its key must not go on."""
        if self.settings.order == "key":
            self._next(delivery)

    def _gone(self, delivery: Delivery) -> None:
        """Forget a delivery that ends without a settlement: it was lost, or its handling was cancelled."""
        self.counts.out -= 1
        if not self._stopping:
            self._next(delivery)
            self._more_room()

    async def _on_lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Drop what has not started, let the rest finish within the seconds, then cancel it."""
        running = [self._running[id(delivery)] for delivery in deliveries if id(delivery) in self._running]
        busy = {id(delivery) for delivery, _ in running}
        for delivery in deliveries:
            if id(delivery) not in busy:
                delivery.stopped = "lost"
        self.counts.out -= len(self._lanes.drop(deliveries))
        self._drop_held(deliveries)
        if seconds > 0:
            await self._finish_lost(running, seconds)
        for delivery, task in running:
            if id(delivery) in self._running:
                delivery.stopped = "lost"
                task.cancel()

    def _drop_held(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            held = self._held.pop(id(delivery), None)
            if held is not None:
                held[1].cancel()
                self._gone(delivery)

    async def _finish_lost(
        self, running: Sequence[tuple[Delivery, asyncio.Task[Any]]], seconds: float
    ) -> None:
        deadline = asyncio.get_running_loop().time() + seconds
        ids = [id(delivery) for delivery, _ in running]
        await self._until_ended(lambda: ids, deadline)
        await self._flush(deadline)

    # -- isolation

    async def _isolate(self) -> None:
        """Run suspects one at a time with nothing else of this group beside them, a crash mark standing meanwhile."""
        while self._suspects:
            async with self._alone:
                self._gate += 1
                try:
                    while self._running and not self._stopping:
                        await self._until_quiet(asyncio.get_running_loop().time() + _LONGEST_BACKOFF)
                    if self._suspects:
                        await self._run_alone(self._suspects.popleft())
                finally:
                    self._gate -= 1
                    for _ in range(min(len(self._ready), len(self._idle))):
                        self._wake_worker()

    async def _run_alone(self, delivery: Delivery) -> None:
        """Handle a suspect with a crash mark standing, which every ending that the process survives takes back."""
        if delivery.stopped is not None or not await self._write_mark(delivery, delivery.alone + 1):
            self._gone(delivery)
            return
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - isolation is a task
        await self._see_through(delivery, self._begin(delivery), task, marked=True)

    async def _write_mark(self, delivery: Delivery, alone: int) -> bool:
        """Write a crash mark where the subscription keeps them; False if the delivery is no longer ours."""
        subscription = delivery.subscription
        if not isinstance(subscription, Marks):
            return True
        try:
            outcomes = await subscription.mark([(delivery, mark_of(delivery, alone=alone))])
        except BrokerkitError as error:
            _log.warning("a crash mark could not be written: %s", error)
            return True
        return outcomes[0] is None or outcomes[0].retryable


def _as_coroutine(handler: Handler) -> Handler:
    async def run(delivery: Delivery) -> Settlement:
        return await handler(delivery)

    return run


async def _cancel(task: asyncio.Task[Any] | None) -> None:
    if task is not None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
