"""Sending over producers that are refused, freeze and die; nobody waits for ever and nothing is told that is not so."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from brokerkit.adapters.kafka.client import Unwritten
from brokerkit.adapters.kafka.clock import BrokerClock
from brokerkit.adapters.kafka.wire import Raw, RawHeaders
from brokerkit.adapters.kafka.writer import Writer
from brokerkit.errors import Closed, ConnectionLost, PublishUnknown, SendError, TooLarge
from tests.adapters.kafka.virtual import in_virtual_time

Answer = Callable[["FakeProducer", bytes, "asyncio.Future[Any]"], Awaitable[None] | None]


@pytest.fixture(autouse=True, params=[True, False], ids=["at once", "queued"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeProducer, "at_once", request.param)


def raw(*bodies: bytes) -> list[Raw]:
    return [(body, None, []) for body in bodies]


class FakeProducer:
    """A producer session that does with each record what the test says. at_once: whether it takes them without a wait."""

    at_once = True

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

    def narrow(self, size: int) -> None:
        self.batch = size

    def offer(
        self, topic: str, value: bytes, key: bytes | None, headers: RawHeaders
    ) -> "asyncio.Future[Any] | None":
        if not self.at_once:
            return None
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


@in_virtual_time
async def test_one_session_serves_as_long_as_nothing_goes_wrong() -> None:
    subject, log, made = writer(refuses(b"-"))
    assert await subject.send("t", raw(b"1", b"2")) == [None, None]
    assert await subject.send("t", raw(b"3")) == [None]
    assert (log, len(made)) == ([b"1", b"2", b"3"], 1)
    await subject.close(1)
    assert made[0].stopped == 1


@in_virtual_time
async def test_what_stands_behind_a_refused_record_is_sent_again_by_another_session() -> None:
    subject, log, made = writer(refuses(b"large"))
    outcomes = await subject.send("t", raw(b"1", b"large", b"2", b"3"))
    assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge, type(None), type(None)]
    assert (log, len(made)) == ([b"1", b"2", b"3"], 2)
    await subject.close(1)
    assert [producer.stopped for producer in made] == [2.0, 1]


@in_virtual_time
async def test_a_session_that_never_answers_leaves_it_unknown_in_time_and_is_torn_down() -> None:
    subject, log, made = writer(freezes(1), seconds=0.2)
    begin = asyncio.get_running_loop().time()
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, PublishUnknown)
    assert asyncio.get_running_loop().time() - begin == pytest.approx(0.2)
    assert await subject.send("t", raw(b"2")) == [None]
    await subject.close(1)
    assert (log, [producer.stopped for producer in made]) == ([b"2"], [0, 1])


@in_virtual_time
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


@in_virtual_time
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


@in_virtual_time
async def test_a_start_that_hangs_is_lost_in_time() -> None:
    class Hangs(FakeProducer):
        async def start(self) -> None:
            await asyncio.Event().wait()

    subject = Writer(lambda: Hangs(freezes(0), []), BrokerClock(), seconds=0.2, where="here")
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, ConnectionLost)
    await subject.close(0)


@in_virtual_time
async def test_after_close_nothing_is_sent() -> None:
    subject, log, _ = writer(freezes(0))
    await subject.close(0)
    (outcome,) = await subject.send("t", raw(b"1"))
    assert isinstance(outcome, Closed)
    assert log == []


@pytest.mark.parametrize("turns", range(6))
@in_virtual_time
async def test_a_send_that_is_cancelled_harms_no_other(turns: int) -> None:
    subject, log, _ = writer(freezes(0))
    doubtful = asyncio.create_task(subject.send("t", raw(b"doubtful")))
    for _ in range(turns):
        await asyncio.sleep(0)
    doubtful.cancel()
    assert await subject.send("t", raw(b"sure")) == [None]
    assert log.count(b"sure") == 1
    await subject.close(0)


@in_virtual_time
async def test_of_many_single_sends_each_is_told_its_own_outcome() -> None:
    subject, log, made = writer(refuses(b"large"))
    assert await subject.send_one("t", (b"first", None, [])) is None
    bodies = [b"large" if number == 40 else str(number).encode() for number in range(100)]
    outcomes = await asyncio.gather(*(subject.send_one("t", record) for record in raw(*bodies)))
    assert [type(outcome) for outcome in outcomes] == [
        TooLarge if body == b"large" else type(None) for body in bodies
    ]
    assert sorted(log) == sorted([b"first", *(body for body in bodies if body != b"large")])
    assert len(made) == 2
    await subject.close(0)


@in_virtual_time
async def test_each_single_send_on_a_silent_session_is_unknown_at_its_own_time() -> None:
    """The first one tears the session down; what waits behind it goes to another one, and may still be confirmed."""
    loop = asyncio.get_running_loop()
    subject, log, _ = writer(freezes(2), seconds=1.0)
    ends: list[tuple[bytes, float, SendError | None]] = []
    begin = loop.time()

    async def send(body: bytes, after: float) -> None:
        await asyncio.sleep(after)
        outcome = await subject.send_one("t", (body, None, []))
        ends.append((body, loop.time() - begin, outcome))

    await asyncio.gather(send(b"a", 0.0), send(b"b", 0.2), send(b"c", 0.9))
    assert [(body, type(outcome)) for body, _, outcome in ends] == [
        (b"a", PublishUnknown),
        (b"b", PublishUnknown),
        (b"c", type(None)),
    ]
    assert [at for _, at, _ in ends] == [pytest.approx(1.0), pytest.approx(1.2), pytest.approx(1.2)]
    assert log == [b"c"]
    await subject.close(0)


@in_virtual_time
async def test_a_single_send_that_is_cancelled_harms_no_other_and_leaves_nothing_behind() -> None:
    futures: list[asyncio.Future[Any]] = []
    all_there = asyncio.Event()

    def keep(_: FakeProducer, __: bytes, future: "asyncio.Future[Any]") -> None:
        futures.append(future)
        if len(futures) == 3:
            all_there.set()

    subject, _, _ = writer(keep)
    sends = [asyncio.create_task(subject.send_one("t", record)) for record in raw(b"1", b"2", b"3")]
    await all_there.wait()
    sends[1].cancel()
    await asyncio.wait({sends[1]})
    for future in futures:
        if not future.done():
            future.set_result(None)
    await asyncio.wait(sends)
    assert sends[1].cancelled()
    assert (sends[0].result(), sends[2].result()) == (None, None)
    session = subject._session
    assert session is not None
    assert session._waits == {}
    await subject.close(0)
