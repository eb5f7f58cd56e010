"""Fan-out by SNS: the wiring, on a server that imitates SNS and SQS together."""

from typing import Any

import pytest

from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.errors import TooLarge, Unroutable, Unsupported
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.member import bodies
from tests.adapters.sqs.conftest import OPTIONS, Connect, member
from tests.servers import RealServer

MESSAGE = Message(
    body=b"\xff", content_type="a/b", key=b"k", headers=tuple((f"h{n}", "v") for n in range(20))
)


@pytest.fixture
def url(sns_server: RealServer) -> str:
    """Return the endpoint of a server that has both services."""
    place = sns_server.url.partition("://")[2].partition("?")[0].strip("/")
    return f"sqs://{place}?{OPTIONS}"


@pytest.mark.parametrize("kind", ["on", "fifo"])
async def test_every_group_gets_a_message_as_it_was_published(
    connect: Connect, channel: str, kind: str
) -> None:
    adapter = await connect(sns=kind)
    one, two = await member(adapter, channel, "one"), await member(await connect(sns=kind), channel, "two")
    assert list(await adapter.send(Address(channel), [MESSAGE, MESSAGE.replace(body=b"text")])) == [None] * 2
    for each in (one, two):
        taken = await each.take(2, ack=True)
        expected = [MESSAGE, MESSAGE.replace(body=b"text")]
        assert sorted((found.message for found in taken), key=repr) == sorted(expected, key=repr)
        assert {found.address for found in taken} == {Address(channel)}


async def test_a_fifo_topic_feeds_groups_of_both_kinds(connect: Connect, channel: str) -> None:
    adapter = await connect(sns="fifo")
    plain = await member(adapter, channel, "plain")
    ordered = await member(adapter, channel, "ordered", order="key")
    sent = [Message(body=str(n).encode(), key=b"k", copy_id=f"{channel}-{n}") for n in range(12)]
    assert list(await adapter.send(Address(channel), sent)) == [None] * 12
    assert bodies(await ordered.take(12, ack=True)) == [str(n) for n in range(12)]
    assert sorted(bodies(await plain.take(12, ack=True)), key=int) == [str(n) for n in range(12)]


async def test_a_standard_topic_and_an_order_by_key_do_not_go_together(
    connect: Connect, channel: str
) -> None:
    with pytest.raises(Unsupported, match="use sns=fifo"):
        await member(await connect(sns="on"), channel, order="key")


async def test_must_route_needs_a_subscription(connect: Connect, channel: str) -> None:
    adapter = await connect(sns="on")
    (outcome,) = await adapter.send(Address(channel), [MESSAGE], must_route=True)
    assert isinstance(outcome, Unroutable)
    await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [MESSAGE], must_route=True)) == [None]


async def test_a_retry_goes_to_the_group_s_inlet_and_past_the_topic(connect: Connect, channel: str) -> None:
    adapter = await connect(sns="on")
    one, two = await member(adapter, channel, "one"), await member(adapter, channel, "two")
    assert list(await adapter.send(Address(channel, "one", "inlet"), [MESSAGE], after=1)) == [None]
    (delivery,) = await one.take(1, ack=True)
    assert delivery.address == Address(channel, "one", "inlet")
    await two.nothing(0.5)


async def test_a_topic_s_limit_is_smaller_than_a_queue_s(connect: Connect, channel: str) -> None:
    adapter = await connect(sns="on")
    await member(adapter, channel)
    large = Message(body=b"x" * 300_000)
    (outcome,) = await adapter.send(Address(channel), [large])
    assert isinstance(outcome, TooLarge)
    assert adapter.capabilities.max_message < 256 * 1024


async def test_provisioning_names_and_makes_the_subscription_too(connect: Connect, channel: str) -> None:
    adapter = await connect(sns="on")
    places: Any = [(Address(channel, "g", "inlet"), "earliest", "none")]
    missing = await adapter.provision(places, create=False)
    assert list(missing) == [
        f"{channel}--g--inlet",
        f"{channel}--g--dead",
        f"{channel}--g",
        f"{channel} -> {channel}--g",
    ]
    await adapter.provision(places, create=True)
    assert list(await adapter.provision(places, create=False)) == []
    there: SqsAdapter = await connect(sns="on", provisioning="off")
    joined = await member(there, channel)
    assert list(await there.send(Address(channel), [Message(body=b"1")])) == [None]
    assert bodies(await joined.take(1, ack=True)) == ["1"]


async def test_an_adopted_topic_is_published_to_and_left_alone(connect: Connect, channel: str) -> None:
    theirs = await connect(sns="on")
    reader = await member(theirs, f"{channel}-theirs")
    assert theirs._fanout is not None
    topics = theirs._fanout._topics
    assert topics is not None
    arn = await topics.get(f"{channel}-theirs")
    adapter = await connect(sns="on", native={channel: arn})
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    assert bodies(await reader.take(1, ack=True)) == ["1"]
