"""How soon a waiting member hears of something, and what waiting costs."""
# ruff: noqa: ASYNC110 - a row in a file tells no event

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.adapters.sqlite.wake import Listener, Sender
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
Connect = Callable[..., Awaitable[SqliteAdapter]]


async def ignore(deliveries: object, seconds: float) -> None:
    """Lose nothing that matters to the test."""


async def subscribe(adapter: SqliteAdapter, order: Any = "none") -> SqliteSubscription:
    return await adapter.subscribe(INLET, order=order, start="earliest", prefetch=32, on_lost=ignore)


async def until_waiting(adapter: SqliteAdapter, number: int = 1) -> None:
    """Wait until so many members have noted in the file that they wait."""
    assert adapter._session is not None
    count = "SELECT count(*) FROM member WHERE waiting = 1"
    while await adapter._session.writer.read(lambda tx: tx.execute(count).fetchone()[0]) < number:
        await asyncio.sleep(0.001)


async def latency(publisher: SqliteAdapter, subscription: SqliteSubscription, waiting: int = 1) -> float:
    receiving = asyncio.create_task(subscription.receive(1))
    await until_waiting(publisher, waiting)
    assert list(await publisher.send(CHANNEL, [Message(body=b"1", key=b"k")])) == [None]
    start = time.monotonic()
    taken = await receiving
    seconds = time.monotonic() - start
    await subscription.settle([(delivery, ACK) for delivery in taken])
    return seconds


@pytest.mark.parametrize("order", ["none", "key"])
async def test_a_waiting_member_wakes_within_50_ms_of_another_adapters_commit(
    connect: Connect, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "brokerkit.adapters.sqlite.keeper._LOOK", 1.0
    )  # so that it is the datagram that wakes
    publisher, consumer = await connect(), await connect()
    subscription = await subscribe(consumer, order)
    assert statistics.median([await latency(publisher, subscription) for _ in range(15)]) < 0.05


async def test_a_waiting_member_wakes_within_50_ms_of_its_own_adapters_commit(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    assert statistics.median([await latency(adapter, subscription) for _ in range(15)]) < 0.05


def unheard(*_: object) -> None:
    """Send no datagram."""


async def test_without_datagrams_a_waiting_member_still_wakes_within_the_fallback(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sender, "send", unheard)
    publisher, consumer = await connect(), await connect()
    subscription = await subscribe(consumer)
    assert max([await latency(publisher, subscription) for _ in range(10)]) < 0.5


async def test_one_message_wakes_one_of_several_waiting_members(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    send = Sender.send

    def count(self: Sender, member: int, address: str) -> None:
        sent.append(member)
        send(self, member, address)

    monkeypatch.setattr(Sender, "send", count)
    publisher, consumer = await connect(), await connect()
    subscriptions = [await subscribe(consumer) for _ in range(4)]
    receiving = [asyncio.create_task(subscription.receive(1)) for subscription in subscriptions]
    await until_waiting(publisher, 4)
    await publisher.send(CHANNEL, [Message(body=b"1")])
    await asyncio.wait(receiving, return_when=asyncio.FIRST_COMPLETED)
    assert len(sent) <= 2  # one for the message, one because its taker's limit was reached
    await consumer.close()
    await asyncio.wait(receiving)


async def test_a_forged_datagram_is_dropped() -> None:
    heard: list[int] = []
    listener = Listener(heard.append)
    await listener.open()
    port, _, _ = listener.address.partition(":")
    sender = Sender()
    for address in (f"{port}:{'00' * 8}", f"{port}:", f"{port}:zz", "x:00", "99999999:00", ""):
        sender.send(1, address)
    sender.send(7, listener.address)
    while not heard:
        await asyncio.sleep(0.001)
    assert heard == [7]
    sender.close()
    listener.close()


async def test_waiting_costs_next_to_no_cpu(connect: Connect) -> None:
    adapter = await connect()
    receiving = [asyncio.create_task((await subscribe(adapter)).receive(1)) for _ in range(3)]
    await until_waiting(adapter, 3)
    start, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(1.0)
    assert time.process_time() - cpu < 0.05 * (time.monotonic() - start)
    await adapter.close()
    await asyncio.gather(*receiving)
