"""
The settler: the one place that ends deliveries and makes copies.

Settlements go to the broker in batches, as many as have come together while the last batch was on its way. A copy (a
counted retry, a dead letter) is sent, its confirmation awaited, and only then is the original acked: a crash
between leaves two copies with one event id, never none. Before it is sent the broker is asked, where it can be, whether the
original is still ours: a handler that fails after its lease has run out must not put what another has handled into the
dead letters.

Nothing here gives up. A copy that cannot be sent keeps its original unsettled and is tried again; a settlement that is
`Unavailable` is tried until the broker says `Stale`. Neither ever runs a handler again.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from brokerkit.adapter import Adapter, Holds, Marks, Subscription
from brokerkit.clock import SYSTEM, Clock
from brokerkit.context import asked_to_stop
from brokerkit.copies import STORY_ROOM, dead_copy, retry_copy, return_copy
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    BrokerkitError,
    ConnectionLost,
    SendError,
    SettleError,
    Stale,
    TooLarge,
    Unavailable,
)
from brokerkit.hooks import Alarm, Hook, Settled, tell
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Ack, DeadLetter, Retry, Settlement
from brokerkit.story import clean

__all__ = ["Settler", "by_subscription"]

_log = logging.getLogger("brokerkit")
_ROOMS = (STORY_ROOM, 4096, 2048, 512)
_BATCH = 500
_LONGEST = 30.0
_HOLD_COPY = "dead_letter"

T = TypeVar("T")
OnEnd = Callable[[int], None]


@dataclass(slots=True, eq=False)
class _Copy:
    """One copy on its way: what the original ends as, and how often sending it has failed."""

    delivery: Delivery
    settlement: Retry | DeadLetter
    tries: int = 0
    room: int = 0

    def message(self) -> Message:
        if isinstance(self.settlement, Retry):
            return retry_copy(self.delivery) if self.settlement.counts else return_copy(self.delivery)
        return dead_copy(self.delivery, room=_ROOMS[self.room])


@dataclass(slots=True, eq=False)
class _Shelf:
    """
    The settlements of one subscription that wait, in order, until it can be reached again.

    With order by key an ack must not overtake the one before it: a crash in between would hand out the older message of
    the key alone, after the newer one is done.
    """

    settles: list[tuple[Delivery, Ack | Retry]]
    tries: int = 0
    timer: asyncio.TimerHandle | None = None


class Settler:
    """
    Ends the deliveries of one group in one process.

    on_end(count) says that so many deliveries have ended, because the broker has confirmed it or they are no longer ours.
    on_released(delivery) is called when a copy is confirmed, or dropped because its original is somebody else's now.
    blocked: how many copies could not be sent at the last try; readiness is red while it is above zero.
    """

    def __init__(
        self,
        adapter: Adapter,
        inlet: Address,
        dead: Address,
        *,
        on_end: OnEnd,
        on_released: Callable[[Delivery], None],
        hooks: Sequence[Hook] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        self._adapter = adapter
        self._inlet = inlet
        self._dead = dead
        self._on_end = on_end
        self._on_released = on_released
        self._hooks = hooks
        self._clock = clock
        self._settles: list[tuple[Delivery, Ack | Retry]] = []
        self._marks: list[tuple[Delivery, bytes | None]] = []
        self._copies: list[_Copy] = []
        self._flying: list[Delivery] = []
        self._flying_copies: list[_Copy] = []
        self._later: dict[int, tuple[Delivery, asyncio.TimerHandle]] = {}
        self._shelves: dict[int, _Shelf] = {}
        self._ends: dict[int, tuple[Settlement, str]] = {}
        self._tries: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._wake_copies = asyncio.Event()
        self._moved: list[asyncio.Future[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stuck: set[int] = set()
        self._holding: set[int] = set()

    @property
    def blocked(self) -> int:
        """Return how many copies could not be sent at the last try."""
        return len(self._stuck)

    def start(self) -> None:
        """Start working; called once, inside the loop."""
        self._tasks = [
            asyncio.create_task(self._settle_for_ever(), name="brokerkit settler"),
            asyncio.create_task(self._copy_for_ever(), name="brokerkit copies"),
        ]

    def settle(self, delivery: Delivery, settlement: Ack | Retry) -> None:
        """End a delivery at the boundary: remove it, or return it uncounted."""
        settles = self._settles
        if not settles:
            self._wake.set()
        settles.append((delivery, settlement))

    def copy(self, delivery: Delivery, settlement: Retry | DeadLetter) -> None:
        """Send the copy that a retry, a long return or a dead letter asks for, then ack the original."""
        if isinstance(settlement, DeadLetter):
            self._judge(delivery, settlement)
        self._copies.append(_Copy(delivery, settlement))
        self._wake_copies.set()

    def _judge(self, delivery: Delivery, settlement: DeadLetter) -> None:
        """Close the story with the verdict."""
        verdict: dict[str, object] = {
            "dead": str(settlement.reason),
            "n": delivery.attempt,
            "at": int(self._clock.time() * 1000),
        }
        if settlement.detail:
            verdict["detail"] = clean(str(settlement.detail))[:1024]
        delivery.story.append(verdict)

    def mark(self, delivery: Delivery, mark: bytes | None) -> None:
        """Leave a mark beside a held delivery, soon; one that cannot be written costs only the memory of tries."""
        delivery.mark = mark
        self._marks.append((delivery, mark))
        self._wake.set()

    async def flush(self, deliveries: Sequence[Delivery] | None = None, timeout: float | None = None) -> bool:
        """
        Wait until what was given so far has ended: of these deliveries, or all.

        Waits as long as the broker takes, or so many seconds; True if all has ended.
        """
        loop = asyncio.get_running_loop()
        ids = {id(delivery) for delivery in (self._unended() if deliveries is None else deliveries)}
        deadline = None if timeout is None else loop.time() + timeout
        while any(id(delivery) in ids for delivery in self._unended()):
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                return False
            moved = loop.create_future()
            self._moved.append(moved)
            await asyncio.wait([moved], timeout=left)
        return True

    def _unended(self) -> list[Delivery]:
        return [
            *(delivery for delivery, _ in self._settles),
            *(delivery for delivery, _ in self._marks),
            *self._flying,
            *(copy.delivery for copy in self._copies),
            *(copy.delivery for copy in self._flying_copies),
            *(delivery for delivery, _ in self._later.values()),
            *(delivery for shelf in self._shelves.values() for delivery, _ in shelf.settles),
        ]

    def _tell_moved(self) -> None:
        for moved in self._moved:
            if not moved.done():
                moved.set_result(None)
        self._moved.clear()

    async def close(self) -> None:
        """Stop working. What has not ended is left unsettled, for the broker to hand out again."""
        for _, timer in self._later.values():
            timer.cancel()
        for shelf in self._shelves.values():
            if shelf.timer is not None:
                shelf.timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            marks, self._marks = self._marks, []
            settles, self._settles = self._settles, []
            parts = self._unshelved(settles)
            self._flying = [
                *(delivery for delivery, _ in marks),
                *(delivery for _, part in parts for delivery, _ in part),
            ]
            for subscription, marked in by_subscription(marks):
                await self._write_marks(subscription, marked)
            for subscription, settled in parts:
                await self._settle_batch(subscription, settled)
            self._flying = []
            self._tell_moved()

    async def _write_marks(
        self, subscription: Subscription, marks: Sequence[tuple[Delivery, bytes | None]]
    ) -> None:
        if not isinstance(subscription, Marks):
            return
        try:
            await subscription.mark(marks)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.warning("%d marks could not be written: %r", len(marks), error)

    async def _settle_batch(
        self, subscription: Subscription, batch: Sequence[tuple[Delivery, Ack | Retry]]
    ) -> None:
        outcomes = await self._outcomes(subscription, batch)
        if not any(outcomes) and not (self._ends or self._tries or self._hooks or self._shelves):
            self._on_end(len(batch))
            return
        failed: list[tuple[Delivery, Ack | Retry]] = []
        for (delivery, settlement), error in zip(batch, outcomes, strict=True):
            if error is None:
                self._ended(delivery, settlement)
            elif error.retryable and delivery.order == "key":
                failed.append((delivery, settlement))
            else:
                self._not_settled(delivery, settlement, error)
        self._shelve(subscription, failed)

    def _unshelved(
        self, settles: Sequence[tuple[Delivery, Ack | Retry]]
    ) -> Sequence[tuple[Subscription, Sequence[tuple[Delivery, Ack | Retry]]]]:
        """Return what is to be settled now: behind what was shelved before, and nothing while its shelf still waits."""
        parts = by_subscription(settles)
        if not self._shelves:
            return parts
        now: list[tuple[Subscription, Sequence[tuple[Delivery, Ack | Retry]]]] = []
        for subscription, part in parts:
            shelf = self._shelves.get(id(subscription))
            if shelf is None:
                now.append((subscription, part))
            else:
                shelf.settles.extend(part)
        for shelf in self._shelves.values():
            if shelf.timer is None and shelf.settles:
                shelved, shelf.settles = shelf.settles, []
                now.append((shelved[0][0].subscription, shelved))
        return now

    def _shelve(self, subscription: Subscription, failed: list[tuple[Delivery, Ack | Retry]]) -> None:
        """Keep what could not be settled, in order and before all that follows, until after a back-off."""
        if not failed:
            self._shelves.pop(id(subscription), None)
            return
        shelf = self._shelves.setdefault(id(subscription), _Shelf([]))
        shelf.settles[:0] = failed
        shelf.tries += 1

        def due() -> None:
            shelf.timer = None
            self._wake.set()

        shelf.timer = asyncio.get_running_loop().call_later(_backoff(shelf.tries), due)

    async def _outcomes(
        self, subscription: Subscription, batch: Sequence[tuple[Delivery, Ack | Retry]]
    ) -> Sequence[SettleError | None]:
        try:
            outcomes = await subscription.settle(batch)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            if not isinstance(error, BrokerkitError):
                _log.exception("settling raised instead of returning outcomes")
            return [Unavailable(repr(error))] * len(batch)
        if len(outcomes) != len(batch):
            _log.critical("settling %d deliveries returned %d outcomes", len(batch), len(outcomes))
            return [Unavailable("the adapter returned a wrong number of outcomes")] * len(batch)
        return outcomes

    def _ended(self, delivery: Delivery, settlement: Ack | Retry) -> None:
        ends = self._ends.pop(id(delivery), None)
        if ends is None:
            ends = (settlement, "ack" if type(settlement) is Ack else "return")
        self._tries.pop(id(delivery), None)
        self._end(delivery, *ends)

    def _end(self, delivery: Delivery, settlement: Settlement | None, outcome: str) -> None:
        self._on_end(1)
        if self._hooks:
            tell(self._hooks, Settled(delivery, settlement, outcome))

    def _not_settled(self, delivery: Delivery, settlement: Ack | Retry, error: SettleError) -> None:
        if error.retryable:
            tries = self._tries[id(delivery)] = self._tries.get(id(delivery), 0) + 1
            self._call_later(delivery, tries, lambda: self.settle(delivery, settlement))
            return
        if not isinstance(error, Stale):
            tell(self._hooks, Alarm("settle_failed", f"a settlement was refused: {error}", delivery))
            _log.error("a settlement was refused: %s", error)
        self._tries.pop(id(delivery), None)
        self._ends.pop(id(delivery), None)
        self._end(delivery, None, "stale")

    def _call_later(self, delivery: Delivery, tries: int, call: Callable[[], None]) -> None:
        """Call after a back-off."""

        def due() -> None:
            del self._later[id(delivery)]
            call()

        timer = asyncio.get_running_loop().call_later(_backoff(tries), due)
        self._later[id(delivery)] = (delivery, timer)

    async def _copy_for_ever(self) -> None:
        while True:
            await self._wake_copies.wait()
            self._wake_copies.clear()
            self._flying_copies, self._copies = self._copies, []
            for at in range(0, len(self._flying_copies), _BATCH):
                part = self._flying_copies[at : at + _BATCH]
                retries = [copy for copy in part if isinstance(copy.settlement, Retry)]
                letters = [copy for copy in part if isinstance(copy.settlement, DeadLetter)]
                await self._send_copies(self._inlet, retries)
                await self._send_copies(self._dead, letters)
            self._flying_copies = []
            self._tell_moved()

    async def _send_copies(self, to: Address, copies: Sequence[_Copy]) -> None:
        """Send what is still ours and can be built; a copy of a lost delivery is its next owner's to make."""
        ready: list[tuple[_Copy, Message]] = []
        for copy in await self._ours(copies):
            try:
                ready.append((copy, copy.message()))
            except Exception as error:  # noqa: BLE001 - one odd copy must not stop its neighbours
                _log.exception("a copy of %r could not be made", copy.delivery)
                self._not_copied(copy, ConnectionLost(repr(error)))
        if not ready:
            return
        outcomes = await self._sent(to, ready)
        for (copy, _), outcome in zip(ready, outcomes, strict=True):
            if outcome is None:
                self._copied(copy)
            else:
                self._not_copied(copy, outcome)

    async def _ours(self, copies: Sequence[_Copy]) -> list[_Copy]:
        """
        Return the copies whose originals are still ours; the others are dropped, or tried again later.

        The question is put where marks are kept, by writing the mark that is there anyway (that is refused to a stale owner),
        else where the subscription `Holds`.
        """
        ours: list[_Copy] = []
        for subscription, part in by_subscription([(copy.delivery, copy) for copy in copies]):
            for copy, error in zip(
                [copy for _, copy in part], await self._fence(subscription, part), strict=True
            ):
                if copy.delivery.stopped == "lost" or (error is not None and not error.retryable):
                    self._drop(copy)
                elif error is not None:
                    self._not_copied(copy, ConnectionLost(str(error)))
                else:
                    ours.append(copy)
        return ours

    async def _fence(
        self, subscription: Subscription, part: Sequence[tuple[Delivery, _Copy]]
    ) -> Sequence[SettleError | None]:
        try:
            if isinstance(subscription, Marks):
                outcomes = await subscription.mark([(delivery, delivery.mark) for delivery, _ in part])
            elif isinstance(subscription, Holds):
                outcomes = await subscription.hold([delivery for delivery, _ in part])
            else:
                return [None] * len(part)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            return [Unavailable(repr(error))] * len(part)
        if len(outcomes) != len(part):
            return [Unavailable("the adapter returned a wrong number of outcomes")] * len(part)
        return outcomes

    async def _sent(self, to: Address, ready: Sequence[tuple[_Copy, Message]]) -> Sequence[SendError | None]:
        longest = self._adapter.capabilities.max_delay
        after = [min(_after(copy), longest) for copy, _ in ready]
        try:
            outcomes = await self._adapter.send(to, [message for _, message in ready], after=after)
        except SendError as error:
            return [error] * len(ready)
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and asked_to_stop():
                raise
            _log.exception("sending raised instead of returning outcomes")
            return [ConnectionLost(repr(error))] * len(ready)
        if len(outcomes) != len(ready):
            _log.critical("sending %d copies returned %d outcomes", len(ready), len(outcomes))
            return [ConnectionLost("the adapter returned a wrong number of outcomes")] * len(ready)
        return outcomes

    def _copied(self, copy: _Copy) -> None:
        delivery = copy.delivery
        self._free(copy)
        self._ends[id(delivery)] = (copy.settlement, _outcome_of(copy.settlement))
        self.settle(delivery, ACK)
        self._on_released(delivery)

    def _drop(self, copy: _Copy) -> None:
        self._free(copy)
        self._end(copy.delivery, None, "stale")
        self._on_released(copy.delivery)

    def _free(self, copy: _Copy) -> None:
        """Forget that a copy was stuck, and let intake go on if it was the last one that held it."""
        self._stuck.discard(id(copy))
        if id(copy) in self._holding:
            self._holding.discard(id(copy))
            if not self._holding:
                copy.delivery.control.release(_HOLD_COPY)

    def _not_copied(self, copy: _Copy, error: SendError) -> None:
        copy.tries += 1
        if isinstance(error, TooLarge) and isinstance(copy.settlement, Retry) and not copy.settlement.counts:
            self._free(copy)
            self.settle(copy.delivery, copy.settlement)
            self._on_released(copy.delivery)
            return
        if isinstance(error, TooLarge) and self._shrink(copy):
            self._copy_again(copy)
            return
        if id(copy) not in self._stuck:
            self._stuck.add(id(copy))
            text = (
                f"a copy of {copy.delivery!r} cannot be sent ({error}); it keeps its place and is tried again"
            )
            _log.error("%s", text)
            tell(self._hooks, Alarm("copy_failed", text, copy.delivery))
        self._call_later(copy.delivery, copy.tries, lambda: self._copy_again(copy))

    def _shrink(self, copy: _Copy) -> bool:
        """Make the story of a copy that does not fit shorter; a counted retry that cannot fit becomes a dead letter."""
        if isinstance(copy.settlement, Retry):
            copy.settlement = DeadLetter(
                "too_large", "the copy for its retry is above the broker's size limit"
            )
            self._judge(copy.delivery, copy.settlement)
            return True
        if copy.room + 1 < len(_ROOMS):
            copy.room += 1
            return True
        self._holding.add(id(copy))
        copy.delivery.control.hold(_HOLD_COPY)
        return False

    def _copy_again(self, copy: _Copy) -> None:
        self._copies.append(copy)
        self._wake_copies.set()


def _backoff(tries: int) -> float:
    """Return a wait in seconds with full jitter above a floor, at most 30."""
    ceiling = min(_LONGEST, 0.05 * 2 ** min(tries, 12))
    return random.uniform(ceiling / 4, ceiling)  # noqa: S311 - jitter


def _outcome_of(settlement: Retry | DeadLetter) -> str:
    if isinstance(settlement, DeadLetter):
        return "dead"
    return "retry" if settlement.counts else "return"


def _after(copy: _Copy) -> float:
    return copy.settlement.after if isinstance(copy.settlement, Retry) else 0.0


def by_subscription(
    items: Sequence[tuple[Delivery, T]],
) -> Sequence[tuple[Subscription, Sequence[tuple[Delivery, T]]]]:
    """Return what belongs to each subscription, in order."""
    if not items:
        return ()
    first = items[0][0].subscription
    if all(item[0].subscription is first for item in items):
        return [(first, items)]
    parts: dict[int, list[tuple[Delivery, T]]] = {}
    for item in items:
        parts.setdefault(id(item[0].subscription), []).append(item)
    return [(part[0][0].subscription, part) for part in parts.values()]
