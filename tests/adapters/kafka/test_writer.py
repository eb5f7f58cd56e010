"""Sending over producers that are refused, freeze and die; nobody waits for ever and nothing is told that is not so."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from brokerkit.adapters.kafka.client import Unwritten
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.wire import Raw, RawHeaders
from brokerkit.adapters.kafka.writer import Writer
from brokerkit.errors import Closed, ConnectionLost, PublishUnknown, TooLarge

Answer = Callable[["FakeProducer", bytes, "asyncio.Future[Any]"], Awaitable[None] | None]


def raw(*bodies: bytes) -> list[Raw]:
    return [(body, None, []) for body in bodies]


class FakeProducer:
    """A producer session that does with each record what the test says."""

    def __init__(self, answer: Answer, log: list[bytes]) -> None:
        self.answer = answer
        self.log = log
        self.stopped: float | None = None
        self.gap = False

    async def start(self) -> None:
        await asyncio.sleep(0)

    async def enqueue(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any]":
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.answer(self, value, future)
        return future

    def outcome(self, future: "asyncio.Future[Any]", topic: str) -> tuple[Exception | None, float | None]:
        error = future.exception()
        assert error is None or isinstance(error, Exception)
        return error, None

    async def stop(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.stopped = seconds


def refuses(large: bytes) -> Answer:
    """Refuse one, and everything behind it, as a broker with idempotent producers does."""

    def answer(producer: FakeProducer, value: bytes, future: "asyncio.Future[Any]") -> None:
        if producer.gap:
            future.set_exception(Unwritten("out of order"))
        elif value == large:
            producer.gap = True
            future.set_exception(TooLarge("too large"))
        else:
            producer.log.append(value)
            future.set_result(None)

    return answer


def freezes(first: int) -> Answer:
    """The first so many sessions never answer."""
    sessions: list[FakeProducer] = []

    def answer(producer: FakeProducer, value: bytes, future: "asyncio.Future[Any]") -> None:
        if producer not in sessions:
            sessions.append(producer)
        if sessions.index(producer) >= first:
            producer.log.append(value)
            future.set_result(None)

    return answer


def writer(answer: Answer, seconds: float = 0.5) -> tuple[Writer, list[bytes], list[FakeProducer]]:
    log: list[bytes] = []
    made: list[FakeProducer] = []

    def new() -> FakeProducer:
        made.append(FakeProducer(answer, log))
        return made[-1]

    return Writer(new, BrokerClock(), seconds=seconds, where="here"), log, made


async def test_one_session_serves_as_long_as_nothing_goes_wrong() -> None:
    subject, log, made = writer(refuses(b"-"))
    assert await subject.send("t", raw(b"1", b"2")) == [None, None]
    assert await subject.send("t", raw(b"3")) == [None]
    assert (log, len(made)) == ([b"1", b"2", b"3"], 1)
    await subject.close(1)
    assert made[0].stopped == 1


async def test_what_stands_behind_a_refused_record_is_sent_again_by_another_session() -> None:
    subject, log, made = writer(refuses(b"large"))
    outcomes = await subject.send("t", raw(b"1", b"large", b"2", b"3"))
    assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge, type(None), type(None)]
    assert (log, len(made)) == ([b"1", b"2", b"3"], 2)
    await subject.close(1)
    assert [producer.stopped for producer in made] == [2.0, 1]


async def test_a_session_that_never_answers_leaves_it_unknown_in_time_and_is_torn_down() -> None:
    subject, log, made = writer(freezes(1), seconds=0.2)
    begin = asyncio.get_running_loop().time()
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, PublishUnknown)
    assert 0.19 <= asyncio.get_running_loop().time() - begin < 1
    await asyncio.sleep(0.01)
    assert made[0].stopped == 0
    assert await subject.send("t", raw(b"2")) == [None]
    assert (log, len(made)) == ([b"2"], 2)
    await subject.close(0)


async def test_who_waits_for_a_session_that_another_send_has_torn_down_is_woken_and_sends_again() -> None:
    subject, log, _ = writer(freezes(1), seconds=0.3)
    early = asyncio.create_task(subject.send("t", raw(b"early")))
    await asyncio.sleep(0.2)
    late = asyncio.create_task(subject.send("t", raw(b"late")))
    (outcome,) = await early
    assert isinstance(outcome, PublishUnknown)
    assert await late == [None]
    assert log == [b"late"]
    await subject.close(0)


async def test_a_session_that_cannot_start_is_an_answer_for_each_message() -> None:
    class Nobody(FakeProducer):
        async def start(self) -> None:
            message = "nobody there"
            raise ConnectionLost(message)

    made: list[Nobody] = []

    def new() -> Nobody:
        made.append(Nobody(freezes(0), []))
        return made[-1]

    subject = Writer(new, BrokerClock(), seconds=0.2, where="here")
    outcomes = await subject.send("t", raw(b"1", b"2"))
    assert [type(outcome) for outcome in outcomes] == [ConnectionLost, ConnectionLost]
    await subject.close(0)
    assert [producer.stopped for producer in made] == [0] * len(made)


async def test_a_start_that_hangs_is_lost_in_time() -> None:
    class Hangs(FakeProducer):
        async def start(self) -> None:
            await asyncio.Event().wait()

    subject = Writer(lambda: Hangs(freezes(0), []), BrokerClock(), seconds=0.2, where="here")
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, ConnectionLost)
    await subject.close(0)


async def test_after_close_nothing_is_sent() -> None:
    subject, log, _ = writer(freezes(0))
    await subject.close(0)
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, Closed)
    assert log == []


@pytest.mark.parametrize("turns", range(6))
async def test_a_send_that_is_cancelled_harms_no_other(turns: int) -> None:
    subject, log, _ = writer(freezes(0))
    doubtful = asyncio.create_task(subject.send("t", raw(b"doubtful")))
    for _ in range(turns):
        await asyncio.sleep(0)
    doubtful.cancel()
    assert await subject.send("t", raw(b"sure")) == [None]
    assert log.count(b"sure") == 1
    await subject.close(0)
