"""
What a subscription holds, and how it keeps it: leases are renewed in time, and given up in time.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.adapters.sqs.desk import Desk
from brokerkit.adapters.sqs.queues import Queue
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError

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
    it was received. settling: a settlement is on its way. ends: the engine was told that it cannot be kept any longer.
    """

    source: Source
    handle: str
    until: float
    since: float
    delivery: Delivery
    message_id: str
    settling: bool = False
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

    def start(self) -> None:
        """Begin to renew; called once, inside the loop."""
        self._task = asyncio.get_running_loop().create_task(self._renew_for_ever())

    async def stop(self) -> None:
        """Stop renewing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def expired(self, held: Held) -> bool:
        """Say whether it may be somebody else's already, or will be before a call has reached the service."""
        return asyncio.get_running_loop().time() > held.until - self._margin

    async def renew(self, held: Sequence[Held]) -> Sequence[SettleError | None]:
        """Renew these now and return one outcome for each; what turns out to be lost is told."""
        if not held:
            return ()
        entries = [put_back(each, self._desk.options.lease) for each in held]
        begun = asyncio.get_running_loop().time()
        outcomes = await self._desk.batch(
            "ChangeMessageVisibilityBatch", held[0].source.queue, entries, max(self._lease / 3, 0.5)
        )
        gone: list[Held] = []
        for each, outcome in zip(held, outcomes, strict=True):
            if outcome is None:
                each.until = begun + self._lease
            elif not outcome.retryable and each in self.held and not each.settling:
                gone.append(each)
        if gone:
            self._lost(gone, 0.0)
        return outcomes

    async def _renew_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 8 * random.uniform(0.8, 1.0))  # noqa: S311 - spread over the interval
            try:
                self._end()
                await self._renew_old([held for held in self.held if self._is_old(held)])
                self._end()
            except Exception:  # noqa: BLE001 - a bug must not end all leases in silence
                _log.exception("leases could not be renewed; it is tried again")

    def _end(self) -> None:
        over = [held for held in self.held if self.expired(held)]
        if over:
            self._lost(over, 0.0)

    def _is_old(self, held: Held) -> bool:
        """Say whether more than a third of the lease is used up; what is being settled is left alone while that is safe."""
        now = asyncio.get_running_loop().time()
        left = held.until - now
        if now - held.since > _LONGEST_HOLD:
            if not held.ends:
                held.ends = True
                self._lost([held], left)
            return False
        return left < self._lease * (1 / 3 if held.settling else 2 / 3)

    async def _renew_old(self, old: Sequence[Held]) -> None:
        by_queue: dict[str, list[Held]] = {}
        for held in old:
            by_queue.setdefault(held.source.queue.url, []).append(held)
        await asyncio.gather(*(self.renew(part) for part in by_queue.values()))


def put_back(held: Held, seconds: int = 0) -> dict[str, Any]:
    """Return the entry that lets others have it again, after so many seconds."""
    return {"ReceiptHandle": held.handle, "VisibilityTimeout": seconds}
