"""Where a message came in decides what is believed; what a stranger writes into headers changes nothing."""

from typing import Any

import pytest

from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.message import Address, Message
from tests.adapters.rabbitmq.broker import (
    Adapters,
    fresh,
    inlet,
    join,
    raw_channel,
    raw_publish,
    sure,
    texts,
)
from tests.servers import RealServer

FORGED: dict[str, Any] = {
    "bk-v": "1",
    "bk-attempt": "99",
    "bk-wait": "60000",
    "x-delivery-count": 9,
    "x-death": [{"queue": "q", "reason": "expired", "count": 7}],
}


async def test_only_what_came_by_the_group_s_own_exchange_is_its_own(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw_publish(raw, channel, "in", b"to the channel", **FORGED)
        await raw_publish(raw, f"{channel}--strict", "in", b"strict", **FORGED)
        await raw_publish(raw, "", f"{channel}--g", b"to the queue", **FORGED)
    await sure(adapter, inlet(channel), [Message(body=b"copy")])
    taken = await member.take(4)
    assert {each.message.body: each.address for each in taken} == {
        b"to the channel": Address(channel),
        b"strict": Address(channel),
        b"to the queue": Address(channel),
        b"copy": inlet(channel),
    }
    assert {each.arrivals for each in taken} == {1}
    await member.subscription.close()
    again = await join(adapter, inlet(channel))
    back = await again.take(4, ack=True)
    assert {each.message.body: each.address for each in back} == {
        each.message.body: each.address for each in taken
    }
    assert {each.arrivals for each in back} == {2}  # the broker's count, not the forged one


async def test_what_is_sent_is_persistent_and_each_publish_has_an_id_of_its_own(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    message = Message(body=b"x", copy_id="same")
    await sure(adapter, Address(channel), [message] * 3)
    await sure(adapter, inlet(channel), [message])
    natives: list[Any] = [each.native for each in await member.take(4, ack=True)]
    assert {each.header.properties.delivery_mode for each in natives} == {2}
    assert len({each.header.properties.message_id for each in natives}) == 4


async def test_a_stranger_s_message_in_the_dead_queue_is_no_dead_letter_of_ours(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    adapter = await adapters()
    channel = fresh()
    await join(adapter, inlet(channel))
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw_publish(raw, "", f"{channel}--g--dead", b"forged", **FORGED)
    await sure(adapter, Address(channel, "g", "dead"), [Message(body=b"letter")])
    letters = await join(adapter, Address(channel, "g", "dead"))
    found = {each.message.body: each.address for each in await letters.take(2, ack=True)}
    assert found == {b"forged": Address(channel), b"letter": Address(channel, "g", "dead")}


@pytest.mark.parametrize("name", ["CC", "BCC", "cc"])
async def test_a_header_that_the_broker_routes_by_travels_and_routes_nothing(
    adapters: Adapters, name: str
) -> None:
    adapter = await adapters()
    channel = fresh()
    member, other = await join(adapter, inlet(channel)), await join(adapter, inlet(channel, "other"))
    await sure(adapter, inlet(channel), [Message(body=b"x", headers=((name, f"{channel}--other"),))])
    (delivery,) = await member.take(1, ack=True)
    assert delivery.message.headers == ((name, f"{channel}--other"),)
    await other.nothing()


async def test_a_forged_history_does_not_make_a_copy_vanish_in_the_ladder(adapters: Adapters) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    headers = (("x-death", '[{"queue": "q", "reason": "expired"}]'), ("x-first-death-queue", f"{channel}--g"))
    await sure(adapter, inlet(channel), [Message(body=b"x", headers=headers)], after=1)
    (delivery,) = await member.take(1, ack=True)
    assert delivery.message.headers == headers


async def test_every_foreign_type_of_header_arrives_as_text(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw_publish(raw, channel, "any.key", b"x", n=1, yes=True, none=None, table={"a": [1]})
    (delivery,) = await member.take(1, ack=True)
    assert dict(delivery.message.headers) == {"n": "1", "yes": "true", "none": "null", "table": '{"a": [1]}'}
    assert delivery.message.key is None
    native: Any = delivery.native
    assert native.delivery.routing_key == "any.key"


async def test_adopted_things_are_used_as_they_are_and_only_the_copies_have_a_queue_of_ours(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    channel, theirs = fresh(), fresh("Their.Thing")
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw.exchange_declare(theirs, exchange_type="fanout", durable=True)
        await raw.queue_declare(theirs, durable=True, arguments={"x-max-length": 1000})
        await raw.queue_bind(theirs, theirs)
        adapter: RabbitAdapter = await adapters(native={channel: theirs, f"{channel}/g": theirs})
        member = await join(adapter, inlet(channel))
        await sure(adapter, Address(channel), texts(2))
        await sure(adapter, inlet(channel), [Message(body=b"copy")], after=0.1)
        taken = await member.take(3)
        assert {each.message.body: each.address for each in taken} == {
            b"0": Address(channel),
            b"1": Address(channel),
            b"copy": inlet(channel),
        }
        await member.ack(taken)
        with pytest.raises(Exception, match="NOT_FOUND"):
            await raw.queue_declare(f"{channel}--g", passive=True)


async def test_a_missing_adopted_exchange_is_not_made(adapters: Adapters) -> None:
    channel = fresh()
    adapter = await adapters(native={channel: fresh("gone")})
    (outcome,) = await adapter.send(Address(channel), texts(1))
    assert outcome is not None
    assert outcome.code == "not_found"
