"""Faults by their numbers that are SQS's own; restarts under load are in tests/faults."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from brokerkit.adapter import Holds
from brokerkit.adapters.sqs import held as holding
from brokerkit.adapters.sqs import subscription as subscriptions
from brokerkit.adapters.sqs.calls import Answer, Arguments
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, PublishUnknown, SettleError, Stale, Unavailable
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from brokerkit.testing.conformance.member import Member, bodies
from tests.adapters.sqs.conftest import Connect, member
from tests.adapters.sqs.test_batches import Go, Install
from tests.servers import RealServer


async def held_by(consumer: Member, deliveries: Sequence[Delivery]) -> Sequence[SettleError | None]:
    """Ask whether deliveries are still ours."""
    subscription: Any = consumer.subscription
    inner = subscription._subscription
    assert isinstance(inner, Holds)
    return await inner.hold(deliveries)


@pytest.mark.faults
@pytest.mark.parametrize("transport", ["aiohttp", "botocore"])
async def test_f41_on_a_frozen_broker_sends_settlements_and_closes_end_in_time(
    connect: Connect, channel: str, sqs_server: RealServer, transport: str
) -> None:
    server = sqs_server.control
    adapter = await connect(transport=transport, send_timeout=1.5, lease=8, poll=1)
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1"), Message(body=b"2")])
    held = await consumer.take(2)
    waiting = asyncio.create_task(consumer.subscription.receive(1))
    await asyncio.sleep(0.1)
    server.freeze()
    try:
        begin = time.monotonic()
        outcomes = await adapter.send(Address(channel), [Message(body=b"3")] * 25)
        assert time.monotonic() - begin < 4
        assert {type(outcome) for outcome in outcomes} <= {PublishUnknown, ConnectionLost}
        begin = time.monotonic()
        (outcome,) = await consumer.subscription.settle([(held[0], ACK)])
        assert isinstance(outcome, Unavailable)
        assert time.monotonic() - begin < 4
        begin = time.monotonic()
        await adapter.close()
        assert time.monotonic() - begin < 15
        assert list(await waiting) == []
    finally:
        server.thaw()
    again = await member(await connect(), channel)
    seen: set[str] = set()
    while "2" not in seen:
        seen.update(bodies(await again.take(1, ack=True)))


async def test_f48_a_receive_that_is_cancelled_200_times_loses_nothing_with_polls_that_take_long(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(poll=3, lease=30)
    consumer = await member(adapter, channel)
    taken: list[str] = []
    for number in range(200):
        waiting = asyncio.create_task(consumer.subscription.receive(10))
        sending = asyncio.create_task(adapter.send(Address(channel), [Message(body=str(number).encode())]))
        for _ in range(number % 9):
            await asyncio.sleep(0)
        waiting.cancel()
        await sending
        (result,) = await asyncio.gather(waiting, return_exceptions=True)
        if not isinstance(result, BaseException):
            taken += bodies(result)
            await consumer.ack(result)
    begin = time.monotonic()
    while len(taken) < 200:
        batch = await consumer.receive()
        assert {each.arrivals for each in batch} == {1}
        taken += bodies(batch)
        await consumer.ack(batch)
    assert time.monotonic() - begin < 10
    assert sorted(map(int, taken)) == list(range(200))


async def test_no_poll_is_aborted_and_what_comes_after_close_goes_back(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(poll=1)
    consumer = await member(adapter, channel)
    for number in range(5):
        waiting = asyncio.create_task(consumer.subscription.receive(1))
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(consumer.close())
        await asyncio.sleep(0.02 * number)
        await adapter.send(Address(channel), [Message(body=str(number).encode())])
        assert list(await waiting) == []
        await closing
        consumer = await member(adapter, channel)
        begin = time.monotonic()
        assert bodies(await consumer.take(1, ack=True)) == [str(number)]
        assert time.monotonic() - begin < 1.5, "it waited for a lease to end"


async def test_without_long_polls_a_receive_that_waits_gets_what_comes_and_close_takes_no_time(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(poll=0)
    consumer = await member(adapter, channel)
    waiting = asyncio.create_task(consumer.subscription.receive(1))
    await asyncio.sleep(0.5)  # it rests between two polls
    await adapter.send(Address(channel), [Message(body=b"1")])
    async with asyncio.timeout(1):
        await consumer.ack(await waiting)
    waiting = asyncio.create_task(consumer.subscription.receive(1))
    await asyncio.sleep(0.1)
    begin = time.monotonic()
    await consumer.close()
    assert list(await waiting) == []
    assert time.monotonic() - begin < 0.9


async def test_what_was_fetched_and_nobody_takes_goes_to_another_member(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_IDLE", 0.5)
    adapter = await connect(poll=1)
    full = await member(adapter, channel)
    waiting = asyncio.create_task(full.subscription.receive(10))
    await asyncio.sleep(0.1)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await adapter.send(Address(channel), [Message(body=b"1")])
    await asyncio.sleep(0.2)
    other = await member(await connect(), channel)
    assert bodies(await other.take(1, ack=True)) == ["1"]


async def test_a_short_return_costs_no_arrival_and_a_long_one_is_known_to_be_polite(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1")])
    found: list[tuple[int | None, int]] = []
    for after in (0, 0.2, 1.2, 0):
        (delivery,) = await consumer.take(1)
        found.append((delivery.arrivals, delivery.returns))
        assert list(await consumer.subscription.settle([(delivery, Retry(after=after))])) == [None]
    await consumer.close()
    consumer = await member(adapter, channel)
    (delivery,) = await consumer.take(1, ack=True)
    found.append((delivery.arrivals, delivery.returns))
    assert found == [(1, 0), (1, 0), (1, 0), (2, 1), (3, 2)]
    assert not delivery.suspect


async def test_f8_what_comes_out_of_a_poll_too_late_to_be_ours_is_not_handed_out(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect(lease=2)
    slow = True

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        nonlocal slow
        answer = await go(arguments)
        if name == "ReceiveMessage" and slow and answer.data.get("Messages"):
            slow = False
            await asyncio.sleep(2.2)  # as if this process had stood still: its lease of 2 s is over
        return answer

    meddle(between)
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1")])
    (delivery,) = await consumer.take(1, ack=True)
    assert delivery.arrivals == 2


async def test_a_lease_that_cannot_be_renewed_is_lost_in_time_and_settled_no_more(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect(lease=2)
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1")])
    held = await consumer.take(1)
    calls: list[str] = []

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        calls.append(name)
        if name == "ChangeMessageVisibilityBatch":
            return Answer({"Successful": [], "Failed": []})
        return await go(arguments)

    meddle(between)
    async with asyncio.timeout(5):
        await consumer.told.wait()
    assert consumer.lost == held
    (outcome,) = await consumer.subscription.settle([(held[0], ACK)])
    assert isinstance(outcome, Stale)
    (outcome,) = await held_by(consumer, held)
    assert isinstance(outcome, Stale)
    assert "DeleteMessageBatch" not in calls


async def test_hold_renews_what_is_ours(connect: Connect, channel: str) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1"), Message(body=b"2")])
    one, two = await consumer.take(2)
    await consumer.ack([two])
    outcomes = await held_by(consumer, [one, two])
    assert [type(outcome) for outcome in outcomes] == [type(None), Stale]
    await consumer.ack([one])


async def test_after_eleven_and_a_half_hours_the_engine_is_told_once_when_a_lease_ends(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await connect(lease=2)
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=b"1")])
    taken = await consumer.take(1)
    monkeypatch.setattr(holding, "_LONGEST_HOLD", 0.0)
    async with asyncio.timeout(5):
        await consumer.told.wait()
    assert consumer.lost == taken
    await asyncio.sleep(2.2)
    assert consumer.lost == taken
    (outcome,) = await consumer.subscription.settle([(taken[0], ACK)])
    assert isinstance(outcome, Stale)


async def test_close_puts_back_what_is_unsettled_at_once(connect: Connect, channel: str) -> None:
    adapter = await connect(lease=60)
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), [Message(body=str(number).encode()) for number in range(15)])
    await consumer.take(15)
    await consumer.close()
    begin = time.monotonic()
    heir = await member(await connect(), channel)
    assert len(await heir.take(15, ack=True)) == 15
    assert time.monotonic() - begin < 15, "it waited for a lease of 60 s"
