"""
What a subscription holds, and how it keeps it: leases are renewed in time, and given up in time.
"""

import asyncio
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.adapters.sqs.desk import BATCH, Desk
from brokerkit.adapters.sqs.queues import Queue
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError, Stale, Unavailable

__all__ = ["Held", "Keeper", "Source", "put_back"]

_log = logging.getLogger(__name__)

_LONGEST_HOLD = 11.5 * 3600
"""SQS hands a message to somebody else 12 hours after it was received, whatever is renewed."""


@dataclass(frozen=True, slots=True)
class Source:
    """A queue that a subscription reads. place: None for what comes by the channel."""

    queue: Queue
    place: str | None


@dataclass(slots=True, eq=False)
class Held:
    """
    A message in hand.

    until: the loop's time up to which it is ours for certain, counted from before the call that made it so. since: when
    it was received. settling: a settlement is on its way. leaving: it is on its way back to the group, and renewed no more.
    ends: the engine was told that it cannot be kept any longer.
    """

    source: Source
    handle: str
    until: float
    since: float
    delivery: Delivery
    message_id: str
    settling: bool = False
    leaving: bool = False
    ends: bool = False


def _margin_of(lease: float) -> float:
    """Return how long before the end of a lease nothing is tried any more: a call takes its time."""
    return min(0.25, lease / 8)


class Keeper:
    """
    Renews the leases of one subscription.

    lost(held, seconds) is told what cannot be kept: seconds 0 for what is somebody else's already.
    """

    def __init__(self, desk: Desk, lost: Callable[[Sequence[Held], float], None]) -> None:
        self.held: set[Held] = set()
        self._desk = desk
        self._lost = lost
        self._lease = float(desk.options.lease)
        self._margin = _margin_of(self._lease)
        self._task: asyncio.Task[None] | None = None
        self._renewing: dict[str, asyncio.Task[list[SettleError | None]]] = {}

    def start(self) -> None:
        """Begin to renew; called once, inside the loop."""
        self._task = asyncio.get_running_loop().create_task(self._renew_for_ever())

    async def stop(self, seconds: float) -> None:
        """Start no more renewals, and wait for those under way, but no longer than this; then they are given up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if renewing := set(self._renewing.values()):
            _, late = await asyncio.wait(renewing, timeout=seconds)
            for task in late:
                task.cancel()

    async def quiet(self, held: Iterable[Held], seconds: float) -> None:
        """Wait until no renewal of these is under way: one that is made after a return would undo it."""
        if renewing := self._renewals_of(held):
            await asyncio.wait(renewing, timeout=seconds)

    def expired(self, held: Held) -> bool:
        """Say whether it may be somebody else's already, or will be before a call has reached the service."""
        return asyncio.get_running_loop().time() > held.until - self._margin

    async def renew(self, held: Sequence[Held]) -> Sequence[SettleError | None]:
        """Renew these now and return one outcome for each; what turns out to be lost is told."""
        while renewing := self._renewals_of(held):
            await asyncio.wait(renewing)
        kept = [each for each in held if not each.leaving]
        parts = [kept[start : start + BATCH] for start in range(0, len(kept), BATCH)]
        tasks = [self._start(part) for part in parts]
        if tasks:
            await asyncio.wait(tasks)
        found: dict[Held, SettleError | None] = dict.fromkeys(
            held, Stale("it is on its way back to its group")
        )
        for part, task in zip(parts, tasks, strict=True):
            found.update(zip(part, _outcomes_of(task, len(part)), strict=True))
        return [found[each] for each in held]

    def _renewals_of(self, held: Iterable[Held]) -> set[asyncio.Task[list[SettleError | None]]]:
        return {task for each in held if (task := self._renewing.get(each.handle)) is not None}

    def _start(self, part: Sequence[Held]) -> asyncio.Task[list[SettleError | None]]:
        """Start one call for up to ten of one queue. Each call has a task: a slow one keeps no other waiting."""
        task = asyncio.get_running_loop().create_task(self._renew(part))
        for each in part:
            self._renewing[each.handle] = task
        task.add_done_callback(lambda done: self._renewed(part, done))
        return task

    def _renewed(self, part: Sequence[Held], task: asyncio.Task[list[SettleError | None]]) -> None:
        for each in part:
            if self._renewing.get(each.handle) is task:
                del self._renewing[each.handle]
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("leases could not be renewed; it is tried again: %r", error, exc_info=error)

    async def _renew(self, part: Sequence[Held]) -> list[SettleError | None]:
        entries = [put_back(each, self._desk.options.lease) for each in part]
        queue, timeout = part[0].source.queue, max(self._lease / 3, 0.5)
        async with self._desk.renewals:
            begun = asyncio.get_running_loop().time()
            outcomes = await self._desk.chunk("ChangeMessageVisibilityBatch", queue, entries, timeout)
        gone: list[Held] = []
        for each, outcome in zip(part, outcomes, strict=True):
            if outcome is None:
                each.until = begun + self._lease
            elif not outcome.retryable and each in self.held and not each.settling:
                gone.append(each)
        if gone:
            self._lost(gone, 0.0)
        return outcomes

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._pause())
            try:
                self._end()
                self._renew_old([held for held in self.held if self._is_old(held)])
            except Exception:  # noqa: BLE001 - a bug must not end all leases in silence
                _log.exception("leases could not be renewed; it is tried again")

    def _pause(self) -> float:
        """Return the seconds to the next round; the end of a lease is told when it comes."""
        usual = self._lease / 8 * random.uniform(0.8, 1.0)  # noqa: S311 - spread over the interval
        soonest = min((held.until for held in self.held), default=math.inf) - self._margin
        return max(min(usual, soonest - asyncio.get_running_loop().time() + 0.001), 0.001)

    def _end(self) -> None:
        over = [held for held in self.held if self.expired(held)]
        if over:
            self._lost(over, 0.0)

    def _is_old(self, held: Held) -> bool:
        """Say whether more than a third of the lease is used up; what is being settled is left alone while that is safe."""
        if held.leaving or held.handle in self._renewing:
            return False
        now = asyncio.get_running_loop().time()
        left = held.until - now
        if now - held.since > _LONGEST_HOLD:
            if not held.ends:
                held.ends = True
                self._lost([held], left)
            return False
        return left < self._lease * (1 / 3 if held.settling else 2 / 3)

    def _renew_old(self, old: Sequence[Held]) -> None:
        by_queue: dict[str, list[Held]] = {}
        for held in sorted(old, key=lambda held: held.until):
            by_queue.setdefault(held.source.queue.url, []).append(held)
        for part in by_queue.values():
            for start in range(0, len(part), BATCH):
                _ = self._start(part[start : start + BATCH])


def _outcomes_of(task: asyncio.Task[list[SettleError | None]], count: int) -> Sequence[SettleError | None]:
    return [Unavailable("the subscription is closed")] * count if task.cancelled() else task.result()


def put_back(held: Held, seconds: int = 0) -> dict[str, Any]:
    """Return the entry that lets others have it again, after so many seconds."""
    return {"ReceiptHandle": held.handle, "VisibilityTimeout": seconds}
