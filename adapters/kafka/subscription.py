"""
A member of a group: what it reads, hands out and holds, and what it does when partitions are taken away.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from types import coroutine

from brokerkit.adapter import OnLost, Order, Settled
from brokerkit.adapters.kafka.adoption import adopt
from brokerkit.adapters.kafka.client import Consumer, Fenced, Place, Transient
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.committer import Committer
from brokerkit.adapters.kafka.marks import put, restore
from brokerkit.adapters.kafka.options import Options
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.shelf import Hop, Shelf
from brokerkit.adapters.kafka.stamping import stamp, stamp_one_by_one
from brokerkit.adapters.kafka.wire import Record
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError, ConnectionLost, SettleError, Stale, Unavailable
from brokerkit.settlement import Ack

__all__ = ["KafkaSubscription"]

_log = logging.getLogger("brokerkit.kafka")
_READ_AHEAD = 250
_BATCH = 500
_POLL = 1.0
_JOIN = 2.0
_LAST_COMMIT = 3.0
_LAST_HOP = 1.0
_LEAVE = 2.0
_BACKOFF = 0.1
_DOUBT = 0.8


class KafkaSubscription:
    """
    A place in one channel for one group; also `Marks` and the seam's `Listener`.

    One task reads and stamps each record with the `Partition` that is current in that step. What is handed out belongs to
    it until it is settled, or until the partition is taken away: then nothing more is handed out, the engine is asked to
    finish, and the last commit says how far it has come. A result that comes later is `Stale`.
    """

    def __init__(
        self,
        consumer: Consumer,
        topics: Sequence[str],
        make: Callable[[str, int], Partition],
        *,
        name: str,
        order: Order,
        durable: bool,
        prefetch: int,
        on_lost: OnLost,
        hop: Hop,
        clock: BrokerClock,
        options: Options,
        on_closed: Callable[["KafkaSubscription"], None],
    ) -> None:
        self._consumer = consumer
        self._topics = topics
        self._make = make
        self._name = name
        self._order = order
        self._durable = durable
        self._slack = prefetch + _READ_AHEAD + _BATCH
        self._on_lost = on_lost
        self._options = options
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._parts: dict[Place, Partition] = {}
        self._ready: deque[Delivery] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._keeping = False
        self._failure: BrokerkitError | None = None
        self._joined: asyncio.Future[None] = self._loop.create_future()
        self._tasks: list[asyncio.Task[None]] = []
        self._adoption: asyncio.Task[None] | None = None
        self._closed = False
        self._closing: asyncio.Task[None] | None = None
        self._failing: asyncio.Task[None] | None = None
        self._withdrawn: set[int] = set()
        self._committer = Committer(
            consumer,
            buffered=self._buffered,
            on_fenced=self._fenced,
            on_broken=lambda error: self._broken("committing", error),
        )
        self._shelf = Shelf(clock, hop=hop, on_due=self._due, on_left=self._left)

    # -- the boundary

    async def start(self) -> None:
        """Join; returns with the first assignment, or after two seconds: others may be draining for us."""
        await self._consumer.start(self._topics, self)
        self._tasks = [self._loop.create_task(self._read_for_ever(), name=f"brokerkit {self._name} reader")]
        await asyncio.wait({self._joined}, timeout=_JOIN)
        if self._failure is not None:
            failure = self._failure
            await self.close()
            raise failure

    async def receive(self, limit: int) -> Sequence[Delivery]:
        """Wait until there is something; empty when closed, `ConnectionLost` when the client has given up."""
        if limit < 1:
            message = f"receive({limit}): ask for at least one"
            raise ValueError(message)
        await _turn()
        while not self._closed:
            if self._ready:
                if self._consumer.generation != self._committer.generation:
                    self._fenced()
                    continue
                if self._is_doubtful():
                    if await self._ask() is not None:
                        await asyncio.sleep(_BACKOFF)
                    continue  # what was ready may have been withdrawn meanwhile
                return self._hand_out(limit)
            if self._failure is not None:
                raise self._failure
            self._waiter = self._loop.create_future()
            self._tell_room()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return ()

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """
        End some deliveries; the commit follows.

        After a silence of the coordinator as long as a session the group may have gone on without us: then the broker is
        asked before anything is answered.
        """
        if self._consumer.generation != self._committer.generation:
            self._fenced()
        elif self._is_doubtful():
            trouble = await self._ask()
            if trouble is not None:
                return [trouble] * len(settled)
        outcomes: list[SettleError | None] = [None] * len(settled)
        last: object = None
        opened: dict[int, Delivery] = {}
        for index, (delivery, settlement) in enumerate(settled):
            part = delivery.receipt
            if part is not last:
                last, opened = part, {}
                if isinstance(part, Partition) and part.live:
                    opened = part.open
                    self._committer.touch(part)
            offset = -1 if delivery.position is None else delivery.position[1]
            if opened.get(offset) is not delivery or not isinstance(part, Partition):
                outcomes[index] = _stale(delivery)
            elif type(settlement) is not Ack:
                outcomes[index] = self._return(part, delivery, offset, getattr(settlement, "after", 0.0))
            elif part.marks:
                part.finish(delivery, offset)
            else:
                del opened[offset]
        return outcomes if not self._durable else await self._remembered(settled, outcomes)

    async def _remembered(
        self, settled: Sequence[Settled], outcomes: list[SettleError | None]
    ) -> list[SettleError | None]:
        """In a dead place an ack is on the broker before it is answered: a letter that was sent back must not go twice."""
        parts = {
            delivery.receipt: None
            for delivery, _ in settled
            if isinstance(delivery.receipt, Partition) and delivery.receipt.live
        }
        trouble = await self._write(parts)
        for index, (delivery, settlement) in enumerate(settled):
            part, position = delivery.receipt, delivery.position
            if outcomes[index] is not None or type(settlement) is not Ack or position is None:
                continue
            if trouble is not None:
                outcomes[index] = trouble
            elif isinstance(part, Partition) and part.next > part.mapped and position[1] >= part.mapped:
                outcomes[index] = Unavailable(_SCATTERED)
        return outcomes

    async def mark(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> Sequence[SettleError | None]:
        """Write or erase bytes beside unsettled deliveries: they are part of the commit, which is awaited."""
        outcomes: list[SettleError | None] = []
        before: list[tuple[Partition, int, bytes | None]] = []
        for delivery, value in marks:
            part, position = delivery.receipt, delivery.position
            if not _is_ours(part, delivery) or not isinstance(part, Partition) or position is None:
                outcomes.append(_stale(delivery))
                continue
            offset = position[1]
            before.append((part, offset, part.marks.get(offset)))
            outcomes.append(None if put(part, offset, value) else Unavailable(_FULL))
        if not before:
            return outcomes
        trouble = await self._write({part: None for part, _, _ in before})
        if trouble is None:
            return outcomes
        for part, offset, value in before:
            restore(part, offset, value)
        return [trouble if outcome is None else outcome for outcome in outcomes]

    async def close(self) -> None:
        """Leave, within seven seconds whatever the broker does. What is unsettled goes back politely."""
        if self._closing is None:
            self._closed = True
            self._wake()
            self._closing = self._loop.create_task(self._leave(), name=f"brokerkit {self._name} close")
        await asyncio.shield(self._closing)

    # -- assignments

    def assigned(self, places: Sequence[Place]) -> None:
        """Take note of what is ours now, paused until its notes are read: records flow while this runs."""
        self._parts = {place: self._make(*place) for place in places}
        self._committer.generation = self._consumer.generation
        self._consumer.pause(places)
        self._adoption = self._loop.create_task(self._adopt(list(self._parts.values())))

    async def revoked(self) -> None:
        """
        Finish with everything that is ours, and say so in the last commit.

        Revoked or lost is told by the generation: -1 means that the group has forgotten us, somebody else is at work, and
        nothing may be committed any more.
        """
        parts = list(self._parts.values())
        await self._end_adoption()
        if not parts or self._closed:
            return
        lost = self._consumer.generation < 0 or not all(part.live for part in parts)
        handed = self._withdraw(parts)
        if lost:
            self._fence(parts)
        try:
            begin = self._loop.time()
            await self._tell_lost(handed, 0.0 if lost else self._options.drain)
            if not lost:
                left = self._options.drain - (self._loop.time() - begin)
                await self._shelf.settled(max(left, _LAST_HOP))
                await self._committer.last(parts, _LAST_COMMIT)
        finally:
            self._fence(parts)
            self._forget_parts()

    def _withdraw(self, parts: Sequence[Partition]) -> list[Delivery]:
        """Hand nothing more of these out, forget what is read, and return what was handed out."""
        buffered = self._withdrawn = self._buffered()
        for part in parts:
            part.draining = True
        gone = set(map(id, parts))
        self._ready = deque(delivery for delivery in self._ready if id(delivery.receipt) not in gone)
        handed = [delivery for part in parts for delivery in part.handed(buffered)]
        self._shelf.drop(parts)
        return handed

    async def _tell_lost(self, handed: Sequence[Delivery], seconds: float) -> None:
        """Ask the engine to finish; whatever it does, go on in time."""
        if not handed:
            return
        try:
            async with asyncio.timeout(seconds + 1.0):
                await self._on_lost(handed, seconds)
        except Exception:  # noqa: BLE001 - the engine's trouble must not keep the group from going on
            _log.exception("%s: on_lost failed; its partitions go all the same", self._name)

    def _forget_parts(self) -> None:
        self._parts = {}
        self._withdrawn = set()

    async def _adopt(self, parts: Sequence[Partition]) -> None:
        """Read what the last owners have left behind, write that we are at work, and only then begin to read."""
        backoff = _BACKOFF
        while parts:
            try:
                await adopt(self._consumer, [part for part in parts if not part.adopted], slack=self._slack)
                await self._committer.write(parts, force=True)
            except Fenced:
                return
            except Transient as error:
                _log.warning("%s: the notes of its partitions cannot be read: %s", self._name, error)
                await asyncio.sleep(backoff)
                backoff = min(backoff * 2, 2.0)
            except Exception as error:  # noqa: BLE001 - partitions that nobody reads are an outage
                self._broken("taking over its partitions", error)
                return
            else:
                break
        for part in parts:
            part.begun = True
            self._apply(part)
        if not self._joined.done():
            self._joined.set_result(None)

    async def _end_adoption(self) -> None:
        if self._adoption is not None:
            self._adoption.cancel()
            await asyncio.gather(self._adoption, return_exceptions=True)
            self._adoption = None

    def _fenced(self) -> None:
        """The group has gone on: from here on nothing is ours. The client notices too, and calls `revoked`."""
        self._fence(self._parts.values())

    def _fence(self, parts: Iterable[Partition]) -> None:
        for part in parts:
            part.live = False
        self._ready = deque(delivery for delivery in self._ready if _hands_out(delivery.receipt))

    # -- reading

    async def _read_for_ever(self) -> None:
        try:
            while True:
                await self._until_room()
                batch = await self._consumer.poll(self._limit(), _POLL)
                if batch:
                    await self._take(batch)
        except BrokerkitError as error:
            await self._fail(error)
        except Exception as error:  # noqa: BLE001 - a reader that dies in silence is an outage
            self._broken("reading", error)

    def _broken(self, what: str, error: Exception) -> None:
        """Something that nobody foresaw has ended a task: say so, and let the engine subscribe again."""
        _log.error("%s: %s failed", self._name, what, exc_info=error)
        for task in self._tasks:
            task.cancel()
        failure = ConnectionLost(f"{self._name}: {what} failed: {error!r}")
        failure.__cause__ = error
        self._failing = self._loop.create_task(self._fail(failure), name=f"brokerkit {self._name} failing")

    async def _fail(self, error: BrokerkitError) -> None:
        """Give up: fence, tell the engine, and then raise in `receive`."""
        parts = list(self._parts.values())
        handed = self._withdraw(parts)
        self._fence(parts)
        self._forget_parts()
        await self._tell_lost(handed, 0.0)
        self._failure = error
        if not self._joined.done():
            self._joined.set_result(None)
        self._wake()

    async def _until_room(self) -> None:
        """
        Wait until more can be held, and stay in the group meanwhile.

        Not reading is our back-pressure. The client throws a member out that asks for nothing for `max_poll` seconds, so ask
        before, with everything paused.
        """
        while not self._has_room():
            self._room = self._loop.create_future()
            await asyncio.wait({self._room}, timeout=self._options.max_poll / 3)
            if not self._room.done():
                await self._keep_alive()
        self._room = None

    def _has_room(self) -> bool:
        if self._is_careful():
            return not self._ready and self._waiter is not None
        return len(self._ready) < _READ_AHEAD

    def _limit(self) -> int:
        return 16 if self._is_careful() else _BATCH

    def _is_careful(self) -> bool:
        return any(part.careful for part in self._parts.values())

    async def _keep_alive(self) -> None:
        self._keeping = True
        try:
            self._apply_all()
            batch = await self._consumer.poll(1, 0.0)
        finally:
            self._keeping = False
            self._apply_all()
        if batch:  # an assignment that came meanwhile is not paused yet
            await self._take(batch)

    async def _take(self, batch: Mapping[Place, Sequence[Record]]) -> None:
        """Stamp what was read; the first half of this runs in the step in which it was handed over."""
        fresh: list[Delivery] = []
        careful: list[Partition] = []
        native = self._options.records
        for place, records in batch.items():
            part = self._parts.get(place)
            if part is None or part.draining or not part.begun:
                _log.info("%s: records of %s before it was taken over; read again", self._name, place)
                self._consumer.seek(place, records[0].offset)
                continue
            if part.careful:
                careful.append(part)
            if part.wait is None and part.plain and records[0].offset >= part.next:
                stamp(part, records, fresh, native=native)
            else:
                stamp_one_by_one(part, records, fresh, self._shelf, native=native)
                self._committer.touch(part)
                self._apply(part)
        if careful:
            await self._note_hand_out(careful)
        if careful or any(part.draining for part in self._parts.values()):
            fresh = [delivery for delivery in fresh if _hands_out(delivery.receipt)]
        self._ready.extend(fresh)
        if fresh:
            self._wake()

    async def _note_hand_out(self, parts: Sequence[Partition]) -> None:
        """Write down that these are handed out before they are: one of them may have killed the last owner."""
        while any(part.live and not part.draining for part in parts):
            try:
                await self._committer.write(parts, force=True)
            except Fenced:
                self._fenced()
            except Transient as error:
                _log.warning("%s: a hand-out cannot be written down yet: %s", self._name, error)
                await asyncio.sleep(_BACKOFF)
            else:
                return

    # -- handing out

    def _hand_out(self, limit: int) -> Sequence[Delivery]:
        ready = self._ready
        if limit >= len(ready):
            batch = list(ready)
            ready.clear()
        else:
            batch = [ready.popleft() for _ in range(limit)]
        for part in {delivery.receipt for delivery in batch}:
            self._committer.touch(part)  # type: ignore[arg-type]
        self._tell_room()
        return batch

    def _due(self, part: Partition, delivery: Delivery) -> None:
        """Hand out what has waited; called by the shelf."""
        if part.live and not part.draining:
            self._ready.append(delivery)
            self._wake()
        self._apply(part)

    def _left(self, part: Partition) -> None:
        """A rung record has gone to its next rung; called by the shelf."""
        self._committer.touch(part)
        self._apply(part)

    def _return(self, part: Partition, delivery: Delivery, offset: int, seconds: float) -> SettleError | None:
        """Take a delivery back: it stays unfinished here, and comes again as a new one."""
        if part.open.get(offset) is not delivery:
            return _stale(delivery)
        if self._order == "key":
            return Unavailable("with order by key a return is held in its lane, not here")
        again = Delivery(
            delivery.message,
            delivery.address,
            part,
            arrivals=(delivery.arrivals or 1) + 1,
            returns=delivery.returns + 1,
            position=delivery.position,
            mark=part.marks.get(offset),
            native=delivery.native,
        )
        part.replace(offset, again)
        if part.draining:
            self._withdrawn.add(id(again))  # it is not handed out before the next owner does
            return None
        if seconds > 0:
            self._shelf.back(part, again, seconds)
            self._apply(part)
        else:
            self._ready.append(again)
            self._wake()
        return None

    def _buffered(self) -> set[int]:
        """Return the ids of what is read and not handed out."""
        return self._shelf.ids() | self._withdrawn | set(map(id, self._ready))

    def _apply_all(self) -> None:
        for part in self._parts.values():
            self._apply(part)

    def _apply(self, part: Partition) -> None:
        """Pause a partition as long as there is a reason to; the client forgets pauses, a new owner begins with one."""
        if self._parts.get(part.tp) is not part or part.draining:
            return
        full = part.held >= part.hold or (part.paused and part.held > part.hold // 2)
        paused = full or self._keeping or not part.begun
        if paused != part.paused:
            part.paused = paused
            (self._consumer.pause if paused else self._consumer.resume)([part.tp])

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell_room(self) -> None:
        if self._room is not None and not self._room.done() and self._has_room():
            self._room.set_result(None)

    # -- the broker's word, and the end

    def _is_doubtful(self) -> bool:
        """
        Whether the coordinator has been silent for so long that the group may have gone on without us.

        A member that was frozen goes on fetching with the assignment that it had, and nobody tells it.
        """
        return self._loop.time() - self._consumer.contact > self._options.session * _DOUBT

    async def _ask(self) -> SettleError | None:
        """Ask the broker whether we are still a member: None, or what every settlement is now."""
        return await self._write(dict.fromkeys(self._parts.values()))

    async def _write(self, parts: Mapping[Partition, None]) -> SettleError | None:
        try:
            await self._committer.write(list(parts), force=True)
        except Fenced:
            self._fenced()
            return Stale(f"{self._name}: the group has gone on without this member")
        except Transient as error:
            return Unavailable(f"{self._name}: {error}")
        if not all(part.live for part in parts):
            return Stale(f"{self._name}: the partitions were taken away meanwhile")
        return None

    async def _leave(self) -> None:
        if self._failing is not None:
            self._tasks.append(self._failing)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._end_adoption()
        begin = self._loop.time()
        parts = list(self._parts.values())
        self._withdraw(parts)
        await self._shelf.settled(_LAST_COMMIT)
        if self._consumer.generation >= 0 and any(part.live for part in parts):
            await self._committer.last(parts, begin + _LAST_HOP + _LAST_COMMIT - self._loop.time())
        self._fence(parts)
        self._forget_parts()
        self._shelf.close()
        await self._committer.close()
        await self._consumer.stop(_LEAVE)
        self._on_closed(self)


@coroutine
def _turn() -> Generator[None, None, None]:
    """Let the event loop turn once, so that one busy group cannot starve its neighbours."""
    yield


_FULL = "the commit's metadata has no room for this mark; the broker takes 4,096 characters a partition"
_SCATTERED = (
    "what is done in this dead place is too scattered to be remembered: settle its oldest letters first"
)


def _is_ours(part: object, delivery: Delivery) -> bool:
    position = delivery.position
    return (
        isinstance(part, Partition)
        and part.live
        and position is not None
        and part.open.get(position[1]) is delivery
    )


def _hands_out(part: object) -> bool:
    return isinstance(part, Partition) and part.live and not part.draining


def _stale(delivery: Delivery) -> Stale:
    return Stale(f"{delivery.address} {delivery.position}: it is no longer ours")
