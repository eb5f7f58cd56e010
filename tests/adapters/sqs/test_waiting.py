"""Delays beyond what the broker counts itself: parked, hopped, and never early."""

import asyncio
import time

import pytest

from brokerkit.adapters.sqs import fanout, waiting
from brokerkit.adapters.sqs.calls import Answer, Arguments
from brokerkit.adapters.sqs.clock import BrokerClock
from brokerkit.adapters.sqs.waiting import parks_of
from brokerkit.message import Address, Message
from tests.adapters.sqs.conftest import Connect, member
from tests.adapters.sqs.test_batches import Go, Install

LATE = 1.5


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker's own delay end after a second, so that the rest has to wait elsewhere."""
    monkeypatch.setattr(fanout, "LONGEST_DELAY", 1)
    monkeypatch.setattr(waiting, "LONGEST_DELAY", 1)


@pytest.mark.usefixtures("short_delays")
async def test_what_is_beyond_the_broker_s_delay_is_parked_once_and_comes_in_time(
    connect: Connect, channel: str, meddle: Install
) -> None:
    parks: list[int] = []

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if name == "ChangeMessageVisibilityBatch":
            parks.extend(each["VisibilityTimeout"] for each in arguments["Entries"])
        return await go(arguments)

    meddle(between)
    adapter = await connect()
    consumer = await member(adapter, channel)
    begin = time.monotonic()
    await adapter.send(Address(channel, "g", "inlet"), [Message(body=b"x", key=b"k")], after=4.3)
    (delivery,) = await consumer.take(1)
    late = time.monotonic() - begin - 4.3
    assert 0 <= late <= LATE
    assert delivery.message == Message(body=b"x", key=b"k")
    assert delivery.address == Address(channel, "g", "inlet")
    assert (delivery.arrivals, delivery.returns, delivery.suspect) == (2, 1, False)
    assert [seconds for seconds in parks if seconds != 10] == [3]  # 10 is the lease
    await consumer.ack([delivery])


@pytest.mark.usefixtures("short_delays")
async def test_a_parked_copy_outlives_its_consumer_and_is_not_early_for_the_next(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    first = await member(adapter, channel)
    begin = time.monotonic()
    await adapter.send(Address(channel, "g", "inlet"), [Message(body=b"x")], after=5)
    await first.nothing(2.0)
    await first.close()
    await (await member(await connect(), channel)).take(1, ack=True)
    assert 0 <= time.monotonic() - begin - 5 <= LATE


@pytest.mark.usefixtures("short_delays")
async def test_what_is_parked_stops_nothing_else(connect: Connect, channel: str) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    inlet = Address(channel, "g", "inlet")
    await adapter.send(inlet, [Message(body=b"waits")] * 60, after=60)
    await consumer.nothing(1.5)
    await adapter.send(inlet, [Message(body=b"new")] * 20)
    assert {each.message.body for each in await consumer.take(20, ack=True)} == {b"new"}


@pytest.mark.usefixtures("short_delays")
async def test_in_a_crowd_copies_hop_instead_of_being_parked(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_CROWD", -1)
    adapter = await connect()
    consumer = await member(adapter, channel)
    begin = time.monotonic()
    messages = [Message(body=str(number).encode(), headers=(("a", b"\xff"),)) for number in range(12)]
    await adapter.send(Address(channel, "g", "inlet"), messages, after=3.5)
    taken = await consumer.take(12, ack=True)
    assert 0 <= time.monotonic() - begin - 3.5 <= LATE
    assert sorted((each.message for each in taken), key=lambda each: int(each.body)) == messages
    assert {each.arrivals for each in taken} == {1}
    await consumer.nothing()


async def test_the_inlet_of_an_ordered_group_parks_what_its_queue_cannot_delay(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel, order="key")
    begin = time.monotonic()
    inlet = Address(channel, "g", "inlet")
    await adapter.send(inlet, [Message(body=b"1", key=b"k")], after=3.2)
    await adapter.send(inlet, [Message(body=b"0", key=b"other")])
    assert (await consumer.take(1, ack=True))[0].message.body == b"0"
    assert (await consumer.take(1, ack=True))[0].message.body == b"1"
    assert 0 <= time.monotonic() - begin - 3.2 <= LATE


async def test_a_delay_that_a_stranger_has_written_holds_nothing_back_in_a_channel(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    desk = adapter._desk
    session = adapter._session
    assert desk is not None
    assert session is not None
    queue = await desk.queues.get(f"{channel}--g")
    forged = {"DataType": "String", "StringValue": '{"v":1,"d":60000}'}
    arguments = {"QueueUrl": queue.url, "MessageBody": "x", "MessageAttributes": {"bk-packed": forged}}
    await session.control("SendMessage", arguments, timeout=5)
    async with asyncio.timeout(5):
        (delivery,) = await consumer.take(1, ack=True)
    assert delivery.address == Address(channel)


@pytest.mark.parametrize(
    ("after", "fifo", "parks"),
    [
        (0, False, 0),
        (900, False, 0),
        (901, False, 0),
        (902, False, 1),
        (43_200, False, 2),
        (1, True, 0),
        (60, True, 1),
    ],
)
def test_parks_are_counted_from_the_delay(after: float, fifo: bool, parks: int) -> None:
    assert parks_of(after, fifo=fifo) == parks


def test_the_broker_s_clock_is_never_ahead_of_it() -> None:
    now = 100.0
    clock = BrokerClock(lambda: now)
    assert clock.now() is None
    clock.note(5000.0)  # written at 5000.9, cut to the second
    assert clock.now() == 5000.0
    now = 101.0
    clock.note(5001.0)
    clock.note(5001.7)  # a better stamp
    assert clock.now() == 5001.7
    clock.note(5000.0)  # an answer that was long on its way
    assert clock.now() == 5001.7
    now = 100.0 + 310.0
    clock.note(5310.5)  # the broker's clock runs slower than ours: forgotten after two windows
    now += 310.0
    clock.note(5620.5)
    assert clock.now() == 5620.5
