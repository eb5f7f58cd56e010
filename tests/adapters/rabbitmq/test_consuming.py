"""Consuming: ladders, losses that the broker announces, acks that stop right after they were answered."""

import asyncio
import time
from typing import Any

import pytest

from brokerkit.adapter import Holds, Order, Start
from brokerkit.adapters.rabbitmq.source import Receipt
from brokerkit.errors import ConnectionLost, Stale, Unavailable
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from tests.adapters.rabbitmq.broker import (
    Adapters,
    Member,
    fresh,
    inlet,
    join,
    raw_channel,
    raw_publish,
    sure,
    texts,
)
from tests.servers import RealServer


async def test_a_copy_hops_down_the_ladder_and_is_neither_early_nor_late(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    headers = (("b", "2"), ("a", b"\xff"), ("bk-attempt", "3"))
    begin = time.monotonic()
    await sure(adapter, inlet(channel), [Message(body=b"x", key=b"\xff", headers=headers)], after=2.4)
    (delivery,) = await member.take(1, ack=True)
    assert 2.4 <= time.monotonic() - begin < 4
    assert (delivery.message.headers, delivery.message.key) == (headers, b"\xff")
    assert delivery.address == inlet(channel)
    await member.nothing()


async def test_close_while_copies_are_on_their_way_to_the_next_rung_loses_none(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, inlet(channel), texts(200), after=2.1)
    await asyncio.sleep(1.02)
    await member.subscription.close()
    heir = await join(adapter, inlet(channel), prefetch=300)
    seen: set[bytes] = set()
    while len(seen) < 200:
        seen.update(each.message.body for each in await heir.take(1, ack=True))


async def test_a_copy_that_cannot_be_sent_on_stays_where_it_is(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    owner = await adapters()
    channel = fresh()
    places: list[tuple[Address, Start, Order]] = [(inlet(channel), "earliest", "none")]
    await owner.provision(places, create=True)
    member = await join(await adapters(provisioning="off"), inlet(channel))
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw.queue_delete(f"{channel}--g--retry--1")
        await raw_publish(raw, f"{channel}--g--return", "in", b"waits", **{"bk-wait": "1100"})
    await member.nothing(0.5)
    await member.subscription.close()
    await owner.provision(places, create=True)
    heir = await join(owner, inlet(channel))
    assert [each.message.body for each in await heir.take(1, ack=True)] == [b"waits"]


async def test_a_deleted_queue_ends_receive_and_what_is_out_can_still_be_settled(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(2))
    held = await member.take(2)
    waiting = asyncio.create_task(member.subscription.receive(10))
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw.queue_delete(f"{channel}--g")
    with pytest.raises(ConnectionLost, match="deleted"):
        await asyncio.wait_for(waiting, 10)
    assert member.lost == []
    assert list(await member.subscription.settle([(held[0], ACK)])) == [None]
    await member.subscription.close()
    again = await join(adapter, inlet(channel))  # and its queue is made again
    await sure(adapter, Address(channel), texts(1))
    await again.take(1, ack=True)


async def all_of(member: Member) -> None:
    while await member.subscription.receive(10):
        pass


async def test_a_channel_that_the_broker_closes_loses_what_is_out_first_and_fails_then(
    adapters: Adapters,
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(3))
    held = await member.take(2)
    receipt = held[0].receipt
    assert isinstance(receipt, Receipt)
    channel_of_it: Any = receipt.source._channel
    channel_of_it.ack([(99, False)])  # an unknown tag: the broker closes the channel
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(all_of(member), 10)
    assert set(map(id, held)) <= set(map(id, member.lost))
    outcomes = await member.subscription.settle([(each, ACK) for each in held])
    assert [type(outcome) for outcome in outcomes] == [Stale, Stale]
    assert isinstance(member.subscription, Holds)
    assert [type(each) for each in await member.subscription.hold(held)] == [Stale, Stale]
    await member.subscription.close()
    again = await join(adapter, inlet(channel))
    assert len(await again.take(3, ack=True)) == 3


async def test_hold_asks_the_broker_and_says_which_are_still_ours(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    await sure(adapter, Address(channel), texts(3))
    one, two, three = await member.take(3)
    await member.ack([two])
    assert isinstance(member.subscription, Holds)
    outcomes = await member.subscription.hold([one, two, three])
    assert [type(outcome) for outcome in outcomes] == [type(None), Stale, type(None)]


async def test_a_return_with_order_by_key_is_the_lane_s_business(adapters: Adapters) -> None:
    adapter = await adapters(partitions=1)
    channel = fresh()
    member = await join(adapter, inlet(channel), order="key")
    await sure(adapter, Address(channel), texts(1))
    (delivery,) = await member.take(1)
    (outcome,) = await member.subscription.settle([(delivery, Retry(after=1))])
    assert isinstance(outcome, Unavailable)
    await member.ack([delivery])


async def test_a_handler_that_holds_one_message_does_not_keep_the_others_unacked(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel), prefetch=10)
    await sure(adapter, Address(channel), texts(100))
    (held,) = await member.take(1)
    assert (
        len(await member.take(99, ack=True, limit=9)) == 99
    )  # ten at a time would not do, were they not acked
    await member.ack([held])
    await member.subscription.close()
    await (await join(adapter, inlet(channel))).nothing()


async def test_two_subscriptions_of_a_lost_connection_are_both_told(
    adapters: Adapters,
) -> None:
    adapter = await adapters()
    one, two = await join(adapter, inlet(fresh("one"))), await join(adapter, inlet(fresh("two")))
    waiting = [asyncio.create_task(each.subscription.receive(1)) for each in (one, two)]
    await asyncio.sleep(0)
    client: Any = adapter._hub._client
    client._transport.abort()
    results = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert [type(result) for result in results] == [ConnectionLost, ConnectionLost]
    await one.subscription.close()
    await two.subscription.close()
