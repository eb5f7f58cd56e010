"""
A member of a group: it polls the group's queue and its inlet, holds what is handed out, and ends it.
"""

import asyncio
import logging
import math
import re
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any
from zlib import crc32

from brokerkit.adapter import OnLost, Settled
from brokerkit.adapters.sqs.desk import BATCH, Desk
from brokerkit.adapters.sqs.held import Held, Keeper, Source, put_back
from brokerkit.adapters.sqs.intake import Intake
from brokerkit.adapters.sqs.tallies import Tallies
from brokerkit.adapters.sqs.waiting import IN_HAND, Parking, parks_of
from brokerkit.adapters.sqs.wire import read_message
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Stale, Unavailable
from brokerkit.message import Address
from brokerkit.settlement import Retry

__all__ = ["SqsSubscription"]

_IDLE = 5.0
"""Seconds after which what was fetched, and nobody takes, goes back to the group."""

_CLOSE = 2.0
_LONGEST = 43_200
_LANES = 8
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

_log = logging.getLogger(__name__)

Ending = tuple[int, Held, float | None]
"""Index of a settlement, what it ends, and the seconds of a return, or None for an ack."""


class SqsSubscription:
    """
    A place in one channel for one group; also `Holds` and `Tallies`.

    Order by key is its queue's: a FIFO queue has it, another has none.
    """

    def __init__(
        self, desk: Desk, at: Address, sources: Sequence[Source], on_lost: OnLost, tallies: Tallies
    ) -> None:
        self._desk = desk
        self._tallies = tallies
        self._at = at
        self._channel = Address(at.channel)
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._keeper = Keeper(desk, self._lose)
        self._intakes = [Intake(desk, source, self._take, self._fail) for source in sources]
        self._parkings = {source.queue.url: Parking(desk, source, self._keeper) for source in sources}
        self._ready: deque[Held] = deque()
        self._timers: dict[Held, asyncio.TimerHandle] = {}
        self._out: dict[Delivery, Held] = {}
        self._changed = asyncio.Event()
        self._waits = False
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._settles = 0
        self._settled = asyncio.Event()
        self._idle: asyncio.TimerHandle | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self._closed

    def start(self) -> None:
        """Begin; nothing is polled before somebody receives."""
        self._keeper.start()

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until there is something; empty when closed, `ConnectionLost` when the queue cannot be read."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        while not self._closed:
            if taken := self._hand_out(limit):
                return taken
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            for intake in self._intakes:
                intake.seek(limit)
            await self._change()
        return ()

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """
        End some deliveries; `Stale` for what is no longer ours, without a call.

        With order by key, acks of one key go one after the other, and none overtakes one that could not be made.
        """
        outcomes: list[SettleError | None] = [None] * len(settled)
        endings: list[Ending] = []
        for index, (delivery, settlement) in enumerate(settled):
            held = self._out.get(delivery)
            if held is None or held.settling or self._closed or self._keeper.expired(held):
                outcomes[index] = _stale(delivery)
                continue
            held.settling = True
            endings.append((index, held, settlement.after if isinstance(settlement, Retry) else None))
        self._settles += 1
        try:
            await self._end(endings, outcomes)
        finally:
            for _, held, _ in endings:
                held.settling = False
            self._settles -= 1
            self._settled.set()
        return outcomes

    async def hold(self, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
        """Renew what is ours, confirmed by the service; `Stale` for what is not, `Unavailable` if it cannot be asked."""
        outcomes: list[SettleError | None] = [None] * len(deliveries)
        by_queue: dict[str, list[tuple[int, Held]]] = {}
        for index, delivery in enumerate(deliveries):
            held = self._out.get(delivery)
            if held is None or self._closed or self._keeper.expired(held):
                outcomes[index] = _stale(delivery)
            else:
                by_queue.setdefault(held.source.queue.url, []).append((index, held))
        for part in by_queue.values():
            renewed = await self._keeper.renew([held for _, held in part])
            for (index, _), outcome in zip(part, renewed, strict=True):
                outcomes[index] = outcome
        return outcomes

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change some counts of the group, durably; see `brokerkit.adapter.Tallies`."""
        return await self._tallies.tally(changes)

    async def close(self) -> None:
        """
        Leave: what is unsettled is put back. Idempotent.

        Waits for the polls that are under way, so it takes as long as a poll waits (option `poll`), at most 5 s; with a
        frozen broker some seconds more.
        """
        if self._closing is None:
            self._closed = True
            self._changed.set()
            self._closing = self._loop.create_task(self._leave())
        await asyncio.shield(self._closing)

    # -- intake

    async def _change(self) -> None:
        self._changed.clear()
        self._waits = True
        self._stop_watch()
        try:
            await self._changed.wait()
        finally:
            self._waits = False
            for intake in self._intakes:
                intake.seek(0)

    def _hand_out(self, limit: int) -> list[Delivery]:
        """Take what is ready and still ours; there is no await between this and the caller's return."""
        taken: list[Delivery] = []
        while self._ready and len(taken) < limit:
            held = self._ready.popleft()
            if held in self._keeper.held:
                self._out[held.delivery] = held
                taken.append(held.delivery)
        if taken:
            self._stop_watch()
            self._watch()
        return taken

    def _take(self, source: Source, found: Sequence[dict[str, Any]], begun: float) -> int:
        self._failure = None
        before = len(self._ready)
        parked: list[tuple[Held, float, dict[str, Any]]] = []
        for raw in found:
            held, after = self._held_of(source, raw, begun)
            if self._keeper.expired(held):
                continue  # it came too late to be ours; it is with somebody else, or comes again
            left = self._parkings[source.queue.url].left(raw, after)
            if left > IN_HAND:
                parked.append((held, left, raw))
                continue
            self._keeper.held.add(held)
            if left > 0:
                self._timers[held] = self._loop.call_later(left, self._due, held)
            else:
                self._ready.append(held)
        if parked:
            self._spawn(self._parkings[source.queue.url].park(parked))
        if self._ready:
            self._changed.set()
            self._watch()
        return len(self._ready) - before

    def _held_of(self, source: Source, raw: dict[str, Any], begun: float) -> tuple[Held, float]:
        queue = source.queue
        read = read_message(raw, fifo=queue.fifo)
        message_id = str(raw.get("MessageId", ""))
        after = read.after if source.place == "inlet" else 0.0
        attributes: Mapping[str, str] = raw.get("Attributes") or {}
        arrivals = max(int(attributes.get("ApproximateReceiveCount", 1)), 1)
        polite = 0
        if arrivals > 1:
            polite = self._desk.returns.get(message_id, 0) + parks_of(after, fifo=queue.fifo)
        delivery = Delivery(
            read.message,
            self._channel if source.place is None else self._at,
            raw.get("ReceiptHandle"),
            arrivals=arrivals,
            returns=min(polite, arrivals - 1),
            position=_position(queue.name, message_id),
            native=raw,
        )
        until = begun + self._desk.options.lease
        held = Held(source, str(raw.get("ReceiptHandle")), until, self._loop.time(), delivery, message_id)
        return held, after

    def _due(self, held: Held) -> None:
        self._timers.pop(held, None)
        if held in self._keeper.held:
            self._ready.append(held)
            self._changed.set()
            self._watch()

    def _watch(self) -> None:
        """See to it that what lies ready does not lie for long while nobody receives."""
        if self._ready and not self._waits and self._idle is None and not self._closed:
            self._idle = self._loop.call_later(_IDLE, self._put_back_idle)

    def _stop_watch(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _put_back_idle(self) -> None:
        self._idle = None
        if self._waits or self._closed:
            return
        idle = [held for held in self._ready if held in self._keeper.held]
        self._ready.clear()
        self._spawn(self._put_back([(held, 0) for held in idle]))

    def _fail(self, error: Exception) -> None:
        self._failure = error
        self._changed.set()

    # -- endings

    async def _end(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> None:
        """Make the calls; in lanes by key where the queue keeps an order, all at once where it does not."""
        lanes: dict[tuple[str, int], list[Ending]] = {}
        for ending in endings:
            _, held, after = ending
            if after is not None and after <= IN_HAND and not held.source.queue.fifo:
                self._return_in_hand(held, after)
                continue
            lanes.setdefault((held.source.queue.url, _lane(held)), []).append(ending)
        await _all([self._end_lane(lane, outcomes) for lane in lanes.values()])

    async def _end_lane(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> None:
        queue = endings[0][1].source.queue
        if not queue.fifo:
            starts = range(0, len(endings), BATCH)
            await _all([self._end_chunk(endings[start : start + BATCH], outcomes) for start in starts])
            return
        failed: set[bytes | None] = set()
        for chunk in _without_twins(endings):
            good = [ending for ending in chunk if ending[1].delivery.message.key not in failed]
            for index, held, _ in chunk:
                if held.delivery.message.key in failed:
                    outcomes[index] = Unavailable("one before it with its key could not be settled yet")
            await self._end_chunk(good, outcomes)
            failed.update(
                held.delivery.message.key
                for index, held, _ in good
                if (error := outcomes[index]) is not None and error.retryable
            )

    async def _end_chunk(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> None:
        acks = [ending for ending in endings if ending[2] is None]
        returns = [ending for ending in endings if ending[2] is not None]
        ends = ((self._delete, acks), (self._return, returns))
        await _all([end(part, outcomes) for end, part in ends if part])

    async def _delete(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> None:
        async with self._desk.turn:
            if ours := self._still_ours(endings, outcomes):
                entries = [{"ReceiptHandle": held.handle} for _, held, _ in ours]
                await self._call("DeleteMessageBatch", ours, entries, outcomes)

    async def _return(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> None:
        leaving = [held for _, held, _ in endings]
        async with self._desk.turn:
            for held in leaving:
                held.leaving = True
            try:
                await self._keeper.quiet(leaving, self._timeout)
                if ours := self._still_ours(endings, outcomes):
                    entries = [put_back(held, self._seconds(held, after or 0.0)) for _, held, after in ours]
                    await self._call("ChangeMessageVisibilityBatch", ours, entries, outcomes)
            finally:
                for held in leaving:
                    held.leaving = False

    def _still_ours(self, endings: Sequence[Ending], outcomes: list[SettleError | None]) -> list[Ending]:
        """Return what can be ended: the turn may have been so long in coming that a lease is over."""
        ours: list[Ending] = []
        for ending in endings:
            if self._keeper.expired(ending[1]):
                outcomes[ending[0]] = _stale(ending[1].delivery)
            else:
                ours.append(ending)
        return ours

    @property
    def _timeout(self) -> float:
        """Seconds for a call that ends something: there is time for a second one before the lease is over."""
        return min(self._desk.options.send_timeout, max(self._desk.options.lease / 3, 1.0))

    async def _call(
        self,
        operation: str,
        endings: Sequence[Ending],
        entries: Sequence[dict[str, Any]],
        outcomes: list[SettleError | None],
    ) -> None:
        queue = endings[0][1].source.queue
        found = await self._desk.chunk(operation, queue, entries, self._timeout)
        for (index, held, after), outcome in zip(endings, found, strict=True):
            outcomes[index] = outcome
            if outcome is None or not outcome.retryable:
                self._forget(held)
                if outcome is None and after is not None:
                    self._desk.note_return(held.message_id)

    def _return_in_hand(self, held: Held, after: float) -> None:
        """Hand a message out again ourselves, soon: no call, and nothing that looks like a crash."""
        self._forget(held)
        old = held.delivery
        delivery = Delivery(
            old.message,
            old.address,
            held.handle,
            arrivals=old.arrivals,
            returns=old.returns,
            position=old.position,
            native=old.native,
        )
        again = Held(held.source, held.handle, held.until, held.since, delivery, held.message_id)
        self._keeper.held.add(again)
        self._timers[again] = self._loop.call_later(after, self._due, again)

    def _seconds(self, held: Held, after: float) -> int:
        """Return a visibility that is not too short: whole seconds, and no more than SQS grants one receive."""
        most = _LONGEST - math.ceil(self._loop.time() - held.since) - 60
        return max(min(math.ceil(after), most), 0)

    def _forget(self, held: Held) -> None:
        self._keeper.held.discard(held)
        self._out.pop(held.delivery, None)
        timer = self._timers.pop(held, None)
        if timer is not None:
            timer.cancel()

    def _lose(self, lost: Sequence[Held], seconds: float) -> None:
        """Give up what is not ours any more (or will not be), and tell the engine of what it has."""
        told = [
            held.delivery for held in lost if held.delivery in self._out and (seconds > 0 or not held.ends)
        ]
        if not seconds:
            for held in lost:
                self._forget(held)
        if told and not self._closed:
            self._spawn(self._tell(told, seconds))

    async def _tell(self, lost: Sequence[Delivery], seconds: float) -> None:
        await self._on_lost(lost, seconds)

    # -- leaving

    async def _leave(self) -> None:
        self._stop_watch()
        try:
            wait = min(self._desk.options.poll + 2.0, 5.0)
            await asyncio.gather(*(intake.close(wait) for intake in self._intakes))
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE):
                    while self._settles:
                        self._settled.clear()
                        await self._settled.wait()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=_CLOSE)
            await self._keeper.stop(
                _CLOSE
            )  # before what is held goes back: a renewal would hide it for a lease
            await self._put_back(self._unsettled())
        finally:
            await self._keeper.stop(0)
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            self._ready.clear()
            self._out.clear()
            self._keeper.held.clear()

    def _unsettled(self) -> list[tuple[Held, int]]:
        """Return what is held, the newest first, and after how many seconds others may have it."""
        now = self._loop.time()
        kept = sorted(self._keeper.held, key=lambda held: held.since, reverse=True)
        waits = {held: max(math.ceil(timer.when() - now), 0) for held, timer in self._timers.items()}
        return [(held, waits.get(held, 0)) for held in kept if not held.settling]

    async def _put_back(self, pairs: Sequence[tuple[Held, int]]) -> None:
        """Let others have these. One that cannot be put back comes to them when its lease is over."""
        by_queue: dict[str, list[tuple[Held, int]]] = {}
        for held, seconds in pairs:
            if not self._keeper.expired(held):
                by_queue.setdefault(held.source.queue.url, []).append((held, seconds))
            self._forget(held)
        await asyncio.gather(*(self._put_back_to(part) for part in by_queue.values()))

    async def _put_back_to(self, pairs: Sequence[tuple[Held, int]]) -> None:
        queue = pairs[0][0].source.queue
        await self._keeper.quiet([held for held, _ in pairs], _CLOSE)
        entries = [put_back(held, seconds) for held, seconds in pairs]
        outcomes = await self._desk.batch("ChangeMessageVisibilityBatch", queue, entries, _CLOSE)
        for (held, _), outcome in zip(pairs, outcomes, strict=True):
            if outcome is None:
                self._desk.note_return(held.message_id)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a task of %s failed: %r", self._at, error, exc_info=error)


async def _all(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do these at once; what is alone needs no task."""
    if len(works) == 1:
        await works[0]
    else:
        await asyncio.gather(*works)


def _lane(held: Held) -> int:
    key = held.delivery.message.key
    return crc32(key) % _LANES if held.source.queue.fifo and key is not None else 0


def _without_twins(endings: Sequence[Ending]) -> list[list[Ending]]:
    """Return calls of up to ten with no key twice: within one call nobody promises an order."""
    chunks: list[list[Ending]] = []
    latest: dict[bytes, int] = {}
    for ending in endings:
        key = ending[1].delivery.message.key
        start = 0 if key is None else latest.get(key, -1) + 1
        for number in range(start, len(chunks)):
            if len(chunks[number]) < BATCH:
                break
        else:
            number = len(chunks)
            chunks.append([])
        chunks[number].append(ending)
        if key is not None:
            latest[key] = number
    return chunks


def _position(queue: str, message_id: str) -> tuple[str, int] | None:
    return (queue, int(message_id.replace("-", ""), 16)) if _UUID.fullmatch(message_id) else None


def _stale(delivery: Delivery) -> Stale:
    return Stale(f"{delivery!r} is no longer held by this subscription")
