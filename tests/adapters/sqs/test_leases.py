"""What one call does to another: renewals, settlements, returns and `close` at the same moment."""

import asyncio
from typing import Any, cast

import pytest

from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.adapters.sqs.calls import Answer, Arguments, CallFailed
from brokerkit.adapters.sqs.fanout import Fanout
from brokerkit.adapters.sqs.session import AwsSession
from brokerkit.errors import Closed, ConnectionLost, PublishUnknown, Stale
from brokerkit.message import Message
from brokerkit.settlement import ACK, Retry
from tests.adapters.sqs.conftest import refused
from tests.adapters.sqs.stub import HERE, INLET, MAIN, Directory, Service, Watch, options


class Gate:
    """Lets calls of an operation wait until it is opened, if `holds` says so of their entries."""

    def __init__(self, *, seconds: int | None = None) -> None:
        self._seconds = seconds
        self.come = asyncio.Event()
        self.open = asyncio.Event()
        self.ended = 0

    async def __call__(self, arguments: Arguments, timeout: float) -> Answer | None:
        del timeout
        if self._seconds is None or arguments["Entries"][0]["VisibilityTimeout"] == self._seconds:
            self.come.set()
            await self.open.wait()
            self.ended += 1
        return None


async def turns() -> None:
    """Let everything that can go on go on."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_a_lease_is_renewed_although_a_queue_of_deletes_gets_no_answer() -> None:
    service = Service()

    def renewals_of(handle: str) -> list[str]:
        handles = [each["ReceiptHandle"] for each in service.entries("ChangeMessageVisibilityBatch")]
        return [each for each in handles if each == handle]

    service.put(201)
    watch = Watch(service)
    taken = await watch.take(201)
    service.acts["DeleteMessageBatch"] = deletes = Gate()
    settling = asyncio.create_task(watch.subscription.settle([(each, ACK) for each in taken[:200]]))
    await service.until(lambda: len(renewals_of("200")) == 3)
    deletes.open.set()
    assert list(await settling) == [None] * 200
    assert watch.lost == []
    await watch.subscription.close()


async def test_no_delete_that_has_waited_for_its_turn_goes_out_after_the_lease() -> None:
    service = Service()
    service.put(90)
    watch = Watch(service)
    taken = await watch.take(90)

    async def refuse(arguments: Arguments, timeout: float) -> Answer:
        del timeout
        return Answer({"Failed": refused(arguments["Entries"], "InternalError", fault=False)})

    service.acts["ChangeMessageVisibilityBatch"] = refuse
    service.acts["DeleteMessageBatch"] = deletes = Gate()
    settling = asyncio.create_task(watch.subscription.settle([(each, ACK) for each in taken]))
    await watch.until_lost(90)
    deletes.open.set()
    outcomes = await settling
    assert [type(each) for each in outcomes] == [type(None)] * 80 + [Stale] * 10
    assert len(service.entries("DeleteMessageBatch")) == 80
    await watch.subscription.close()


async def test_close_puts_back_only_when_the_renewal_that_is_under_way_has_ended() -> None:
    service = Service()
    service.put(1)
    watch = Watch(service)
    await watch.take(1)
    service.acts["ChangeMessageVisibilityBatch"] = renewals = Gate(seconds=1)
    async with asyncio.timeout(5):
        await renewals.come.wait()
        closing = asyncio.create_task(watch.subscription.close())
        polls = [poll for intake in watch.subscription._intakes for poll in intake._polls]
        await asyncio.gather(*polls)
        await turns()
        assert all(each["VisibilityTimeout"] for each in service.entries("ChangeMessageVisibilityBatch"))
        renewals.open.set()
        await closing
    changes = [each["VisibilityTimeout"] for each in service.entries("ChangeMessageVisibilityBatch")]
    assert (changes, renewals.ended) == ([1, 0], 1)


async def test_a_return_is_made_only_when_the_renewal_that_is_under_way_has_ended() -> None:
    service = Service()
    service.put(1)
    watch = Watch(service)
    (delivery,) = await watch.take(1)
    service.acts["ChangeMessageVisibilityBatch"] = renewals = Gate(seconds=1)
    async with asyncio.timeout(5):
        await renewals.come.wait()
        returning = asyncio.create_task(watch.subscription.settle([(delivery, Retry(after=300))]))
        await turns()
        assert [each["VisibilityTimeout"] for each in service.entries("ChangeMessageVisibilityBatch")] == [1]
        renewals.open.set()
        assert list(await returning) == [None]
    changes = [each["VisibilityTimeout"] for each in service.entries("ChangeMessageVisibilityBatch")]
    assert changes == [1, 300]
    await watch.subscription.close()


async def test_what_is_on_its_way_back_is_renewed_no_more() -> None:
    service = Service()
    service.put(1)
    watch = Watch(service)
    (delivery,) = await watch.take(1)
    service.acts["ChangeMessageVisibilityBatch"] = returns = Gate(seconds=300)
    returning = asyncio.create_task(watch.subscription.settle([(delivery, Retry(after=300))]))
    async with asyncio.timeout(5):
        await returns.come.wait()
        (outcome,) = await watch.subscription.hold([delivery])
    assert isinstance(outcome, Stale)
    returns.open.set()
    assert list(await returning) == [None]
    await watch.subscription.close()


async def test_a_poll_asks_for_ten_and_the_few_that_are_left_wait_for_those_under_way() -> None:
    service = Service()
    service.put(10)
    watch = Watch(service)
    await watch.take(10)  # a full answer: from now on there may be two polls at once
    service.calls.clear()
    service.acts["ReceiveMessage"] = polls = Gate()
    receiving = asyncio.create_task(watch.subscription.receive(12))
    await polls.come.wait()
    await turns()
    asked = [call["MaxNumberOfMessages"] for _, call in service.calls if call["QueueUrl"] == MAIN.url]
    assert asked == [10]
    receiving.cancel()
    polls.open.set()
    await watch.subscription.close()


async def test_with_one_poll_at_most_the_next_follows_the_last() -> None:
    service = Service()
    watch = Watch(service, polls=1, poll=1)
    receiving = asyncio.create_task(watch.subscription.receive(1))
    await service.until(lambda: sum(name == "ReceiveMessage" for name, _ in service.calls) > 4)
    service.put(1)
    async with asyncio.timeout(5):
        assert len(await receiving) == 1
    await watch.subscription.close()


async def test_a_close_that_cannot_put_back_renews_nothing_any_more() -> None:
    service = Service()
    service.put(1)
    watch = Watch(service)
    await watch.take(1)

    async def break_down(arguments: Arguments, timeout: float) -> Answer:
        message = "a bug"
        raise LookupError(message)

    service.acts["ChangeMessageVisibilityBatch"] = break_down
    with pytest.raises(LookupError):
        await watch.subscription.close()
    task = watch.subscription._keeper._task
    assert task is not None
    assert task.done()
    assert not watch.subscription._keeper.held


async def test_a_copy_that_was_sent_on_is_deleted_although_the_first_tries_fail() -> None:
    service = Service()
    fails = 2

    async def fail_twice(arguments: Arguments, timeout: float) -> Answer | None:
        nonlocal fails
        del timeout
        if not fails:
            return None
        fails -= 1
        return Answer({"Failed": refused(arguments["Entries"], "InternalError", fault=False)})

    service.acts["DeleteMessageBatch"] = fail_twice
    watch = Watch(service, in_flight=60_001)
    receiving = await until_sent_on(service, watch)
    await service.until(lambda: len(service.entries("DeleteMessageBatch")) == 3)
    await turns()
    assert len(service.entries("SendMessageBatch")) == 1
    assert not watch.subscription._keeper.held
    receiving.cancel()
    await watch.subscription.close()


async def test_a_copy_that_is_being_sent_on_is_kept_from_others_for_as_long_as_that_takes() -> None:
    service = Service()
    service.acts["SendMessageBatch"] = sends = Gate()
    watch = Watch(service, in_flight=60_001)
    receiving = await until_sent_on(service, watch)
    await service.until(lambda: len(service.entries("ChangeMessageVisibilityBatch")) == 2)
    assert not service.entries("DeleteMessageBatch")
    sends.open.set()
    await service.until(lambda: bool(service.entries("DeleteMessageBatch")))
    receiving.cancel()
    await watch.subscription.close()


async def test_copies_that_come_while_the_crowd_is_counted_are_sent_on_like_those_before_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service()
    watch = Watch(service)
    counted, go = asyncio.Event(), asyncio.Event()

    async def count(self: Directory, *_: object) -> dict[str, str]:
        counted.set()
        await go.wait()
        return {"ApproximateNumberOfMessagesNotVisible": "60001"}

    monkeypatch.setattr(Directory, "attributes", count)
    service.put(1, INLET, **delayed_copy())
    receiving = asyncio.create_task(watch.subscription.receive(10))
    await counted.wait()
    service.put(1, INLET, **delayed_copy())
    await service.until(lambda: len(watch.subscription._tasks) == 2)
    await turns()
    go.set()
    await asyncio.gather(*watch.subscription._tasks)
    assert len(service.entries("SendMessageBatch")) == 2
    assert not service.entries("ChangeMessageVisibilityBatch")
    receiving.cancel()
    await watch.subscription.close()


async def test_a_copy_whose_lease_has_ended_while_the_crowd_was_counted_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = Service()
    watch = Watch(service)
    counted = asyncio.Event()

    async def count(self: Directory, *_: object) -> dict[str, str]:
        counted.set()
        await asyncio.sleep(1.0)
        return {"ApproximateNumberOfMessagesNotVisible": "60001"}

    monkeypatch.setattr(Directory, "attributes", count)
    service.put(1, INLET, **delayed_copy())
    receiving = asyncio.create_task(watch.subscription.receive(10))
    await counted.wait()
    await asyncio.gather(*watch.subscription._tasks)
    assert not service.entries("SendMessageBatch")
    receiving.cancel()
    await watch.subscription.close()


def delayed_copy() -> dict[str, Any]:
    """Return the fields of a copy with an hour to go."""
    stamp = {"SentTimestamp": "1000000", "ApproximateFirstReceiveTimestamp": "1000000"}
    packed = {"bk-packed": {"DataType": "String", "StringValue": '{"v":1,"d":3600000}'}}
    return {"Attributes": stamp, "MessageAttributes": packed}


async def until_sent_on(service: Service, watch: Watch) -> asyncio.Task[Any]:
    """Let a copy with a long delay come, and wait until it is sent on."""
    service.put(1, INLET, **delayed_copy())
    receiving = asyncio.create_task(watch.subscription.receive(10))
    await service.until(lambda: bool(service.entries("SendMessageBatch")))
    return receiving


async def test_a_send_ends_in_its_own_time_although_others_stood_before_it() -> None:
    service = Service()
    limits: list[float] = []

    async def hang(arguments: Arguments, timeout: float) -> Answer:
        del arguments
        limits.append(timeout)
        await asyncio.sleep(timeout)
        message = "no answer"
        raise CallFailed(message, code="timeout", sent=True)

    service.acts["SendMessageBatch"] = hang
    fanout = Fanout(cast("Any", Directory()), cast("Any", None), None, service, options(send_timeout=1), {})
    messages = [Message(body=b"x")] * 80  # eight calls
    first = asyncio.create_task(fanout.send(HERE, messages, [0.0] * 80, must_route=False))
    await asyncio.sleep(0.3)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    (outcome,) = await fanout.send(HERE, messages[:1], [0.0], must_route=False)
    assert loop.time() - begin < 1.4
    assert isinstance(outcome, PublishUnknown)
    assert {type(each) for each in await first} == {PublishUnknown}
    assert limits[-1] < 0.8


async def test_what_was_not_even_sent_in_its_time_is_known_to_be_so() -> None:
    service = Service()
    service.acts["SendMessageBatch"] = Gate()
    fanout = Fanout(cast("Any", Directory()), cast("Any", None), None, service, options(send_timeout=0.2), {})
    outcomes = await fanout.send(HERE, [Message(body=b"x")] * 90, [0.0] * 90, must_route=False)
    assert [type(each) for each in outcomes] == [PublishUnknown] * 80 + [ConnectionLost] * 10


async def test_an_adapter_that_is_closed_while_it_connects_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probing, go = asyncio.Event(), asyncio.Event()
    sessions: list[AwsSession] = []

    async def control(self: AwsSession, *_: object, **__: object) -> Answer:
        sessions.append(self)
        probing.set()
        await go.wait()
        return Answer({})

    monkeypatch.setattr(AwsSession, "control", control)
    adapter = SqsAdapter("sqs://127.0.0.1:1")
    connecting = asyncio.create_task(adapter.connect())
    await probing.wait()
    await adapter.close()
    go.set()
    with pytest.raises(Closed):
        await connecting
    assert adapter._transport is None
    with pytest.raises(RuntimeError):  # its threads are gone
        await sessions[0].run(int)
