"""F35 and its kin: of a batch only what failed has failed."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from brokerkit.adapters.sqs.calls import Answer, Arguments, CallFailed
from brokerkit.errors import ConnectionLost, PublishUnknown, SendError, Stale, Throttled, Unavailable
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from brokerkit.testing.conformance.member import bodies
from tests.adapters.sqs.conftest import Connect, Meddle, member, refused

Install = Callable[[Meddle], None]
Go = Callable[[Arguments], Awaitable[Answer]]


def failing(operation: str, bad: Callable[[dict[str, Any]], bool], code: str, *, fault: bool) -> Meddle:
    """Return what lets some entries of an operation fail; the others are made."""

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if name != operation:
            return await go(arguments)
        entries = arguments["Entries"]
        failed = [each for each in entries if bad(each)]
        good = [each for each in entries if not bad(each)]
        data: dict[str, Any] = (await go({**arguments, "Entries": good})).data if good else {"Successful": []}
        return Answer({**data, "Failed": [*data.get("Failed", []), *refused(failed, code, fault=fault)]})

    return between


def texts(count: int, key: bytes | None = None) -> list[Message]:
    """Return numbered messages."""
    return [Message(body=str(number).encode(), key=key) for number in range(count)]


@pytest.mark.parametrize(
    ("code", "fault", "error"),
    [
        ("InternalError", False, PublishUnknown),
        ("RequestThrottled", True, Throttled),
        ("Odd", True, SendError),
    ],
)
async def test_f35_three_of_ten_sends_fail_and_only_these_are_not_stored(
    connect: Connect, channel: str, meddle: Install, code: str, fault: bool, error: type
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    meddle(
        failing("SendMessageBatch", lambda each: each["MessageBody"] in {"2", "5", "9"}, code, fault=fault)
    )
    outcomes = await adapter.send(Address(channel), texts(10))
    assert [index for index, outcome in enumerate(outcomes) if outcome is not None] == [2, 5, 9]
    assert {type(outcome) for outcome in outcomes if outcome is not None} == {error}
    assert sorted(bodies(await consumer.take(7, ack=True))) == ["0", "1", "3", "4", "6", "7", "8"]


async def test_f35_three_of_ten_deletes_fail_and_only_these_are_tried_again(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), texts(10))
    taken = await consumer.take(10)
    bad = {taken[index].receipt for index in (1, 4, 7)}
    meddle(failing("DeleteMessageBatch", lambda each: each["ReceiptHandle"] in bad, "Busy", fault=False))
    outcomes = await consumer.subscription.settle([(each, ACK) for each in taken])
    assert [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Unavailable)] == [1, 4, 7]
    assert sum(outcome is None for outcome in outcomes) == 7
    bad.clear()
    await consumer.ack([taken[index] for index in (1, 4, 7)])
    assert consumer.lost == []


async def test_f35_a_return_that_the_service_refuses_is_stale_and_its_neighbours_are_returned(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel)
    await adapter.send(Address(channel), texts(4))
    taken = await consumer.take(4)
    bad = {taken[2].receipt}
    meddle(
        failing(
            "ChangeMessageVisibilityBatch",
            lambda each: each["ReceiptHandle"] in bad,
            "ReceiptHandleIsInvalid",
            fault=True,
        )
    )
    outcomes = await consumer.subscription.settle([(each, Retry(after=1.5)) for each in taken])
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), Stale, type(None)]


async def test_with_order_by_key_nothing_follows_a_message_of_its_key_that_was_not_stored(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel, order="key")
    broken = True

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if broken and name == "SendMessageBatch" and arguments["Entries"][0]["MessageBody"] == "0":
            message = "a test"
            raise CallFailed(message, code="unreachable")
        return await go(arguments)

    meddle(between)
    sent = [*texts(25, b"k"), Message(body=b"other", key=b"another")]
    outcomes = await adapter.send(Address(channel), sent)
    assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 25 + [type(None)]
    broken = False
    assert list(await adapter.send(Address(channel), sent[:25])) == [None] * 25
    taken = await consumer.take(26, ack=True)
    assert [body for body in bodies(taken) if body != "other"] == [str(number) for number in range(25)]


async def test_with_order_by_key_no_ack_overtakes_one_of_its_key_that_could_not_be_made(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    consumer = await member(adapter, channel, order="key")
    await adapter.send(Address(channel), [*texts(3, b"k"), Message(body=b"other", key=b"another")])
    taken = {each.message.body: each for each in await consumer.take(4)}
    bad = {taken[b"1"].receipt}
    meddle(failing("DeleteMessageBatch", lambda each: each["ReceiptHandle"] in bad, "Busy", fault=False))
    endings = [(taken[body], ACK) for body in (b"0", b"1", b"2", b"other")]
    outcomes = await consumer.subscription.settle(endings)
    assert [type(outcome) for outcome in outcomes] == [type(None), Unavailable, Unavailable, type(None)]
    await consumer.close()
    heir = await member(adapter, channel, order="key")
    assert bodies(await heir.take(2, ack=True)) == ["1", "2"]


async def test_what_one_of_two_groups_has_not_is_unknown_and_sent_again_reaches_it(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    one, two = await member(adapter, channel, "one"), await member(adapter, channel, "two")
    down = True

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        if down and name == "SendMessageBatch" and arguments["QueueUrl"].endswith("--two"):
            message = "a test"
            raise CallFailed(message, code="unreachable")
        return await go(arguments)

    meddle(between)
    (outcome,) = await adapter.send(Address(channel), texts(1))
    assert isinstance(outcome, PublishUnknown)
    assert "1 of 2 groups" in str(outcome)
    down = False
    assert list(await adapter.send(Address(channel), texts(1))) == [None]
    assert bodies(await one.take(2, ack=True)) == ["0", "0"]
    assert bodies(await two.take(1, ack=True)) == ["0"]


async def test_what_an_answer_does_not_name_is_unknown(
    connect: Connect, channel: str, meddle: Install
) -> None:
    adapter = await connect()
    await member(adapter, channel)

    async def between(name: str, arguments: Arguments, go: Go) -> Answer:
        answer = await go(arguments)
        if name == "SendMessageBatch":
            answer.data["Successful"] = answer.data["Successful"][:-1]
        return answer

    meddle(between)
    outcomes = await adapter.send(Address(channel), texts(3))
    assert [type(outcome) for outcome in outcomes] == [type(None), type(None), PublishUnknown]
