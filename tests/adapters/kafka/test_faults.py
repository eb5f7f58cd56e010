"""What goes wrong with a Kafka cluster, on real servers; the numbers are those of the fault list."""

# It looks into the client, which has no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.adapters.kafka.client import Committed, Fenced
from brokerkit.adapters.kafka.subscription import KafkaSubscription
from brokerkit.delivery import Delivery
from brokerkit.engine import Engine, Settings
from brokerkit.errors import ConnectionLost, PublishUnknown, SendError, Stale, TooLarge
from brokerkit.message import Address
from brokerkit.sandbox import Server
from brokerkit.settlement import ACK, Retry, Settlement
from tests.adapters.kafka.kit import connected, eventually, fresh, inlet, join, numbers, send, text
from tests.servers import Park, RealServer


@pytest.fixture(scope="module")
def server(park: Park) -> Iterator[Server]:
    """A server for these tests alone, to be stopped, killed and frozen."""
    with park.own("kafka") as server:
        yield server


class Field:
    """Members of one group with the engine over them, and who has handled what."""

    def __init__(self, url: str, channel: str, seconds: float) -> None:
        self.url = url
        self.channel = channel
        self.seconds = seconds
        self.handled: Counter[int] = Counter()
        self.begun: Counter[int] = Counter()
        self.running: list[tuple[KafkaAdapter, Engine]] = []

    async def add(self) -> None:
        """Let one more member join."""
        adapter = KafkaAdapter(self.url, session=6, heartbeat=0.1, drain=10, partitions=12)
        await adapter.connect()
        engine = Engine(
            adapter, self.channel, "g", self.handle, Settings(concurrency=64, prefetch=64, order="key")
        )
        await engine.start()
        self.running.append((adapter, engine))

    async def remove(self) -> None:
        """Let one leave in order."""
        adapter, engine = self.running.pop()
        await engine.stop(10)
        await adapter.close()

    async def goes_on(self, count: int) -> None:
        """Wait until so many more are handled."""
        wanted = min(len(self.handled) + count, 6_000)

        async def so_many() -> bool:
            return len(self.handled) >= wanted

        await eventually(so_many, f"{count} more are handled")

    async def handle(self, delivery: Delivery) -> Settlement:
        number = int(delivery.message.body)
        self.begun[number] += 1
        await asyncio.sleep(self.seconds * (1 + number % 10) / 10)
        self.handled[number] += 1
        return ACK


async def test_f16_members_that_come_and_go_under_load_lose_nothing_and_handle_nothing_twice(
    kafka_server: RealServer,
) -> None:
    channel, total = fresh(), 6_000
    field = Field(kafka_server.url, channel, 0.05)
    async with connected(kafka_server.url, partitions=12) as sender:

        async def publish() -> None:
            for first in range(0, total, 100):
                await send(
                    sender, Address(channel), [text(n, f"k{n % 100}") for n in range(first, first + 100)]
                )
                await asyncio.sleep(0.02)

        await field.add()
        publishing = asyncio.create_task(publish())
        try:
            for _ in range(3):
                await field.goes_on(300)
                await field.add()
            for _ in range(3):
                await field.goes_on(300)
                await field.remove()
            await publishing

            async def complete() -> bool:
                return len(field.handled) == total

            await eventually(complete, "all of them are handled")
        finally:
            publishing.cancel()
            while field.running:
                await field.remove()
    twice = [number for number, times in field.begun.items() if times > 1]
    assert (len(field.handled), twice) == (total, [])


async def test_f41_a_frozen_broker_leaves_a_publish_unknown_in_its_time_and_close_ends(
    server: Server,
) -> None:
    adapter = KafkaAdapter(server.url, session=6, send_timeout=1, request_timeout=1.5)
    await adapter.connect()
    channel = fresh()
    await send(adapter, Address(channel), [text("before")])
    member = await join(adapter, inlet(channel), 30)
    await member.take(1)
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(server.freeze)
    try:
        begin = loop.time()
        outcomes = await adapter.send(Address(channel), [text("1"), text("2")])
        assert [type(outcome) for outcome in outcomes] == [PublishUnknown, PublishUnknown]
        assert loop.time() - begin < 4
        (again,) = await adapter.send(Address(channel), [text("3")])
        assert isinstance(again, ConnectionLost | PublishUnknown)
        begin = loop.time()
        await adapter.close()
        assert loop.time() - begin < 15
    finally:
        await asyncio.to_thread(server.thaw)


async def until_confirmed(adapter: KafkaAdapter, channel: str, body: str) -> None:
    """Send until it is confirmed: a server that has just begun may know of no broker yet."""
    async with asyncio.timeout(60):
        while (outcome := (await adapter.send(Address(channel), [text(body)]))[0]) is not None:
            assert outcome.retryable, outcome


async def test_f41_a_publisher_that_waits_through_a_freeze_goes_on_by_itself(server: Server) -> None:
    channel = fresh()
    async with connected(server.url, send_timeout=2, request_timeout=2) as adapter:
        await until_confirmed(adapter, channel, "first")
        member = await join(adapter, inlet(channel), 30)
        confirmed: list[str] = ["first"]
        outcomes: list[SendError | None] = []
        await asyncio.to_thread(server.freeze)
        frozen = [asyncio.create_task(adapter.send(Address(channel), [text(f"f{n}")])) for n in range(20)]
        for task in frozen:
            outcomes += await task
        await asyncio.to_thread(server.thaw)
        assert all(isinstance(outcome, PublishUnknown | ConnectionLost) for outcome in outcomes)
        await until_confirmed(adapter, channel, "after")
        confirmed.append("after")
        seen: set[str] = set()
        while not seen >= set(confirmed):
            seen |= {each.message.body.decode() for each in await member.take(1, ack=True)}


async def test_f49_pauses_outlive_a_rebalance_and_end_when_the_last_reason_is_gone(
    kafka_server: RealServer,
) -> None:
    """Three reasons: its notes are not read yet, its rung holds all that it may, the owner asks for nothing."""
    channel = fresh()
    async with (
        connected(kafka_server.url, partitions=1, max_poll=1) as one,
        connected(kafka_server.url) as two,
    ):
        member = await join(one, inlet(channel), 30)
        subscription = member.subscription._subscription  # type: ignore[attr-defined]
        assert isinstance(subscription, KafkaSubscription)
        await one.send(inlet(channel), [text(n) for n in range(200)], after=600)

        consumer: Any = subscription._consumer
        client = consumer._consumer

        def full_rung() -> Any:
            return next((part for part in subscription._parts.values() if part.wait == 600), None)

        async def paused() -> bool:
            part = full_rung()
            return part is not None and part.held >= part.hold and part.tp in client.paused()

        await eventually(paused, "the rung is full and paused")
        generation = subscription._consumer.generation

        async def rebalanced() -> bool:
            return subscription._consumer.generation >= generation + 2 and await paused()

        other = await join(two, inlet(channel), 30)
        await other.close()
        await eventually(rebalanced, "it is so again after two rebalances")
        await send(one, Address(channel), [text(n) for n in range(2000)])
        assert client.paused() == {full_rung().tp}
        generation = subscription._consumer.generation
        await _longer_than_max_poll(subscription)
        part = full_rung()
        assert (subscription._consumer.generation, part.held >= part.hold) == (generation, True)
        assert client.paused() >= {part.tp}
        assert member.lost == []
        assert len(await member.take(2000, ack=True)) == 2000


async def test_f50_who_has_left_by_max_poll_interval_commits_nothing_and_is_told(
    kafka_server: RealServer,
) -> None:
    channel = fresh()
    async with (
        connected(kafka_server.url, partitions=1, max_poll=3600) as one,
        connected(kafka_server.url, partitions=1) as two,
    ):
        member = await join(one, inlet(channel), 30)
        await send(one, Address(channel), [text(n) for n in range(10)])
        held = await member.take(10)
        subscription: Any = member.subscription._subscription  # type: ignore[attr-defined]
        consumer: Any = subscription._consumer
        commits: list[Committed] = []
        real = consumer._coordinator._do_commit_offsets

        async def watched(assignment: object, offsets: dict[Any, Any]) -> None:
            commits.extend(offsets.values())
            await real(assignment, offsets)

        consumer._coordinator._do_commit_offsets = watched
        await eventually(lambda: _is_quiet(subscription), "what it has said is written")
        commits.clear()
        # what aiokafka does when nobody has polled for too long
        await consumer._coordinator._maybe_leave_group()
        assert (
            list(map(type, await member.subscription.settle([(each, ACK) for each in held]))) == [Stale] * 10
        )
        assert commits == []
        async with asyncio.timeout(10):
            await member.told.wait()
        assert member.lost == held
        heir = await join(two, inlet(channel), 30)
        again = await heir.some(3)
        again += await member.some(1)
        assert sorted(numbers(again)) == list(range(10))


async def test_f50_no_commit_carries_another_generation_than_its_own(kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, partitions=1) as adapter:
        member = await join(adapter, inlet(channel), 30)
        await send(adapter, Address(channel), [text(n) for n in range(3)])
        await member.take(3)
        subscription: Any = member.subscription._subscription  # type: ignore[attr-defined]
        await eventually(lambda: _is_quiet(subscription), "what it has said is written")
        before = await adapter._admin.committed(f"{channel}--g")
        for wrong in (subscription._consumer.generation - 1, subscription._consumer.generation + 1, -1):
            with pytest.raises(Fenced):
                await subscription._consumer.commit({(channel, 0): Committed(3, "")}, wrong)
        assert await adapter._admin.committed(f"{channel}--g") == before


async def _longer_than_max_poll(subscription: Any) -> None:
    """Wait until the owner has asked for nothing for longer than the client allows: it asks three times in that time itself."""
    kept: list[None] = []
    real = subscription._keep_alive

    async def counted() -> None:
        await real()
        kept.append(None)

    subscription._keep_alive = counted

    async def often_enough() -> bool:
        return len(kept) > 4

    await eventually(often_enough, "it has asked five times by itself")


async def _is_quiet(subscription: Any) -> bool:
    return not subscription._committer._dirty and subscription._committer._task is None


async def test_a_handler_longer_than_max_poll_interval_causes_no_rebalance(kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, max_poll=1, partitions=2) as adapter:
        release = asyncio.Event()
        done: list[int] = []
        ended = asyncio.Event()

        async def handle(delivery: Delivery) -> Settlement:
            await release.wait()
            done.append(int(delivery.message.body))
            return ACK

        def on_end(_: int) -> None:
            if len(done) == 3000:
                ended.set()

        engine = Engine(
            adapter,
            channel,
            "g",
            handle,
            Settings(concurrency=2, prefetch=4, hold_limit=0),
            on_end=on_end,
        )
        await engine.start()
        (subscription,) = adapter._subscriptions
        await eventually(lambda: _is_member(subscription), "it has joined")
        generation = subscription._consumer.generation
        await send(adapter, Address(channel), [text(n) for n in range(3000)])
        await _longer_than_max_poll(subscription)
        release.set()
        async with asyncio.timeout(30):
            await ended.wait()
        assert subscription._consumer.generation == generation
        assert sorted(done) == list(range(3000))
        await engine.stop(5)


async def _is_member(subscription: KafkaSubscription) -> bool:
    return subscription._consumer.generation > 0


async def test_a_slow_head_keeps_the_commit_at_the_head_while_64_others_end(kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, partitions=1) as adapter:
        member = await join(adapter, inlet(channel), 30)
        await send(adapter, Address(channel), [text(n) for n in range(65)])
        taken = await member.take(65)
        await member.ack(taken[1:])

        async def committed() -> int:
            found = await adapter._admin.committed(f"{channel}--g")
            return found[channel, 0].offset

        subscription: Any = member.subscription._subscription  # type: ignore[attr-defined]
        await eventually(lambda: _is_quiet(subscription), "what it has said is written")
        assert await committed() == 0
        await member.close()
        heir = await join(adapter, inlet(channel), 30)
        assert numbers(await heir.take(1, ack=True)) == [0]
        await heir.nothing(0.5)
        subscription = heir.subscription._subscription  # type: ignore[attr-defined]
        await eventually(lambda: _is_quiet(subscription), "what it has said is written")
        assert await committed() == 65


async def test_an_oversize_message_harms_none_of_those_around_it(kafka_server: RealServer) -> None:
    """Refused before the wire, and also where the topic's limit has been lowered behind our back."""
    channel = fresh()
    async with connected(kafka_server.url, partitions=1) as adapter:
        member = await join(adapter, inlet(channel), 30)
        large = text("x" * 1_200_000)
        (outcome,) = await adapter.send(Address(channel), [large])
        assert isinstance(outcome, TooLarge)
        await adapter._topics.info(channel)
        adapter._topics._infos[channel] = (await adapter._topics.info(channel))._replace(
            max_message=10_000_000
        )
        object.__setattr__(adapter.capabilities, "max_message", 10_000_000)
        tasks = [asyncio.create_task(adapter.send(Address(channel), [large]))]
        for n in range(100):
            tasks.append(asyncio.create_task(adapter.send(Address(channel), [text(n)])))
            await asyncio.sleep(0)
        outcomes = [outcome for each in await asyncio.gather(*tasks) for outcome in each]
        assert isinstance(outcomes[0], TooLarge)
        assert outcomes[1:] == [None] * 100
        assert sorted(set(numbers(await member.take(100, ack=True)))) == list(range(100))


async def test_an_uncounted_return_never_moves_the_commit_back(kafka_server: RealServer) -> None:
    channel = fresh()
    async with connected(kafka_server.url, partitions=1) as adapter:
        member = await join(adapter, inlet(channel), 30)
        await send(adapter, Address(channel), [text(n) for n in range(20)])
        taken = await member.take(20)
        settled: Sequence[Any] = [
            (each, Retry(after=0.3, counts=False) if number == 5 else ACK)
            for number, each in enumerate(taken)
        ]
        assert list(await member.subscription.settle(settled)) == [None] * 20
        assert numbers(await member.take(1, ack=True)) == [5]
        await member.nothing(0.3)
        await member.close()
        heir = await join(adapter, inlet(channel), 30)
        await heir.nothing(0.5)


@pytest.mark.parametrize("kind", ["stop", "kill"])
async def test_a_restart_of_the_broker_loses_nothing_that_was_confirmed_and_brings_what_waits(
    server: Server, kind: str
) -> None:
    channel = fresh()
    confirmed: set[int] = set()
    early: list[float] = []
    due: dict[int, float] = {}
    loop = asyncio.get_running_loop()
    async with connected(server.url, send_timeout=20, request_timeout=5) as adapter:
        handled: Counter[int] = Counter()

        async def handle(delivery: Delivery) -> Settlement:
            number = int(delivery.message.body)
            if number in due and loop.time() < due[number] - 0.005:
                early.append(due[number] - loop.time())
            handled[number] += 1
            return ACK

        engine = Engine(adapter, channel, "g", handle, Settings(concurrency=16, prefetch=64))
        await engine.start()
        for number in range(10_000, 10_100):
            due[number] = loop.time() + 6.3
        assert not any(await adapter.send(inlet(channel), [text(n) for n in due], after=6.3))
        stop = asyncio.Event()

        async def publish() -> None:
            number = 0
            while not stop.is_set():
                (outcome,) = await adapter.send(Address(channel), [text(number)])
                if outcome is None:
                    confirmed.add(number)
                else:
                    assert outcome.retryable, outcome
                number += 1
                await asyncio.sleep(0.005)

        async def confirms(count: int) -> None:
            async def enough() -> bool:
                return len(confirmed) >= count

            await eventually(enough, f"{count} are confirmed")

        publishing = asyncio.create_task(publish())
        await confirms(20)
        await asyncio.to_thread(getattr(server, kind))
        await asyncio.to_thread(server.start)
        await confirms(len(confirmed) + 20)
        stop.set()
        await publishing

        async def complete() -> bool:
            return handled.keys() >= confirmed | due.keys()

        await eventually(complete, "all that was confirmed is handled")
        await engine.stop(5)
    assert early == []
    twice = sum(times > 1 for times in handled.values())
    print(f"{kind}: {len(confirmed)} confirmed, {twice} twice")
    assert twice <= 64
