"""
Sending: one idempotent producer at a time, another one as soon as it cannot be trusted any more, and nobody waits for ever.

A record that the broker refuses fails every later one of its partition (their sequence has a gap), and a producer on a broker
that does not answer never ends. So: after a refusal new sends use a new producer at once, while the old one settles in the
background; after a time-out it is torn down, and whoever waits for it is told by us, because the client never
tells them then. What was told so sends its message again, with the same id, until its own time is over.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from brokerkit.adapters.kafka.client import BATCH, Producer
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.session import Again, Outcome, Session
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


class Writer:
    """
    Sends records with a new producer when the last one is spoilt.

    new: makes a producer, not started. seconds: how long one `send` takes at the most. batch: bytes of a batch at the most.
    """

    def __init__(
        self, new: Callable[[], Producer], clock: BrokerClock, *, seconds: float, where: str
    ) -> None:
        self._new = new
        self._clock = clock
        self._seconds = seconds
        self._where = where
        self._session: Session | None = None
        self._lock = asyncio.Lock()
        self._leaving: dict[asyncio.Task[None], Session] = {}
        self._closed = False
        self.batch = BATCH

    async def send_one(self, topic: str, record: Raw) -> SendError | None:
        """Send one record and return its outcome: the way of a publish, with nothing in it that only several need."""
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
        tried: tuple[Session, Sequence[Outcome]] | None = None,
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
    ) -> tuple[Session, Sequence[Outcome]]:
        """Send once, in portions, and return what became of each, and the session that it went through."""
        session = self._session
        if session is None or not session.fit:
            session = await self._current(deadline)
        results: list[Outcome] = []
        for at in range(0, len(records), _MOST):
            results += await session.send(topic, records[at : at + _MOST], deadline, self._clock)
        return session, results

    def narrow(self, size: int) -> None:
        """Let no batch be larger than so many bytes, from the next one on."""
        self.batch = size
        if self._session is not None:
            self._session.producer.narrow(size)

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
            if isinstance(result, Again):
                again.append(index)
                if result.unsure:
                    unsure.add(index)
            elif result is None or isinstance(result, SendError):
                outcomes[index] = _told(result, index in unsure)
            else:
                outcomes[index] = _told(_refused(result), index in unsure)
        return again

    def _give_up(
        self, outcomes: list[SendError | None], left: Sequence[int], unsure: set[int], error: SendError
    ) -> None:
        for index in left:
            outcomes[index] = _told(error, index in unsure)

    async def _current(self, deadline: float) -> Session:
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

    async def _started(self) -> Session:
        producer = self._new()
        try:
            await producer.start()
            if self.batch < BATCH:
                producer.narrow(self.batch)
        except BaseException as error:
            stopping = asyncio.get_running_loop().create_task(producer.stop(0))
            self._leaving[stopping] = Session(producer)
            stopping.add_done_callback(self._gone)
            if isinstance(error, ConfigurationError):
                raise _refused(error) from error
            raise
        session = self._session = Session(producer)
        return session

    def _retire(self, session: Session, *, settle: float) -> None:
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

    async def _stop(self, session: Session, settle: float) -> None:
        try:
            await session.producer.stop(settle)
        finally:
            session.die()

    def _gone(self, task: "asyncio.Task[None]") -> None:
        self._leaving.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a producer could not be stopped: %r", error)


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
