"""What a member does between two steps of its broker, over a fake one: each of these was a lost or a doubled message."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from brokerkit.adapters.kafka.client import Committed
from brokerkit.adapters.kafka.notes import Note, Run, encode
from brokerkit.adapters.kafka.partition import Partition
from brokerkit.adapters.kafka.subscription import KafkaSubscription
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost
from brokerkit.settlement import ACK, Retry
from tests.adapters.kafka.fake import HERE, FakeConsumer, Site
from tests.adapters.kafka.virtual import in_virtual_time


@pytest.fixture
def consumer() -> FakeConsumer:
    return FakeConsumer()


def left_behind(consumer: FakeConsumer, head: int, note: Note, *, end: int) -> None:
    """What the last owner has committed, and where the log ends now."""
    consumer.log[HERE] = Committed(head, encode(note, head)[0])
    consumer.last[HERE] = end


def offsets(deliveries: Sequence[Delivery]) -> list[int]:
    return [delivery.position[1] for delivery in deliveries if delivery.position is not None]


async def take(subscription: KafkaSubscription, count: int) -> list[Delivery]:
    """Receive so many; in virtual time ten seconds cost nothing."""
    taken: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(taken) < count:
            batch = await subscription.receive(count - len(taken))
            assert batch
            taken += batch
    return taken


async def ack(subscription: KafkaSubscription, deliveries: Sequence[Delivery]) -> None:
    assert list(await subscription.settle([(each, ACK) for each in deliveries])) == [None] * len(deliveries)


async def until(check: Callable[[], bool]) -> None:
    """Look again with every turn of the loop."""
    async with asyncio.timeout(10):
        while True:
            if check():
                return
            await asyncio.sleep(0.01)


async def committed(consumer: FakeConsumer) -> int:
    """Where the commit stands, once all that was touched is written."""
    await asyncio.sleep(1)
    return consumer.log[HERE].offset


@in_virtual_time
async def test_of_a_log_that_was_made_again_every_message_is_handed_out_and_none_is_marked(
    consumer: FakeConsumer,
) -> None:
    """The map of the log before says that 6 to 49 are finished; of this one it says nothing."""
    left_behind(
        consumer, 5, Note(drained=True, upto=50, runs=[Run(5, 1, 1, 1)], marks={5: b"its mark"}), end=50
    )
    subscription = await Site(consumer).subscribe()
    consumer.deliver(*range(5, 50))
    (old,) = await take(subscription, 1)
    assert old.mark == b"its mark"
    consumer.deliver(*range(60))
    new = await take(subscription, 60)
    assert offsets(new) == list(range(60))
    assert {each.mark for each in new} == {None}
    assert {(each.arrivals, each.returns) for each in new} == {(1, 0)}
    await ack(subscription, new)
    assert await committed(consumer) == 60
    await subscription.close()


@in_virtual_time
async def test_what_is_open_of_the_log_before_neither_moves_nor_breaks_the_commit_of_the_new_one(
    consumer: FakeConsumer,
) -> None:
    left_behind(consumer, 990, Note(drained=True, upto=990), end=1_000)
    subscription = await Site(consumer).subscribe()
    consumer.deliver(*range(990, 1_000))
    await take(subscription, 10)
    consumer.deliver(*range(5))
    new = await take(subscription, 5)
    await ack(subscription, new[:3])
    assert await committed(consumer) == 3
    note = consumer.note()
    assert [(run.first, run.length) for run in note.runs] == [(3, 2)]
    await subscription.close()
    assert consumer.log[HERE].offset == 3
    assert consumer.note().drained


@in_virtual_time
async def test_a_mark_can_be_written_after_a_marked_record_was_deleted_by_retention(
    consumer: FakeConsumer,
) -> None:
    left_behind(
        consumer,
        10,
        Note(drained=True, upto=50, runs=[Run(10, 40, 1, 1)], marks={12: b"gone"}),
        end=50,
    )
    subscription = await Site(consumer).subscribe()
    consumer.deliver(*range(40, 50))
    first, *_ = await take(subscription, 10)
    assert list(await subscription.mark([(first, b"1")])) == [None]
    assert consumer.note().marks == {40: b"1"}
    await subscription.close()


@in_virtual_time
async def test_a_hop_that_is_confirmed_some_seconds_after_a_close_began_is_not_made_again(
    consumer: FakeConsumer,
) -> None:
    site = Site(consumer, wait=1)
    site.on_hop = lambda: asyncio.sleep(2.5)
    subscription = await site.subscribe()
    consumer.deliver(0, headers=[("bk-wait", b"30")])
    await _on_its_way(subscription)
    begin = asyncio.get_running_loop().time()
    await subscription.close()
    assert asyncio.get_running_loop().time() - begin < 7
    assert offsets(site.hops) == [0]
    assert consumer.log[HERE].offset == 1


@in_virtual_time
async def test_a_hop_that_is_under_way_when_the_drain_has_used_its_time_is_not_made_again(
    consumer: FakeConsumer,
) -> None:
    site = Site(consumer, wait=1, drain=0.0)
    site.on_hop = lambda: asyncio.sleep(0.5)
    subscription = await site.subscribe()
    consumer.deliver(0, headers=[("bk-wait", b"30")])
    await _on_its_way(subscription)
    await consumer.revoke()
    assert offsets(site.hops) == [0]
    assert consumer.log[HERE].offset == 1
    await subscription.close()


async def _on_its_way(subscription: KafkaSubscription) -> None:
    """Wait until a record of a rung is on its way to the next one."""
    await until(lambda: bool(subscription._shelf._hopping))


@in_virtual_time
async def test_an_open_subscription_never_answers_with_nothing_when_all_was_withdrawn_during_a_doubt(
    consumer: FakeConsumer,
) -> None:
    subscription = await Site(consumer).subscribe()
    consumer.deliver(0, 1)
    await until(lambda: bool(subscription._ready))
    consumer.contact = -1_000.0
    taken_away: list[asyncio.Task[None]] = []

    async def rebalance() -> None:
        consumer.on_commit = None
        taken_away.append(asyncio.create_task(consumer.revoke()))
        await until(lambda: not subscription._ready)

    consumer.on_commit = rebalance
    receiving = asyncio.create_task(subscription.receive(10))
    await asyncio.sleep(0.5)
    await asyncio.gather(*taken_away)
    assert not receiving.done()
    consumer.assign(HERE)
    consumer.deliver(0, 1)
    assert offsets(await receiving) == [0, 1]
    await subscription.close()


@in_virtual_time
async def test_what_was_never_handed_out_has_not_arrived_for_the_next_owner(consumer: FakeConsumer) -> None:
    subscription = await Site(consumer).subscribe()
    consumer.deliver(0, 1, 2)
    await take(subscription, 1)
    await consumer.revoke()
    assert consumer.note().runs == [Run(0, 1, 1, 1), Run(1, 2, 0, 0)]
    await subscription.close()


@in_virtual_time
async def test_a_return_while_the_partition_is_drained_is_one_return(consumer: FakeConsumer) -> None:
    """One too many would hide a crash."""
    site = Site(consumer)
    subscription = await site.subscribe()
    consumer.deliver(0)
    (held,) = await take(subscription, 1)

    async def give_back(_: Sequence[Delivery]) -> None:
        assert list(await subscription.settle([(held, Retry(counts=False))])) == [None]

    site.on_lost = give_back
    await consumer.revoke()
    assert consumer.note().runs == [Run(0, 1, 1, 1)]
    await subscription.close()


@in_virtual_time
async def test_nothing_is_read_before_it_is_written_that_we_are_at_work(consumer: FakeConsumer) -> None:
    """A crash in between would leave no suspect."""
    left_behind(consumer, 0, Note(drained=True, upto=0), end=1)
    may_write, writing = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        writing.set()
        await may_write.wait()

    consumer.on_commit = slow
    joining = asyncio.create_task(Site(consumer).subscribe())
    await writing.wait()
    subscription = await joining
    await subscription._keep_alive()
    assert consumer.resumed == []
    assert consumer.note().drained
    may_write.set()
    consumer.deliver(0)
    await take(subscription, 1)
    assert consumer.resumed == [HERE]
    assert not consumer.note().drained
    await subscription.close()


@in_virtual_time
async def test_an_unforeseen_error_of_a_commit_ends_the_subscription_in_words(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = Site(consumer)
    subscription = await site.subscribe()
    consumer.deliver(0)
    (held,) = await take(subscription, 1)
    receiving = asyncio.create_task(subscription.receive(1))

    def broken(*_: object, **__: object) -> None:
        message = "unforeseen"
        raise ValueError(message)

    with monkeypatch.context() as patch:
        patch.setattr(Partition, "note", broken)
        await subscription.settle([(held, ACK)])
        with pytest.raises(ConnectionLost, match="unforeseen"):
            await asyncio.wait_for(receiving, 10)
        with pytest.raises(ConnectionLost):
            await subscription.receive(1)
        await subscription.close()
    assert consumer.stopped


@in_virtual_time
async def test_an_unforeseen_error_of_the_last_commit_keeps_nobody_from_leaving_the_group(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    subscription = await Site(consumer).subscribe()

    def broken(*_: object, **__: object) -> None:
        message = "unforeseen"
        raise ValueError(message)

    monkeypatch.setattr(Partition, "note", broken)
    await subscription.close()
    assert consumer.stopped
    assert "unforeseen" in caplog.text


@in_virtual_time
async def test_an_unforeseen_error_while_notes_are_read_ends_the_subscription_in_words(
    consumer: FakeConsumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        message = "unforeseen"
        raise ValueError(message)

    monkeypatch.setattr(Partition, "adopt", broken)
    with pytest.raises(ConnectionLost, match="unforeseen"):
        await Site(consumer).subscribe()
    assert consumer.stopped
