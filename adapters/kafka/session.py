"""
One producer and the records that wait for its answer: told when it comes, when their time is over, or when no answer will come.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from brokerkit.adapters.kafka.client import Producer, Unwritten
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.wire import Raw

__all__ = ["Again", "Outcome", "Session"]


class Again(Exception):
    """Send it again. unsure: it may be in the log."""

    def __init__(self, *, unsure: bool) -> None:
        self.unsure = unsure


Outcome = Exception | None


class Session:
    """
    One producer, and the records that wait for its answer.

    dead: set when it is torn down, by `die`. Then, and when their time is over, we end the client's futures ourselves; one timer
    does it for all of them, because one for each would cost more than the sending.
    """

    def __init__(self, producer: Producer) -> None:
        self._loop = asyncio.get_running_loop()
        self._waits: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.producer = producer
        self.dead: asyncio.Future[None] = self._loop.create_future()
        self.spoilt = False

    @property
    def fit(self) -> bool:
        """Whether new records may go through it."""
        return not self.spoilt and not self.dead.done()

    def die(self) -> None:
        """Tell all who wait that no answer will come any more."""
        if not self.dead.done():
            self.dead.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for future in self._waits:
            _give_up(future)

    async def send(
        self, topic: str, records: Sequence[Raw], deadline: float, clock: BrokerClock
    ) -> list[Outcome]:
        """Send some records in order and return what became of each."""
        futures = self._offer(topic, records)
        problems: list[Exception] = []
        if len(futures) < len(records):
            queueing = self._loop.create_task(
                self._enqueue(topic, records[len(futures) :], futures, problems)
            )
            try:
                await _first(queueing, self.dead, deadline - self._loop.time())
            finally:
                queueing.cancel()
        if futures:
            await self._all(futures, deadline)
        outcomes = [self._outcome(future, topic, clock) for future in futures]
        stopped = problems[0] if problems else Again(unsure=False)
        return outcomes + [stopped] * (len(records) - len(futures))

    async def send_one(self, topic: str, record: Raw, deadline: float, clock: BrokerClock) -> Outcome:
        """Send one record and return what became of it."""
        future = self.producer.offer(topic, *record)
        if future is None:
            return (await self.send(topic, [record], deadline, clock))[0]
        await self._all((future,), deadline)
        return self._outcome(future, topic, clock)

    def _offer(self, topic: str, records: Sequence[Raw]) -> list["asyncio.Future[Any]"]:
        """Hand over what the producer takes at once: all of them, usually."""
        futures: list[asyncio.Future[Any]] = []
        for value, key, headers in records:
            future = self.producer.offer(topic, value, key, headers)
            if future is None:
                break
            futures.append(future)
        return futures

    async def _all(self, futures: Sequence["asyncio.Future[Any]"], deadline: float) -> None:
        """Wait for all of these, the end of the session, or the deadline. Cancelled, it waits for none of them any more."""
        if self.dead.done():
            return
        waits = self._waits
        for future in futures:
            waits[future] = deadline
        if self._timer is None or deadline < self._timer.when():
            self._arm(deadline)
        try:
            for future in futures:
                try:
                    await future
                except Exception:  # noqa: BLE001, S112 - `_outcome` reads it
                    continue
        finally:
            for future in futures:
                del waits[future]
                future.cancel()

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time()
        later: list[float] = []
        for future, deadline in self._waits.items():
            if deadline <= now:
                _give_up(future)
            else:
                later.append(deadline)
        if later:
            self._arm(min(later))

    async def _enqueue(
        self,
        topic: str,
        records: Sequence[Raw],
        futures: list["asyncio.Future[Any]"],
        problems: list[Exception],
    ) -> None:
        for value, key, headers in records:
            try:
                futures.append(await self.producer.enqueue(topic, value, key, headers))
            except Exception as error:  # noqa: BLE001 - every record gets its outcome
                problems.append(Again(unsure=False) if isinstance(error, Unwritten) else error)
                self.spoilt = self.spoilt or isinstance(error, Unwritten)
                return

    def _outcome(self, future: "asyncio.Future[Any]", topic: str, clock: BrokerClock) -> Outcome:
        if not future.done():
            return Again(unsure=True)
        ended = None if future.cancelled() else future.exception()
        if isinstance(ended, Again):
            return ended
        error, appended = self.producer.outcome(future, topic)
        if appended is not None:
            clock.confirmed(appended)
        if error is None:
            return None
        self.spoilt = True
        return Again(unsure=False) if isinstance(error, Unwritten) else error


def _give_up(future: "asyncio.Future[Any]") -> None:
    """End a future that the client may never end; it takes no offence at one that is done."""
    if not future.done():
        future.set_exception(Again(unsure=True))


async def _first(one: "asyncio.Future[Any]", other: "asyncio.Future[Any]", seconds: float) -> None:
    await asyncio.wait([one, other], timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
