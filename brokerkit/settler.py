"""
The settler: the one place that ends deliveries and makes copies.

Settlements go to the broker in batches, as many as have come together while the last batch was on its way. A copy (a
counted retry, a dead letter) is sent, its confirmation awaited, and only then is the original acked: a crash
between leaves two copies with one event id, never none.

Nothing here gives up. A copy that cannot be sent keeps its original unsettled and is tried again; a settlement that is
`Unavailable` is tried until the broker says `Stale`. Neither ever runs a handler again.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from brokerkit.adapter import Adapter, Marks, Subscription
from brokerkit.clock import SYSTEM, Clock
from brokerkit.copies import STORY_ROOM, dead_copy, retry_copy
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

__all__ = ["Settler"]

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
            return retry_copy(self.delivery)
        return dead_copy(self.delivery, room=_ROOMS[self.room])


class Settler:
    """
    Ends the deliveries of one group in one process.

    on_end(count) says that so many deliveries have ended, because the broker has confirmed it or they are no longer ours.
    on_copied(delivery) is called as soon as its copy is confirmed.
    blocked: how many copies could not be sent at the last try; readiness is red while it is above zero.
    """

    def __init__(
        self,
        adapter: Adapter,
        inlet: Address,
        dead: Address,
        *,
        on_end: OnEnd,
        on_copied: Callable[[Delivery], None],
        hooks: Sequence[Hook] = (),
        clock: Clock = SYSTEM,
    ) -> None:
        self._adapter = adapter
        self._inlet = inlet
        self._dead = dead
        self._on_end = on_end
        self._on_copied = on_copied
        self._hooks = hooks
        self._clock = clock
        self._settles: list[tuple[Delivery, Ack | Retry]] = []
        self._marks: list[tuple[Delivery, bytes | None]] = []
        self._copies: list[_Copy] = []
        self._ends: dict[int, tuple[Settlement, str]] = {}
        self._tries: dict[int, int] = {}
        self._timers: set[asyncio.TimerHandle] = set()
        self._open = 0
        """Taken out of `_settles` and not ended, or on the way as a copy."""
        self._wake = asyncio.Event()
        self._wake_copies = asyncio.Event()
        self._settled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._stuck: set[int] = set()

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
        """Send the copy that a counted retry or a dead letter asks for, then ack the original."""
        self._open += 1
        if isinstance(settlement, DeadLetter):
            self._judge(delivery, settlement)
        self._copies.append(_Copy(delivery, settlement))
        self._wake_copies.set()

    def _judge(self, delivery: Delivery, settlement: DeadLetter) -> None:
        """Close the story with the verdict."""
        verdict = {"dead": settlement.reason, "n": delivery.attempt, "at": int(self._clock.time() * 1000)}
        if settlement.detail:
            verdict["detail"] = clean(settlement.detail)[:1024]
        delivery.story.append(verdict)

    def mark(self, delivery: Delivery, mark: bytes | None) -> None:
        """Leave a mark beside a held delivery, soon; one that cannot be written costs only the memory of tries."""
        self._marks.append((delivery, mark))
        self._wake.set()

    async def flush(self) -> None:
        """Wait until everything given so far has ended, however long the broker takes."""
        while self._busy():
            self._settled.clear()
            await self._settled.wait()

    def _busy(self) -> bool:
        return bool(self._open or self._settles or self._marks)

    async def close(self) -> None:
        """Stop working. What has not ended is left unsettled, for the broker to hand out again."""
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _settle_for_ever(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            marks, self._marks = self._marks, []
            if marks:
                await self._write_marks(marks)
            settles, self._settles = self._settles, []
            if settles:
                self._open += len(settles)
                await self._settle_batch(settles)
            if not self._busy():
                self._settled.set()

    async def _write_marks(self, marks: Sequence[tuple[Delivery, bytes | None]]) -> None:
        for subscription, part in _by_subscription(marks):
            if not isinstance(subscription, Marks):
                continue
            try:
                await subscription.mark(part)
            except BrokerkitError as error:
                _log.warning("%d marks could not be written: %s", len(part), error)

    async def _settle_batch(self, batch: Sequence[tuple[Delivery, Ack | Retry]]) -> None:
        for subscription, part in _by_subscription(batch):
            outcomes = await self._outcomes(subscription, part)
            if not any(outcomes) and not (self._ends or self._tries or self._hooks):
                self._open -= len(part)
                self._on_end(len(part))
                continue
            for (delivery, settlement), error in zip(part, outcomes, strict=True):
                if error is None:
                    self._ended(delivery, settlement)
                else:
                    self._not_settled(delivery, settlement, error)

    async def _outcomes(
        self, subscription: Subscription, part: Sequence[tuple[Delivery, Ack | Retry]]
    ) -> Sequence[SettleError | None]:
        try:
            return await subscription.settle(part)
        except ConnectionLost as error:
            return [Unavailable(str(error))] * len(part)
        except Exception as error:  # noqa: BLE001 - nothing may end the settler
            _log.exception("settling raised instead of returning outcomes")
            return [Unavailable(repr(error))] * len(part)

    def _ended(self, delivery: Delivery, settlement: Ack | Retry) -> None:
        ends = self._ends.pop(id(delivery), None) if self._ends else None
        if ends is None:
            ends = (settlement, "ack" if type(settlement) is Ack else "return")
        if self._tries:
            self._tries.pop(id(delivery), None)
        self._end(delivery, *ends)

    def _end(self, delivery: Delivery, settlement: Settlement | None, outcome: str) -> None:
        self._open -= 1
        self._on_end(1)
        if self._hooks:
            tell(self._hooks, Settled(delivery, settlement, outcome))

    def _not_settled(self, delivery: Delivery, settlement: Ack | Retry, error: SettleError) -> None:
        if error.retryable:
            tries = self._tries[id(delivery)] = self._tries.get(id(delivery), 0) + 1
            self._later(tries, lambda: self._again(delivery, settlement))
            return
        if not isinstance(error, Stale):
            tell(self._hooks, Alarm("settle_failed", f"a settlement was refused: {error}", delivery))
            _log.error("a settlement was refused: %s", error)
        self._tries.pop(id(delivery), None)
        self._ends.pop(id(delivery), None)
        self._end(delivery, None, "stale")

    def _again(self, delivery: Delivery, settlement: Ack | Retry) -> None:
        self._open -= 1
        self.settle(delivery, settlement)

    def _later(self, tries: int, call: Callable[[], None]) -> None:
        """Call after a back-off with full jitter above a floor, at most 30 s."""
        ceiling = min(_LONGEST, 0.05 * 2 ** min(tries, 12))
        loop = asyncio.get_running_loop()

        def due() -> None:
            self._timers.discard(timer)
            call()

        timer = loop.call_later(random.uniform(ceiling / 4, ceiling), due)  # noqa: S311 - jitter
        self._timers.add(timer)

    async def _copy_for_ever(self) -> None:
        while True:
            await self._wake_copies.wait()
            self._wake_copies.clear()
            copies, self._copies = self._copies, []
            for at in range(0, len(copies), _BATCH):
                part = copies[at : at + _BATCH]
                await self._send_copies(
                    self._inlet, [copy for copy in part if isinstance(copy.settlement, Retry)]
                )
                await self._send_copies(
                    self._dead, [copy for copy in part if isinstance(copy.settlement, DeadLetter)]
                )

    async def _send_copies(self, to: Address, copies: list[_Copy]) -> None:
        if not copies:
            return
        longest = self._adapter.capabilities.max_delay
        after = [
            min(copy.settlement.after, longest) if isinstance(copy.settlement, Retry) else 0.0
            for copy in copies
        ]
        try:
            outcomes = await self._adapter.send(to, [copy.message() for copy in copies], after=after)
        except SendError as error:
            outcomes = [error] * len(copies)
        except Exception as error:  # noqa: BLE001 - nothing may end the settler
            _log.exception("sending raised instead of returning outcomes")
            outcomes = [ConnectionLost(repr(error))] * len(copies)
        for copy, outcome in zip(copies, outcomes, strict=True):
            if outcome is None:
                self._copied(copy)
            else:
                self._not_copied(copy, outcome)

    def _copied(self, copy: _Copy) -> None:
        delivery = copy.delivery
        self._stuck.discard(id(copy))
        self._ends[id(delivery)] = (
            copy.settlement,
            "retry" if isinstance(copy.settlement, Retry) else "dead",
        )
        self._on_copied(delivery)
        self._again(delivery, ACK)

    def _not_copied(self, copy: _Copy, error: SendError) -> None:
        copy.tries += 1
        if isinstance(error, TooLarge) and self._shrink(copy):
            self._copies.append(copy)
            self._wake_copies.set()
            return
        if id(copy) not in self._stuck:
            self._stuck.add(id(copy))
            text = (
                f"a copy of {copy.delivery!r} cannot be sent ({error}); it keeps its place and is tried again"
            )
            _log.error("%s", text)
            tell(self._hooks, Alarm("copy_failed", text, copy.delivery))
        self._later(copy.tries, lambda: self._copy_again(copy))

    def _shrink(self, copy: _Copy) -> bool:
        """Make the story of a copy that does not fit shorter; a retry that cannot fit becomes a dead letter."""
        if isinstance(copy.settlement, Retry):
            copy.settlement = DeadLetter(
                "too_large", "the copy for its retry is above the broker's size limit"
            )
            self._judge(copy.delivery, copy.settlement)
            return True
        if copy.room + 1 < len(_ROOMS):
            copy.room += 1
            return True
        copy.delivery.control.hold(_HOLD_COPY)
        return False

    def _copy_again(self, copy: _Copy) -> None:
        self._copies.append(copy)
        self._wake_copies.set()


def _by_subscription(
    items: Sequence[tuple[Delivery, T]],
) -> Sequence[tuple[Subscription, Sequence[tuple[Delivery, T]]]]:
    first = items[0][0].subscription
    if all(item[0].subscription is first for item in items):
        return [(first, items)]
    parts: dict[int, list[tuple[Delivery, T]]] = {}
    for item in items:
        parts.setdefault(id(item[0].subscription), []).append(item)
    return [(part[0][0].subscription, part) for part in parts.values()]
