"""
What waits in memory: rung records until they are due, copies for their last second, uncounted returns.
"""

import asyncio
import heapq
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.names import RUNGS
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.delivery import Delivery

__all__ = ["Hop", "Shelf"]

_log = logging.getLogger("brokerkit.kafka")
_EARLY = 0.0005
_AGAIN = 1.0
_LONGEST = 60.0

Hop = Callable[[Sequence[tuple[Delivery, float]]], Awaitable[Sequence[object]]]
"""Send deliveries on to the next rung, each with the seconds it has left; one outcome each, None for confirmed."""


class _Item(NamedTuple):
    """at: the loop's time to look at it. due, hop: the broker's wall time at which it is due, or leaves for another rung."""

    at: float
    order: int
    part: Partition
    delivery: Delivery
    due: float
    hop: float | None


class Shelf:
    """
    One heap and one timer for everything that waits in a subscription.

    A rung's time is compared with the broker's clock when it is handed out, not when it is fetched: a pause or a rebalance
    in between changes nothing. What has a second or more left behind its rung hops to the next one.

    on_due takes what may be handed out now. on_left is told of a partition of which one has been finished by a hop.
    """

    def __init__(
        self,
        clock: BrokerClock,
        *,
        hop: Hop,
        on_due: Callable[[Partition, Delivery], None],
        on_left: Callable[[Partition], None],
    ) -> None:
        self._clock = clock
        self._hop = hop
        self._on_due = on_due
        self._on_left = on_left
        self._heap: list[_Item] = []
        self._hopping: dict[int, Delivery] = {}
        self._count = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    def ids(self) -> set[int]:
        """Return the ids of the deliveries that wait here or are on their way to the next rung."""
        return {id(item.delivery) for item in self._heap} | self._hopping.keys()

    def wait(self, part: Partition, delivery: Delivery, timestamp: int, seconds: float) -> None:
        """Hold a record of a rung or an inlet. timestamp: its append's, in milliseconds. seconds: left behind the rung."""
        over = (timestamp + 1) / 1000 + (part.wait or 0)
        self._push(part, delivery, over + seconds, over if seconds >= RUNGS[0] else None)

    def back(self, part: Partition, delivery: Delivery, seconds: float) -> None:
        """Hold a delivery that was returned politely."""
        self._push(part, delivery, self._clock.time() + seconds, None)

    def drop(self, parts: Sequence[Partition]) -> None:
        """Forget what waits of these partitions."""
        gone = set(map(id, parts))
        self._heap = [item for item in self._heap if id(item.part) not in gone]
        heapq.heapify(self._heap)
        for part in parts:
            part.held = 0
        self._arm()

    async def settled(self, seconds: float) -> None:
        """Wait until no hop is on its way, for so long at most."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(seconds, 0))

    def close(self) -> None:
        """Stop the timer and every hop."""
        self._heap.clear()
        self._arm()
        for task in self._tasks:
            task.cancel()

    def _push(self, part: Partition, delivery: Delivery, due: float, hop: float | None) -> None:
        part.held += 1
        left = (due if hop is None else hop) - self._clock.time()
        item = _Item(self._loop.time() + max(left, 0.0), next(self._count), part, delivery, due, hop)
        heapq.heappush(self._heap, item)
        if self._heap[0] is item:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._heap:
            # the wall clock may be set meanwhile, so look again from time to time
            self._timer = self._loop.call_at(min(self._heap[0].at, self._loop.time() + _LONGEST), self._fire)

    def _fire(self) -> None:
        self._timer = None
        now, wall = self._loop.time(), self._clock.time()
        leaving: list[_Item] = []
        early: list[_Item] = []
        while self._heap and self._heap[0].at <= now:
            item = heapq.heappop(self._heap)
            item.part.held -= 1
            if (item.due if item.hop is None else item.hop) - wall > _EARLY:
                early.append(item)
            elif item.hop is not None and item.due - wall >= RUNGS[0]:
                leaving.append(item)
            elif item.due - wall > _EARLY:
                early.append(item._replace(hop=None))
            else:
                self._on_due(item.part, item.delivery)
        for item in early:
            self._push(item.part, item.delivery, item.due, item.hop)
        if leaving:
            self._leave(leaving)
        self._arm()

    def _leave(self, leaving: Sequence[_Item]) -> None:
        self._hopping.update((id(item.delivery), item.delivery) for item in leaving)
        task = self._loop.create_task(self._send_on(leaving), name="brokerkit kafka hop")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_on(self, leaving: Sequence[_Item]) -> None:
        """Send what has time left to the next rung, and finish it here when that is confirmed."""
        outcomes: Sequence[object]
        try:
            wall = self._clock.time()
            outcomes = await self._hop([(item.delivery, max(item.due - wall, 0.0)) for item in leaving])
        except Exception as error:  # noqa: BLE001 - it keeps its place and is tried again
            outcomes = [error] * len(leaving)
        finally:
            for item in leaving:
                self._hopping.pop(id(item.delivery), None)
        for item, outcome in zip(leaving, outcomes, strict=True):
            if not item.part.live:
                continue
            position = item.delivery.position
            if outcome is None and position is not None:
                item.part.finish(item.delivery, position[1])
                self._on_left(item.part)
            elif not item.part.draining:
                _log.warning(
                    "%r could not go to its next rung (%s); it is tried again", item.delivery, outcome
                )
                self._push(item.part, item.delivery, item.due, self._clock.time() + _AGAIN)
