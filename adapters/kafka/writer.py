"""
Sending: one idempotent producer at a time, another one as soon as it cannot be trusted any more, and nobody waits for ever.

A record that the broker refuses fails every later one of its partition (their sequence has a gap), and a producer on a broker
that does not answer never ends. So: after a refusal new sends use a new producer at once, while the old one settles in the
background; after a time-out it is torn down, and whoever waits for it is told by our own future, because the client's never
ends then. What was told so sends its message again, with the same id, until its own time is over.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from brokerkit.adapters.kafka.client import Producer, Unwritten
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.wire import Raw
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    SendError,
)

__all__ = ["Writer"]

_log = logging.getLogger("brokerkit.kafka")
_SETTLE = 2.0
_PAUSE = 0.05
_MOST = 2_000


class _Again(Exception):
    """Send it again. unsure: it may be in the log."""

    def __init__(self, *, unsure: bool) -> None:
        self.unsure = unsure


Outcome = Exception | None


class _Session:
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
        stopped = problems[0] if problems else _Again(unsure=False)
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
                problems.append(_Again(unsure=False) if isinstance(error, Unwritten) else error)
                self.spoilt = self.spoilt or isinstance(error, Unwritten)
                return

    def _outcome(self, future: "asyncio.Future[Any]", topic: str, clock: BrokerClock) -> Outcome:
        if not future.done():
            return _Again(unsure=True)
        ended = None if future.cancelled() else future.exception()
        if isinstance(ended, _Again):
            return ended
        error, appended = self.producer.outcome(future, topic)
        if appended is not None:
            clock.confirmed(appended)
        if error is None:
            return None
        self.spoilt = True
        return _Again(unsure=False) if isinstance(error, Unwritten) else error


class Writer:
    """
    Sends records with a new producer when the last one is spoilt.

    new: makes a producer, not started. seconds: how long one `send` takes at the most.
    """

    def __init__(
        self, new: Callable[[], Producer], clock: BrokerClock, *, seconds: float, where: str
    ) -> None:
        self._new = new
        self._clock = clock
        self._seconds = seconds
        self._where = where
        self._session: _Session | None = None
        self._lock = asyncio.Lock()
        self._leaving: dict[asyncio.Task[None], _Session] = {}
        self._closed = False

    async def send_one(self, topic: str, record: Raw) -> SendError | None:
        """The same for one record: the usual way of a publish, with nothing in it that only several need."""
        session = self._session
        if session is None or not session.fit:
            return (await self.send(topic, [record]))[0]
        deadline = asyncio.get_running_loop().time() + self._seconds
        result = await session.send_one(topic, record, deadline, self._clock)
        if result is None:
            return None
        return (await self._settle(topic, [record], deadline, (session, [result])))[0]

    async def send(self, topic: str, records: Sequence[Raw]) -> list[SendError | None]:
        """Send some records to one topic and return one outcome for each, within the time of a send."""
        return await self._settle(topic, records, asyncio.get_running_loop().time() + self._seconds)

    async def _settle(
        self,
        topic: str,
        records: Sequence[Raw],
        deadline: float,
        tried: tuple[_Session, Sequence[Outcome]] | None = None,
    ) -> list[SendError | None]:
        """Send again what has to be, until each is confirmed, refused or out of time. tried: what a first try has brought."""
        loop = asyncio.get_running_loop()
        outcomes: list[SendError | None] = [None] * len(records)
        unsure: set[int] = set()
        left = list(range(len(records)))
        while left:
            try:
                session, results = tried or await self._try(
                    topic, [records[index] for index in left], deadline
                )
            except SendError as error:
                self._give_up(outcomes, left, unsure, error)
                break
            tried = None
            left = self._sorted(outcomes, left, results, unsure)
            if session.spoilt:
                self._retire(session, settle=_SETTLE)
            if left and loop.time() >= deadline:
                self._retire(session, settle=0.0)
                late = PublishUnknown(f"{topic}: not confirmed within {self._seconds:g} s")
                self._give_up(outcomes, left, set(left), late)
                break
            if left and session.fit:
                await asyncio.sleep(_PAUSE)
        return outcomes

    async def _try(
        self, topic: str, records: Sequence[Raw], deadline: float
    ) -> tuple[_Session, Sequence[Outcome]]:
        """Send once, in portions, and return what became of each, and the session that it went through."""
        session = self._session
        if session is None or not session.fit:
            session = await self._current(deadline)
        results: list[Outcome] = []
        for at in range(0, len(records), _MOST):
            results += await session.send(topic, records[at : at + _MOST], deadline, self._clock)
        return session, results

    async def close(self, seconds: float) -> None:
        """Let what is under way settle, and stop; within so many seconds and a few more."""
        self._closed = True
        if self._session is not None:
            self._retire(self._session, settle=seconds)
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=seconds + 2 * _SETTLE)

    def _sorted(
        self,
        outcomes: list[SendError | None],
        part: Sequence[int],
        results: Sequence[Outcome],
        unsure: set[int],
    ) -> list[int]:
        """Take in what became of each, and return those that are to be sent again."""
        again: list[int] = []
        for index, result in zip(part, results, strict=True):
            if isinstance(result, _Again):
                again.append(index)
                if result.unsure:
                    unsure.add(index)
            elif result is None or isinstance(result, SendError):
                outcomes[index] = _told(result, index in unsure)
            else:
                outcomes[index] = _refused(result)
        return again

    def _give_up(
        self, outcomes: list[SendError | None], left: Sequence[int], unsure: set[int], error: SendError
    ) -> None:
        for index in left:
            outcomes[index] = _told(error, index in unsure)

    async def _current(self, deadline: float) -> _Session:
        """Return the session in use, or start another one."""
        try:
            async with asyncio.timeout_at(deadline), self._lock:
                if self._closed:
                    message = f"{self._where} is closed"
                    raise Closed(message)
                session = self._session
                if session is None or not session.fit:
                    session = await self._started()
                return session
        except TimeoutError as error:
            message = f"{self._where}: no answer within {self._seconds:g} s"
            raise ConnectionLost(message) from error

    async def _started(self) -> _Session:
        producer = self._new()
        try:
            await producer.start()
        except BaseException as error:
            stopping = asyncio.get_running_loop().create_task(producer.stop(0))
            self._leaving[stopping] = _Session(producer)
            stopping.add_done_callback(self._gone)
            if isinstance(error, ConfigurationError):
                raise _refused(error) from error
            raise
        session = self._session = _Session(producer)
        return session

    def _retire(self, session: _Session, *, settle: float) -> None:
        """Use it for nothing new; let it settle for so many seconds, then tear it down."""
        if self._session is session:
            self._session = None
        session.spoilt = True
        if settle == 0:
            session.die()
        if session in self._leaving.values():
            return
        task = asyncio.get_running_loop().create_task(self._stop(session, settle))
        self._leaving[task] = session
        task.add_done_callback(self._gone)

    async def _stop(self, session: _Session, settle: float) -> None:
        try:
            await session.producer.stop(settle)
        finally:
            session.die()

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._leaving.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a producer could not be stopped: %r", error)


def _give_up(future: "asyncio.Future[Any]") -> None:
    """End a future that the client may never end; it takes no offence at one that is done."""
    if not future.done():
        future.set_exception(_Again(unsure=True))


async def _first(one: "asyncio.Future[Any]", other: "asyncio.Future[Any]", seconds: float) -> None:
    await asyncio.wait([one, other], timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)


def _told(result: SendError | None, unsure: bool) -> SendError | None:
    """A failure of the second try says nothing of the first one, of which the outcome is unknown."""
    if result is None or not unsure or isinstance(result, PublishUnknown):
        return result
    found = PublishUnknown(f"the first try was not confirmed, and then: {result}")
    found.__cause__ = result
    return found


def _refused(error: Exception) -> SendError:
    """Put what is no `SendError` into one: an answer belongs to each message."""
    made: SendError = (
        NotFound(str(error)) if isinstance(error, ConfigurationError) else ConnectionLost(str(error))
    )
    made.__cause__ = error
    return made
