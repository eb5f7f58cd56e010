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
    """One producer. dead: set when it is torn down; whoever waits for one of its records is woken by it."""

    def __init__(self, producer: Producer) -> None:
        self.producer = producer
        self.dead: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.spoilt = False

    async def send(
        self, topic: str, records: Sequence[Raw], deadline: float, clock: BrokerClock
    ) -> list[Outcome]:
        """Send some records in order and return what became of each."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Any]] = []
        problems: list[Exception] = []
        queueing = loop.create_task(self._enqueue(topic, records, futures, problems))
        try:
            await _first(queueing, self.dead, deadline - loop.time())
        finally:
            queueing.cancel()
        if futures and not self.dead.done():
            everything = asyncio.gather(*futures, return_exceptions=True)
            await _first(everything, self.dead, deadline - loop.time())
        outcomes = [self._outcome(future, topic, clock) for future in futures]
        stopped = problems[0] if problems else _Again(unsure=False)
        return outcomes + [stopped] * (len(records) - len(futures))

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

    async def send(self, topic: str, records: Sequence[Raw]) -> list[SendError | None]:
        """Send some records to one topic and return one outcome for each, within the time of a send."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._seconds
        outcomes: list[SendError | None] = [None] * len(records)
        unsure: set[int] = set()
        left = list(range(len(records)))
        while left:
            try:
                session = await self._current(deadline)
            except SendError as error:
                self._give_up(outcomes, left, unsure, error)
                break
            again: list[int] = []
            for at in range(0, len(left), _MOST):
                part = left[at : at + _MOST]
                results = await session.send(topic, [records[index] for index in part], deadline, self._clock)
                again += self._sorted(outcomes, part, results, unsure)
            left = again
            if session.spoilt:
                self._retire(session, settle=_SETTLE)
            if left and loop.time() >= deadline:
                self._retire(session, settle=0.0)
                late = PublishUnknown(f"{topic}: not confirmed within {self._seconds:g} s")
                self._give_up(outcomes, left, set(left), late)
                break
            if left and not session.spoilt and not session.dead.done():
                await asyncio.sleep(_PAUSE)
        return outcomes

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
                if session is None or session.spoilt or session.dead.done():
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
        if settle == 0 and not session.dead.done():
            session.dead.set_result(None)
        if session in self._leaving.values():
            return
        task = asyncio.get_running_loop().create_task(self._stop(session, settle))
        self._leaving[task] = session
        task.add_done_callback(self._gone)

    async def _stop(self, session: _Session, settle: float) -> None:
        try:
            await session.producer.stop(settle)
        finally:
            if not session.dead.done():
                session.dead.set_result(None)

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._leaving.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a producer could not be stopped: %r", error)


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
