"""How a channel reaches its groups, and what becomes of a message without one."""

import asyncio

import pytest

from brokerkit.adapters.sqs import routes
from brokerkit.adapters.sqs.calls import Answer, Arguments
from brokerkit.errors import ConfigurationError, ConnectionLost, NotFound, TooLarge, Unroutable
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.member import bodies
from tests.adapters.sqs.conftest import PATIENCE, Connect, member
from tests.adapters.sqs.test_batches import Go, Install


async def test_a_group_made_by_another_process_gets_all_that_is_sent_after_its_subscribe(
    connect: Connect, url: str, channel: str
) -> None:
    slow = url.replace("groups_age=0.05", "groups_age=0.5")
    publisher = await connect(slow)
    await member(await connect(slow), channel, "old")
    sent: list[str] = []
    stop = asyncio.Event()

    async def publish() -> None:
        while not stop.is_set():
            body = f"m-{len(sent)}"
            sent.append(body)
            assert list(await publisher.send(Address(channel), [Message(body=body.encode())])) == [None]

    publishing = asyncio.create_task(publish())
    for number in range(4):
        joined = await member(await connect(slow), channel, f"new-{number}")
        since = len(sent)
        await asyncio.sleep(0.1)
        due = sent[since:]
        assert due
        taken: set[str] = set()
        async with asyncio.timeout(PATIENCE):  # newer ones come for ever
            while not set(due) <= taken:
                taken.update(bodies(await joined.take(1, ack=True)))
    stop.set()
    await publishing


async def test_a_second_member_of_a_group_that_was_just_made_waits_too(
    connect: Connect, url: str, channel: str
) -> None:
    slow = url.replace("groups_age=0.05", "groups_age=0.7")
    publisher = await connect(slow)
    await member(await connect(slow), channel, "old")
    one, two = await connect(slow), await connect(slow)
    await publisher.send(Address(channel), [Message(body=b"0")])
    making = asyncio.create_task(member(one, channel, "new"))
    await asyncio.sleep(0.3)
    second = await member(two, channel, "new")
    assert list(await publisher.send(Address(channel), [Message(body=b"1")])) == [None]
    first = await making
    await first.close()
    assert "1" in bodies([*await second.take(1, ack=True), *await second.some(0.3)])


async def test_what_no_group_has_asked_for_is_kept_up_to_a_bound(connect: Connect, channel: str) -> None:
    adapter = await connect(unrouted=3)
    messages = [Message(body=str(number).encode()) for number in range(2)]
    assert list(await adapter.send(Address(channel), messages)) == [None, None]
    outcomes = await adapter.send(Address(channel), messages)
    assert [type(outcome) for outcome in outcomes] == [Unroutable, Unroutable]
    native = {f"{channel}/rescue": f"{channel}--return--unrouted"}
    rescue = await member(await connect(native=native), channel, "rescue")
    assert sorted(bodies(await rescue.take(2, ack=True))) == ["0", "1"]


async def test_without_a_bound_for_it_a_message_without_a_group_is_unroutable(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(unrouted=0)
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"1")])
    assert isinstance(outcome, Unroutable)


async def test_a_channel_may_have_groups_of_both_kinds(connect: Connect, channel: str) -> None:
    adapter = await connect()
    plain = await member(adapter, channel, "plain")
    ordered = await member(adapter, channel, "ordered", order="key")
    messages = [Message(body=str(number).encode(), key=b"k") for number in range(25)]
    assert list(await adapter.send(Address(channel), messages)) == [None] * 25
    expected = [str(number) for number in range(25)]
    assert bodies(await ordered.take(25, ack=True)) == expected
    assert sorted(bodies(await plain.take(25, ack=True)), key=int) == expected


async def test_a_group_never_changes_its_order(connect: Connect, channel: str) -> None:
    await member(await connect(), channel)
    with pytest.raises(ConfigurationError, match="FIFO or it is not"):
        await member(await connect(), channel, order="key")


async def test_a_resend_with_the_same_copy_id_is_dropped_by_a_fifo_queue_only(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    plain = await member(adapter, channel, "plain")
    ordered = await member(adapter, channel, "ordered", order="key")
    message = Message(body=b"1", key=b"k", copy_id="one id")
    for _ in range(2):
        assert list(await adapter.send(Address(channel), [message])) == [None]
    assert list(await adapter.send(Address(f"{channel}-other"), [message])) == [None]
    await adapter.send(Address(channel), [Message(body=b"last", key=b"k")])
    assert bodies(await ordered.take(2, ack=True)) == ["1", "last"]
    assert sorted(bodies(await plain.take(3, ack=True))) == ["1", "1", "last"]


async def test_with_provisioning_off_what_is_missing_is_not_found_and_what_is_there_is_used(
    connect: Connect, channel: str
) -> None:
    off = await connect(provisioning="off")
    with pytest.raises(NotFound, match="provisioning is off"):
        await member(off, channel)
    await member(await connect(), channel)
    there = await member(await connect(provisioning="off"), channel)
    await off.send(Address(channel), [Message(body=b"1")])
    assert bodies(await there.take(1, ack=True)) == ["1"]


async def test_an_adopted_queue_is_read_as_it_is_and_its_places_are_beside_it(
    connect: Connect, channel: str
) -> None:
    plain = await connect()
    theirs = await member(plain, f"{channel}-theirs", "legacy")
    await theirs.close()
    name = f"{channel}-theirs--legacy"
    adapter = await connect(native={channel: name, f"{channel}/g": name})
    adopted = await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    (delivery,) = await adopted.take(1, ack=True)
    assert (delivery.message.body, delivery.address) == (b"1", Address(channel))
    assert delivery.position is not None
    assert delivery.position[0] == name
    await adapter.send(Address(channel, "g", "inlet"), [Message(body=b"2")])
    (delivery,) = await adopted.take(1, ack=True)
    assert delivery.address == Address(channel, "g", "inlet")


async def test_the_smaller_limit_of_a_queue_is_kept(connect: Connect, channel: str, meddle: Install) -> None:
    adapter = await connect(max_message=10_000)
    await member(adapter, channel)
    outcomes = await adapter.send(Address(channel), [Message(body=b"x" * 5000), Message(body=b"x" * 9000)])
    assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge]


async def test_a_body_of_bytes_leaves_room_for_the_story_of_its_failure(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(max_message=100_000)
    await member(adapter, channel)
    body = b"\xff" * 70_000  # 93,336 in base64: it would fit, its dead letter would not
    (outcome,) = await adapter.send(Address(channel), [Message(body=body)])
    assert isinstance(outcome, TooLarge)
    (outcome,) = await adapter.send(Address(channel, "g", "inlet"), [Message(body=body)])
    assert outcome is None


async def test_large_messages_of_a_batch_go_in_several_calls(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    sizes: list[int] = []

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if name == "SendMessageBatch":
            sizes.append(sum(len(each["MessageBody"]) for each in arguments["Entries"]))
        return await go(arguments)

    meddle(between)
    messages = [Message(body=b"x" * 300_000) for _ in range(7)]
    assert list(await adapter.send(Address(channel), messages)) == [None] * 7
    assert max(sizes) <= 1024 * 1024
    assert len(await consumer.take(7, ack=True)) == 7


async def test_a_list_of_groups_that_cannot_be_refreshed_stops_the_send(
    connect: Connect, url: str, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await connect()
    await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    queues = adapter._fanout._queues  # type: ignore[union-attr]

    async def fails(prefix: str) -> list[str]:
        message = "a test"
        raise ConnectionLost(message)

    monkeypatch.setattr(queues, "names", fails)
    await asyncio.sleep(0.1)
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"2")])
    assert isinstance(outcome, ConnectionLost)


async def test_a_stranger_s_ten_attributes_are_headers_and_go_on_as_one(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    attributes = {f"a{n}": {"DataType": "String", "StringValue": str(n)} for n in range(10)}
    session = adapter._session
    assert session is not None
    desk = adapter._desk
    assert desk is not None
    queue = await desk.queues.get(f"{channel}--g")
    arguments = {"QueueUrl": queue.url, "MessageBody": "x", "MessageAttributes": attributes}
    await session.control("SendMessage", arguments, timeout=5)
    (delivery,) = await consumer.take(1, ack=True)
    assert dict(delivery.message.headers) == {f"a{n}": str(n) for n in range(10)}
    copy = delivery.message.replace(headers=(*delivery.message.headers, ("bk-attempt", "2")))
    assert list(await adapter.send(Address(channel, "g", "inlet"), [copy])) == [None]
    (again,) = await consumer.take(1, ack=True)
    assert again.message == copy


async def test_a_group_that_vanishes_from_the_list_for_a_moment_misses_nothing(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    assert adapter._desk is not None

    async def none(prefix: str) -> list[str]:
        return []

    monkeypatch.setattr(adapter._desk.queues, "names", none)
    await asyncio.sleep(0.1)
    assert list(await adapter.send(Address(channel), [Message(body=b"2")])) == [None]
    assert sorted(bodies(await consumer.take(2, ack=True))) == ["1", "2"]
    monkeypatch.setattr(routes, "_DOUBT", 0.0)
    await asyncio.sleep(0.1)
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"3")], must_route=True)
    assert isinstance(outcome, Unroutable)


async def test_a_send_to_a_group_whose_queue_is_gone_is_to_be_tried_again(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    await member(adapter, channel)
    assert list(await adapter.send(Address(channel), [Message(body=b"1")])) == [None]
    assert adapter._desk is not None
    queue = await adapter._desk.queues.get(f"{channel}--g")
    await adapter._desk.queues.call("DeleteQueue", {"QueueUrl": queue.url})
    (outcome,) = await adapter.send(Address(channel), [Message(body=b"2")])
    assert isinstance(outcome, ConnectionLost)
