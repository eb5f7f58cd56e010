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
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from brokerkit.adapter import Adapter, Order, Start, Subscription
from brokerkit.clock import SYSTEM, Clock
from brokerkit.context import CURRENT, Driven, absorb_cancellation
from brokerkit.copies import mark_of, read_delivery
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, ConnectionLost
from brokerkit.hooks import Alarm, Hook, Settled, Started, tell
from brokerkit.intake import Intake
from brokerkit.isolation import Isolation, Standing
from brokerkit.lanes import Lanes
from brokerkit.message import Address
from brokerkit.names import with_prefix
from brokerkit.pipeline import Handler
from brokerkit.recall import Recall
from brokerkit.settlement import Ack, DeadLetter, Retry, Settle, Settlement
from brokerkit.settler import Settler

__all__ = ["Engine", "Settings"]

_log = logging.getLogger("brokerkit")
_TURN = 0.002
_PATIENCE = 1.0
_BARRED = 30.0
_MISHAP = 1.0
_FLUSH = 5.0
_COOLING = 0.5
_LONGEST_BACKOFF = 30.0

Mark = Callable[[], Awaitable[Standing]]
Begun = Settlement | Driven[Settlement] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """
    How one group is consumed.

    concurrency: handlers at once. prefetch: messages taken and not waiting behind others. hold_limit: messages that may
    wait in lanes on top. max_hold: longest single wait in a lane, in seconds. grace: seconds for a drain.
    hop_limit: counted retries by copy after which an event is dead-lettered whatever its policy says. crash_limit: standing
    crash marks that do the same.
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


@dataclass(slots=True)
class Counts:
    """out: taken and not ended. abandoned: handlers that were still running when the grace was over."""

    out: int = 0
    abandoned: int = 0


class Engine:
    """
    Consumes one channel for one group until stopped.

    Guarantees: a delivery is handed to the handler at most once at a time and, for one key, one after the other; a
    handler that was cancelled or is still running when the grace is over leaves its delivery unsettled, so it comes back;
    a settlement error never runs the handler again.

    `alone` is the lock that lets one suspect at a time run in the whole process; `on_end(count)` hears of endings.
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
        on_end: Callable[[int], None] | None = None,
    ) -> None:
        at = with_prefix(prefix, channel)
        self.channel = channel
        self.group = group
        self.settings = settings
        self.counts = Counts()
        self.intake = Intake(self._more_room)
        self._name = f"{channel}/{group}"
        self._adapter = adapter
        self._inlet = Address(at, group, "inlet")
        self._handler = handler if inspect.iscoroutinefunction(handler) else _as_coroutine(handler)
        self._hooks = hooks
        self._clock = clock
        self._listener = on_end
        self._lanes = Lanes()
        self._recall = Recall() if settings.order == "key" else None
        self._ready: deque[Delivery] = deque()
        self._unlocked: deque[Delivery] | None = None
        self._idle: deque[asyncio.Future[None]] = deque()
        self._running: dict[int, tuple[Delivery, asyncio.Task[Any]]] = {}
        self._held: dict[int, tuple[Delivery, asyncio.TimerHandle]] = {}
        self._changed: list[asyncio.Future[None]] = []
        self._room: asyncio.Future[None] | None = None
        self._started: dict[str, int] | None = {} if adapter.capabilities.log else None
        self._max_return = adapter.capabilities.max_return
        self._stopping = False
        self._dismissed = False
        self._hurried = asyncio.Event()
        self._subscribed = False
        self._subscription: Subscription | None = None
        self._workers: list[asyncio.Task[None]] = []
        self._reader: asyncio.Task[None] | None = None
        self._isolation = Isolation(self, alone or asyncio.Lock())
        self.settler = Settler(
            adapter,
            self._inlet,
            Address(at, group, "dead"),
            on_end=self._on_end,
            on_released=self._on_released,
            hooks=hooks,
            clock=clock,
        )

    @property
    def ready(self) -> bool:
        """Say whether it takes messages: subscribed, not held, not draining, and no copy is stuck."""
        return self._subscribed and not (self.intake.reasons or self.settler.blocked or self._stopping)

    # -- start and stop

    async def start(self) -> None:
        """Subscribe and begin; raises what the first subscribing raises, and begins nothing then."""
        self._subscription = await self._subscribe()
        self.settler.start()
        for _ in range(self.settings.concurrency):
            self._add_worker()
        self._add_reader()

    def _add_worker(self) -> None:
        worker = asyncio.create_task(self._work(), name=f"brokerkit {self._name} worker")
        worker.add_done_callback(self._worker_ended)
        self._workers.append(worker)

    def _worker_ended(self, worker: "asyncio.Task[None]") -> None:
        """Replace a worker that something unforeseen has ended."""
        self._workers.remove(worker)
        if not self._leaving():
            self._tell_end("worker", worker)
            self._add_worker()

    def _add_reader(self) -> None:
        self._reader = asyncio.create_task(self._read(), name=f"brokerkit {self._name} reader")
        self._reader.add_done_callback(self._reader_ended)

    def _reader_ended(self, reader: "asyncio.Task[None]") -> None:
        if not (self._stopping or reader.cancelled()):
            self._tell_end("reader", reader)
            self._add_reader()

    def _tell_end(self, what: str, task: "asyncio.Task[None]") -> None:
        error = None if task.cancelled() else task.exception()
        text = f"a {what} of {self._name} ended unforeseen ({error!r}) and is replaced"
        _log.critical("%s", text, exc_info=error)
        tell(self._hooks, Alarm(f"{what}_ended", text))

    def _leaving(self) -> bool:
        """
        Say whether a cancellation now comes from outside and means the end of this engine.

        Handlers run in the workers' tasks, so a worker must outlive a cancellation that a handler left behind. The reader
        runs no handler: who cancels it, cancels all.
        """
        reader = self._reader
        return self._dismissed or (reader is not None and (reader.cancelling() > 0 or reader.cancelled()))

    async def stop(self, grace: float | None = None) -> None:
        """
        Drain: start nothing more, let what runs finish within the grace (seconds), flush, leave.

        What runs longer is cancelled; what ignores that for a second is abandoned unsettled and counted. What had not
        started goes back to the group as a polite return.
        """
        grace = self.settings.grace if grace is None else grace
        deadline = asyncio.get_running_loop().time() + grace
        self._stopping = True
        self._tell_changed()
        self._forget_what_need_not_start(deadline)
        await self._pardon()  # who is killed from now on is killed from outside
        await self._stop_reading()
        await self._finish_running(deadline)
        await self._dismiss()
        await self._flush(deadline)
        await self.settler.close()
        if self._subscription is not None:
            await self._subscription.close()

    def hurry(self) -> None:
        """Cut the grace of a drain, running or to come, to nothing."""
        self._hurried.set()
        self._tell_changed()

    def _forget_what_need_not_start(self, deadline: float) -> None:
        """Keep, on a log, what the next owner would read although later messages of its partition are done."""
        unstarted = self._unstarted()
        doomed = self._doomed(unstarted, deadline)
        if len(doomed) == len(unstarted):
            self._forget_unstarted()
            return
        for delivery in doomed:
            delivery.stopped = "drain"
            if held := self._held.pop(id(delivery), None):
                held[1].cancel()
        self._isolation.clear()
        self._lanes.drop(doomed)
        kept = [delivery for delivery in self._ready if delivery.stopped is None]
        self._ready.clear()
        self._ready.extend(kept)

    def _forget_behind(self, delivery: Delivery) -> None:
        """In a drain: what waits behind one that will not end here must not start before it."""
        key = delivery.message.key
        self._lanes.drop([each for each in self._lanes.all_waiting() if each.message.key == key])

    def _forget_unstarted(self) -> None:
        for _, timer in self._held.values():
            timer.cancel()
        self._held.clear()
        self._ready.clear()
        self._isolation.clear()
        self._lanes.drop_all()

    async def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _finish_running(self, deadline: float) -> None:
        loop = asyncio.get_running_loop()
        while (self._running or self._unstarted()) and not self._hurried.is_set():
            left = deadline - loop.time()
            if left <= 0:
                break
            await self._change(left)
        self._forget_unstarted()
        for delivery, task in list(self._running.values()):
            delivery.stopped = "drain"
            task.cancel()
        patience = asyncio.get_running_loop().time() + _PATIENCE
        await self._until_ended(lambda: self._running, patience, hurry=False)
        for delivery, _ in self._running.values():
            self.counts.abandoned += 1
            _log.error("the handler of %r did not stop when cancelled; its message stays unsettled", delivery)
            tell(self._hooks, Settled(delivery, None, "abandoned"))
        if self._running:
            await self._pardon()  # a mark may have been written meanwhile

    async def _pardon(self) -> None:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._isolation.pardon()
        except TimeoutError:
            _log.error("%s: the crash mark of an abandoned message could not be taken back", self._name)

    async def _until_ended(
        self, ids: Callable[[], Iterable[int]], deadline: float, *, hurry: bool = True
    ) -> None:
        """Wait until none of these handlings runs any more, or the deadline, or somebody hurries."""
        loop = asyncio.get_running_loop()
        while any(one in self._running for one in ids()) and not (hurry and self._hurried.is_set()):
            left = deadline - loop.time()
            if left <= 0:
                return
            await self._change(left)

    async def until_quiet(self, patience: float) -> bool:
        """Wait until no handling runs, or the engine stops, for so many seconds at most; False if some still run."""
        deadline = asyncio.get_running_loop().time() + patience
        while self._running and not self._stopping:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return False
            await self._change(left)
        return True

    def tell_shut(self, suspects: int, seconds: float) -> None:
        """Say that suspects wait for handlers that do not end; meanwhile the group goes on."""
        text = (
            f"{self._name}: {suspects} messages that may kill the process wait to run alone, but {len(self._running)} "
            f"handlers have not ended within {seconds:.0f} s; give them a timeout"
        )
        _log.error("%s", text)
        tell(self._hooks, Alarm("isolation_waits", text))

    async def _change(self, timeout: float) -> None:
        """Wait until some handling has ended, at most so many seconds."""
        changed = asyncio.get_running_loop().create_future()
        self._changed.append(changed)
        await asyncio.wait([changed], timeout=timeout)

    def _tell_changed(self) -> None:
        for changed in self._changed:
            if not changed.done():
                changed.set_result(None)
        self._changed.clear()

    async def _dismiss(self) -> None:
        """Let every worker go that is not stuck in a handler."""
        self._dismissed = True
        while self._idle:
            self._wake_worker()
        stuck = {id(task) for _, task in self._running.values()}
        free = [task for task in self._workers if id(task) not in stuck]
        if free:
            _, late = await asyncio.wait(free, timeout=_PATIENCE)
            for task in late:
                task.cancel()
        self._isolation.dismiss(stuck)

    async def _flush(self, deadline: float) -> None:
        """Write what has been settled, until the deadline and at least for a moment; a hurry leaves the moment."""
        patience = asyncio.get_running_loop().time() + _PATIENCE
        flush = asyncio.create_task(self.settler.flush())
        hurried = asyncio.create_task(self._hurried.wait())
        left = max(deadline, patience) - asyncio.get_running_loop().time()
        await asyncio.wait([flush, hurried], timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if not flush.done() and hurried.done():
            await asyncio.wait([flush], timeout=_PATIENCE)
        if not flush.done():
            _log.error(
                "some settlements of %s could not be flushed in time; their messages come back", self._name
            )
        flush.cancel()
        hurried.cancel()
        await asyncio.gather(flush, hurried, return_exceptions=True)

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
        self._subscribed = True
        return subscription

    async def _read(self) -> None:
        """Take messages until stopped; whatever goes wrong is followed by a back-off and another subscription."""
        failures = 0
        task = asyncio.current_task()
        while not self._stopping:
            try:
                if self._subscription is None:
                    self._subscription = await self._subscribe()
                await self._take(self._subscription)
                failures = 0
            except asyncio.CancelledError as error:
                if task is None or task.cancelling():
                    raise
                failures += 1
                await self._reconnect(
                    ConnectionLost(f"the client cancelled its own call: {error!r}"), failures
                )
            except Exception as error:  # noqa: BLE001 - a reader that dies in silence is an outage
                failures += 1
                await self._reconnect(error, failures)

    async def _reconnect(self, error: Exception, failures: int) -> None:
        """
        After a lost connection: let the old subscription go, back off, and come back.

        The lanes stay: a redelivered message waits for the handler of its key that still runs here.
        """
        self._subscribed = False
        text = f"{self._name}: {type(error).__name__}: {error}; subscribing again"
        expected = isinstance(error, BrokerkitError)
        _log.warning("%s", text, exc_info=None if expected else error)
        tell(self._hooks, Alarm(error.code if isinstance(error, BrokerkitError) else "intake_failed", text))
        if self._subscription is not None:
            await self._let_go(self._subscription)
            self._subscription = None
        ceiling = min(_LONGEST_BACKOFF, 0.1 * 2 ** min(failures, 10))
        await asyncio.sleep(random.uniform(ceiling / 4, ceiling))  # noqa: S311 - jitter

    async def _let_go(self, subscription: Subscription) -> None:
        """
        Close a subscription whose connection broke, when nothing of it runs any more.

        It may well be alive at the broker (a call that failed says nothing of the lease), and closing it gives back what it
        holds: another member would start a message that is running here. What was really lost, `on_lost` has cancelled.
        """
        self._lose([delivery for delivery in self._unstarted() if delivery.subscription is subscription])
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.grace
        running = [each for each in self._running.values() if each[0].subscription is subscription]
        ids = [id(delivery) for delivery, _ in running]
        await self._until_ended(lambda: ids, deadline)
        await self.settler.flush(timeout=min(deadline - loop.time(), _FLUSH))
        for delivery, task in running:
            if id(delivery) in self._running:
                delivery.stopped = "lost"
                task.cancel()
        await self._until_ended(lambda: ids, loop.time() + _PATIENCE, hurry=False)
        self._lose([delivery for delivery in self._unstarted() if delivery.subscription is subscription])
        try:
            await subscription.close()
        except Exception as closing:  # noqa: BLE001 - it is lost already
            _log.debug("closing a lost subscription: %r", closing)

    def _unstarted(self) -> list[Delivery]:
        held = [delivery for delivery, _ in self._held.values()]
        return [*self._ready, *self._isolation.suspects, *held, *self._lanes.all_waiting()]

    async def _take(self, subscription: Subscription) -> None:
        """Receive once there is room."""
        while self.intake.reasons or (limit := self._limit()) <= 0:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        deliveries = await subscription.receive(limit)
        if not deliveries:
            message = "the subscription was closed"
            raise ConnectionLost(message)
        self._admit(deliveries, subscription)

    def _limit(self) -> int:
        """How many more to take: never above the budget, and not in driblets while there is work."""
        settings = self.settings
        waiting = self._lanes.waiting + len(self._held)
        budget = settings.prefetch - self.counts.out
        limit = min(budget + waiting, budget + settings.hold_limit)
        return limit if limit * 4 >= settings.prefetch or not self._ready else 0

    def _more_room(self) -> None:
        room = self._room
        if room is not None and not room.done() and not self.intake.reasons and self._limit() > 0:
            room.set_result(None)

    def _admit(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Fill in what the core knows of each delivery and put it into its lane."""
        if self._stopping:
            return
        now = self._clock.time()
        self.counts.out += len(deliveries)
        channel, group, order, intake = self.channel, self.group, self.settings.order, self.intake
        enter, recall = self._lanes.enter, self._recall
        for delivery in deliveries:
            delivery.subscription = subscription
            delivery.channel = channel
            delivery.group = group
            delivery.order = order
            delivery.control = intake
            try:
                read_delivery(delivery, now)
                if recall is not None and recall.remind(delivery):
                    read_delivery(delivery, now)
            except Exception as error:  # noqa: BLE001 - one odd message must not stop its neighbours
                delivery.extra = {_BAR: error}
            if delivery.message.key is None or enter(delivery):
                self._make_ready(delivery)

    def _make_ready(self, delivery: Delivery) -> None:
        """Queue a delivery that heads its lane, unless it may not start at all, not yet, or only alone."""
        if delivery.unusual or delivery.hop >= self.settings.hop_limit:
            self._make_ready_if_allowed(delivery)
            return
        self._ready.append(delivery)
        if self._idle and not self._isolation.gate:
            self._wake_worker()

    def _make_ready_if_allowed(self, delivery: Delivery) -> None:
        settings = self.settings
        if delivery.stopped is not None:
            self._gone(delivery)
        elif delivery.extra is not None and _BAR in delivery.extra:
            self._bar(delivery, delivery.extra[_BAR])
        elif delivery.alone >= settings.crash_limit:
            detail = f"its handling ended with the process {delivery.alone} times while it ran alone"
            self._conclude(delivery, DeadLetter("crash_loop", detail))
        elif delivery.hop >= settings.hop_limit and delivery.attempt >= settings.hop_limit:
            self._conclude(delivery, DeadLetter("hop_limit", f"{delivery.hop} copies of it have been made"))
        elif delivery.due and (left := delivery.due - self._clock.time()) > 0:
            self._wait_in_lane(delivery, min(left, settings.max_hold))
        elif delivery.suspect and delivery.alone and not (delivery.extra or {}).get(_COOLED):
            delivery.extra = {**(delivery.extra or {}), _COOLED: True}
            self._wait_in_lane(delivery, min(_COOLING * 2.0**delivery.alone, settings.max_hold))
        elif delivery.suspect:
            self._isolation.add(delivery)
        else:
            self._ready.append(delivery)
            if self._idle and not self._isolation.gate:
                self._wake_worker()

    def judge(self, delivery: Delivery) -> None:
        """Look again at a suspect of which it is known now how often it was begun and not ended."""
        self._make_ready_if_allowed(delivery)

    def _bar(self, delivery: Delivery, error: Exception) -> None:
        """Give back, uncounted, what this version must not judge: a copy of a later one."""
        tell(self._hooks, Alarm(getattr(error, "code", "unreadable_copy"), str(error), delivery))
        _log.error("%s", error)
        retry = Retry(after=_BARRED, reason="barred", counts=False)
        if self.settings.order == "key":
            self._conclude(delivery, retry)
            return
        self.settler.settle(
            delivery, retry
        )  # never by a copy: what this version cannot read it must not rewrite
        if delivery.message.key is not None:
            self._next(delivery)

    def _wake_worker(self) -> None:
        while self._idle:
            worker = self._idle.popleft()
            if not worker.done():
                worker.set_result(None)
                return

    def wake_workers(self) -> None:
        """Set as many workers going as there is work for; called when the gate of isolation opens."""
        for _ in range(min(len(self._ready), len(self._idle))):
            self._wake_worker()

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
        isolation = self._isolation
        started = self._started
        time = loop.time
        turn = time()
        while not self._dismissed:
            if not ready or isolation.gate:
                idle = loop.create_future()
                self._idle.append(idle)
                await self._rest(idle, task)
                turn = time()
                continue
            delivery = ready.popleft()
            if not ready and self._room is not None:
                self._more_room()
            if delivery.stopped is not None:
                self._gone(delivery)
                continue
            if started is not None and delivery.position is not None:
                partition, offset = delivery.position
                if offset > started.get(partition, -1):
                    started[partition] = offset
            try:
                begun = self._begin(delivery)
                if type(begun) is Ack and not task.cancelling() and delivery.stopped is None:
                    self._conclude(delivery, begun)
                else:
                    await self._see_through(delivery, begun, task)
                    if self._leaving() and (task.cancelling() or not self._stopping):
                        return
            except Exception as error:  # noqa: BLE001 - a bug here must cost neither the message nor the worker
                self._botched(delivery, error)
            if time() - turn > _TURN:
                await self._rest(asyncio.sleep(0), task)
                turn = time()

    async def _rest(self, rest: Any, task: asyncio.Task[Any]) -> None:
        """Wait. A cancellation that an earlier handler left behind must not end the worker."""
        try:
            await rest
        except asyncio.CancelledError:
            if self._leaving():
                raise
            await absorb_cancellation(task)

    def _begin(self, delivery: Delivery) -> Begun:
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

    async def _see_through(self, delivery: Delivery, begun: Begun, task: asyncio.Task[Any]) -> None:
        """Await what has begun and conclude it; it counts as running until both are done."""
        self._running[id(delivery)] = (delivery, task)
        try:
            self._close(delivery, await self._outcome(delivery, begun, task))
        finally:
            del self._running[id(delivery)]
            self._tell_changed()

    async def _outcome(self, delivery: Delivery, begun: Begun, task: asyncio.Task[Any]) -> Settlement | None:
        """Await a handling to its end and clear the cancellations that it leaves behind."""
        settlement: Settlement | None
        if isinstance(begun, Driven):
            try:
                settlement = await begun
            except BaseException as error:
                if begun.closed:
                    raise
                settlement = self._escaped(delivery, error)
        else:
            settlement = begun
        if task.cancelling() and not self._leaving():
            await absorb_cancellation(task)
        return settlement

    async def handle_alone(self, delivery: Delivery, before: Mark, after: Mark) -> None:
        """Handle a suspect: `before()` writes its crash mark, `after()` takes it back on every ending survived."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - isolation runs each suspect in a task
        self._running[id(delivery)] = (delivery, task)
        try:
            standing = await before()
            settlement = await self._outcome_alone(delivery, standing, task)
            if standing != "stale":
                await after()  # also what may stand, because no answer came: one too few is the harmless side
            self._close(delivery, settlement)
            if type(settlement) is Ack and delivery.stopped is None:
                await self._isolation.forget(delivery)  # last: it may be cancelled, and nothing waits for it
        except Exception as error:  # noqa: BLE001 - a bug here must not cost the message
            self._botched(delivery, error)
        finally:
            del self._running[id(delivery)]
            self._tell_changed()

    async def _outcome_alone(
        self, delivery: Delivery, standing: Standing, task: asyncio.Task[Any]
    ) -> Settlement | None:
        if standing == "stale" or self._stopping:
            delivery.stopped = delivery.stopped or ("lost" if standing == "stale" else "drain")
        if delivery.stopped is not None:
            return None
        if standing == "unavailable":
            # not by a copy: a copy is no suspect
            return Retry(after=min(_BARRED, self._max_return), reason="unmarked", counts=False)
        return await self._outcome(delivery, self._begin(delivery), task)

    def _close(self, delivery: Delivery, settlement: Settlement | None) -> None:
        if delivery.stopped is not None:
            self._gone(delivery)
        else:
            self._conclude(delivery, settlement)

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
        if isinstance(error, asyncio.CancelledError) and self._leaving():
            delivery.stopped = delivery.stopped or "cancelled"
        if delivery.stopped is not None:
            return None
        return self._mishap(delivery, f"raised {type(error).__name__}: {error}", error)

    def _botched(self, delivery: Delivery, error: Exception) -> None:
        """Give a delivery back, uncounted, that a bug of the engine's or an adapter's own has kept from being concluded."""
        text = f"{self._name}: concluding {delivery!r} failed: {error!r}; the message goes back uncounted"
        _log.critical("%s", text, exc_info=error)
        tell(self._hooks, Alarm("engine_failed", text, delivery))
        if self.settings.order == "key":
            self._wait_in_lane(delivery, _MISHAP)
            return
        self.settler.settle(delivery, Retry(after=_MISHAP, reason="engine_failed", counts=False))
        if delivery.message.key is not None:
            self._next(delivery)

    def _mishap(self, delivery: Delivery, what: str, error: BaseException | None = None) -> Retry:
        text = f"a pattern of {self._name} {what}; the message goes back uncounted"
        _log.error("%s", text, exc_info=error)
        tell(self._hooks, Alarm("pattern_failed", text, delivery))
        return Retry(after=_MISHAP, reason="pattern_failed", counts=False)

    # -- endings

    def _conclude(self, delivery: Delivery, settlement: Settlement | None) -> None:
        """Hand a settlement on, and let the next of the key go where it may."""
        key_ordered = self.settings.order == "key"
        if self._recall is not None and type(settlement) is Ack:
            self._recall.forget(delivery)
        if type(settlement) is Ack:
            self.settler.settle(delivery, settlement)
        elif isinstance(settlement, DeadLetter):
            self.settler.copy(delivery, settlement)
            if key_ordered:  # its key goes on when the copy is safe, see _on_released
                return
        elif not isinstance(settlement, Retry):
            self._conclude(
                delivery, self._mishap(delivery, f"returned {settlement!r}, which is no settlement")
            )
            return
        elif key_ordered:
            self._hold(delivery, settlement)
            return
        elif settlement.counts or settlement.after > self._max_return:
            self.settler.copy(delivery, settlement)
        else:
            self.settler.settle(delivery, settlement)
        if delivery.message.key is not None:
            self._next(delivery)

    def _next(self, delivery: Delivery) -> None:
        """Let the next of a key go; a loop, because what comes next may end at once, and so may its next."""
        following = self._lanes.leave(delivery)
        if following is None:
            return
        if self._unlocked is not None:
            self._unlocked.append(following)
            return
        self._unlocked = deque([following])
        try:
            while self._unlocked:
                following = self._unlocked.popleft()
                try:
                    self._make_ready(following)
                except Exception as error:  # noqa: BLE001 - the others of the key must not be forgotten
                    self._botched(following, error)
        finally:
            self._unlocked = None

    def _hold(self, delivery: Delivery, retry: Retry) -> None:
        """Keep a delivery at the head of its lane, unsettled, until its retry is due."""
        after = retry.after
        if after > self.settings.max_hold:
            after = self.settings.max_hold
            _log.warning(
                "%s: a retry after %.0f s is cut to max_hold, %.0f s", self._name, retry.after, after
            )
        if retry.counts:
            delivery.attempt += 1
            delivery.due = self._clock.time() + after
            self.settler.mark(delivery, mark_of(delivery, alone=delivery.alone))
            if self._recall is not None:
                self._recall.keep(delivery)
        if self._hooks:
            tell(self._hooks, Settled(delivery, retry, "held"))
        if self._stopping:
            self._forget_behind(delivery)
        else:
            self._wait_in_lane(delivery, after)
            self._more_room()

    def _wait_in_lane(self, delivery: Delivery, after: float) -> None:
        timer = asyncio.get_running_loop().call_later(after, self._resume, delivery)
        self._held[id(delivery)] = (delivery, timer)

    def _resume(self, delivery: Delivery) -> None:
        del self._held[id(delivery)]
        delivery.due = 0.0
        self._make_ready(delivery)

    def _on_end(self, count: int) -> None:
        self.counts.out -= count
        if self._changed:
            self._tell_changed()
        if self._room is not None:
            self._more_room()
        if self._listener is not None:
            self._listener(count)

    def _on_released(self, delivery: Delivery) -> None:
        """Let a key go on behind a dead letter, once its copy is safe or no longer ours to make."""
        if self._recall is not None:
            self._recall.forget(delivery)
        if self.settings.order == "key" and delivery.message.key is not None:
            self._next(delivery)

    def _gone(self, delivery: Delivery) -> None:
        """Forget a delivery that ends without a settlement: it was lost, or its handling was cancelled."""
        self.counts.out -= 1
        if self._stopping:
            self._forget_behind(delivery)
            return
        if delivery.message.key is not None:
            self._next(delivery)
        self._more_room()

    # -- loss

    async def _on_lost(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """
        Drop what must not start any more, let the rest finish within the seconds, then cancel it.

        Off a log that is all that has not started. On a log what lies below the highest started offset of its partition
        is finished too: the next owner would otherwise read it, and what is done above it, once more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        self._lose(self._doomed(deliveries, deadline))
        if seconds > 0:
            while self._pending(deliveries) and not self._hurried.is_set():
                left = deadline - loop.time()
                if left <= 0:
                    break
                await self._change(left)
                self._lose(self._doomed(deliveries, deadline))
            await self.settler.flush(deliveries, deadline - loop.time())
        self._lose(deliveries)
        for delivery in deliveries:
            if self._started is not None and delivery.position is not None:
                self._started.pop(delivery.position[0], None)
            if running := self._running.get(id(delivery)):
                running[1].cancel()

    def _pending(self, deliveries: Sequence[Delivery]) -> bool:
        """Say whether one of these runs, or has still to start."""
        if any(id(delivery) in self._running for delivery in deliveries):
            return True
        waiting = set(map(id, self._unstarted()))
        return any(id(delivery) in waiting and delivery.stopped is None for delivery in deliveries)

    def _doomed(self, deliveries: Sequence[Delivery], deadline: float) -> list[Delivery]:
        """Return those that have not started and are not to start before they are lost."""
        waiting = set(map(id, self._unstarted()))
        unstarted = [delivery for delivery in deliveries if id(delivery) in waiting]
        started = self._started
        if started is None or deadline <= asyncio.get_running_loop().time():
            return unstarted
        late = {id(delivery) for delivery, timer in self._held.values() if timer.when() > deadline}
        late.update(map(id, self._isolation.suspects))
        # what waits behind one of these cannot start before it
        heads = set(map(id, self._ready)) | late
        keys = {
            delivery.message.key
            for delivery in unstarted
            if id(delivery) in heads and (id(delivery) in late or self._lies_above(delivery))
        }
        keys.discard(None)
        return [
            delivery
            for delivery in unstarted
            if id(delivery) in late or delivery.message.key in keys or self._lies_above(delivery)
        ]

    def _lies_above(self, delivery: Delivery) -> bool:
        """Say whether nothing of its partition has started that lies at it or above it."""
        if self._started is None or delivery.position is None:
            return True
        partition, offset = delivery.position
        return offset > self._started.get(partition, -1)

    def _lose(self, deliveries: Iterable[Delivery]) -> None:
        """Mark deliveries as somebody else's and forget those that wait."""
        lost = list(deliveries)
        for delivery in lost:
            delivery.stopped = "lost"
        self.counts.out -= len(self._lanes.drop(lost))
        for delivery in lost:
            held = self._held.pop(id(delivery), None)
            if held is not None:
                held[1].cancel()
                self._gone(delivery)
        self._more_room()


_BAR = "barred"
_COOLED = "cooled"


def _as_coroutine(handler: Handler) -> Handler:
    async def run(delivery: Delivery) -> Settlement:
        return await handler(delivery)

    return run
