import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import pytest

from brokerkit.adapter import Browses, Marks, Measures, Order, Provisions, Subscription
from brokerkit.adapters.memory import MemoryAdapter, forget
from brokerkit.delivery import Delivery
from brokerkit.errors import (
    Closed,
    ConfigurationError,
    ConnectionLost,
    NotFound,
    PublishUnknown,
    Stale,
    Throttled,
    Unavailable,
    Unsupported,
)
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from brokerkit.testing import run_virtual

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
DEAD = Address("orders", "billing", "dead")


@dataclass
class Lost:
    deliveries: list[Delivery] = field(default_factory=list[Delivery])

    async def __call__(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        assert seconds == 0
        self.deliveries.extend(deliveries)


def made(*bodies: str, key: bytes | None = None) -> list[Message]:
    return [Message(body=body.encode(), key=key) for body in bodies]


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.body.decode() for delivery in deliveries]


async def opened(url: str = "memory://", *, lease: float | None = None) -> MemoryAdapter:
    adapter = MemoryAdapter(url, lease=lease)
    await adapter.connect()
    return adapter


async def joined(
    adapter: MemoryAdapter, at: Address = INLET, *, order: Order = "none", lost: Lost | None = None
) -> Subscription:
    return await adapter.subscribe(at, order=order, start="earliest", prefetch=10, on_lost=lost or Lost())


@pytest.fixture
async def adapter() -> AsyncIterator[MemoryAdapter]:
    adapter = await opened()
    yield adapter
    await adapter.close()


def test_it_is_what_it_claims_to_be() -> None:
    adapter = MemoryAdapter("memory://")
    assert isinstance(adapter, Browses)
    assert isinstance(adapter, Measures)
    assert isinstance(adapter, Provisions)


async def test_its_subscriptions_keep_marks(adapter: MemoryAdapter) -> None:
    assert isinstance(await joined(adapter), Marks)


async def test_without_a_name_nothing_is_shared_and_with_one_everything() -> None:
    one, two = await opened(), await opened()
    await joined(one)
    assert list(await two.groups()) == []
    three, four = await opened("memory://shared"), await opened("memory://shared")
    await joined(three)
    assert list(await four.groups()) == [("orders", "billing")]
    forget("shared")
    assert list(await (await opened("memory://shared")).groups()) == []
    forget("shared")


@pytest.mark.parametrize(
    "url",
    [
        "memory://x?leese=1",
        "memory://x?lease=soon",
        "memory://x?lease=0",
        "memory://x?max_message=-1",
        "redis://x",
    ],
)
def test_a_wrong_url_is_refused_before_anything_moves(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"leese|lease|max_message|redis"):
        MemoryAdapter(url)


async def test_an_adapter_works_between_connect_and_close_only() -> None:
    adapter = MemoryAdapter("memory://")
    assert [type(outcome) for outcome in await adapter.send(CHANNEL, made("1"))] == [Closed]
    await adapter.connect()
    await adapter.close()
    with pytest.raises(Closed):
        await adapter.connect()


async def test_members_of_one_group_agree_on_the_order_mode(adapter: MemoryAdapter) -> None:
    member = await joined(adapter, order="key")
    with pytest.raises(ConfigurationError, match="order"):
        await joined(adapter, order="none")
    await adapter.send(CHANNEL, made("1", "2", key=b"k"))
    await member.close()
    assert bodies(await (await joined(adapter, order="none")).receive(10)) == ["1", "2"]


async def test_only_an_inlet_can_delay(adapter: MemoryAdapter) -> None:
    await joined(adapter)
    for at in (CHANNEL, DEAD):
        with pytest.raises(Unsupported, match="inlet"):
            await adapter.send(at, made("1"), after=1)


async def test_places_of_an_unknown_group_are_not_found(adapter: MemoryAdapter) -> None:
    for at in (INLET, DEAD):
        assert [type(outcome) for outcome in await adapter.send(at, made("1"))] == [NotFound]
        with pytest.raises(NotFound):
            await adapter.measure(at)


def test_due_times_follow_the_loop_that_runs() -> None:
    async def main() -> float:
        adapter = await opened()
        member = await joined(adapter)
        await adapter.send(INLET, made("1"), after=43_200)
        assert bodies(await member.receive(1)) == ["1"]
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 43_200.0


def test_after_seven_days_nothing_is_kept() -> None:
    async def main() -> None:
        adapter = await opened()
        member = await joined(adapter)
        await adapter.send(CHANNEL, made("1", "2"))
        (held,) = await member.receive(1)
        await asyncio.sleep(8 * 24 * 3600)
        await adapter.send(CHANNEL, made("new"))
        assert list(await member.settle([(held, ACK)])) == [None]
        assert bodies(await member.receive(10)) == ["new"]
        page, _ = await adapter.browse(CHANNEL, cursor=None, limit=10)
        assert bodies(page) == ["new"]

    run_virtual(main())


async def test_what_all_groups_have_acked_is_kept_no_longer(adapter: MemoryAdapter) -> None:
    members = [await joined(adapter, Address("orders", group, "inlet")) for group in ("one", "two")]
    await adapter.send(CHANNEL, made("1"))
    for member, left in zip(members, (1, 0), strict=True):
        await member.settle([(delivery, ACK) for delivery in await member.receive(1)])
        page, _ = await adapter.browse(CHANNEL, cursor=None, limit=10)
        assert len(page) == left


async def test_two_busy_members_on_one_loop_both_get_their_turn(adapter: MemoryAdapter) -> None:
    members = [await joined(adapter), await joined(adapter)]
    await adapter.send(CHANNEL, made(*(str(number) for number in range(100))))
    counts = [0, 0]
    empty = asyncio.Event()

    async def consume(index: int) -> None:
        while batch := await members[index].receive(1):
            counts[index] += len(batch)
            if sum(counts) == 100:
                empty.set()

    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(consume(0))
        group.create_task(consume(1))
        await empty.wait()
        for member in members:
            await member.close()
    assert min(counts) > 30


async def test_a_cancelled_receive_passes_its_wake_up_on(adapter: MemoryAdapter) -> None:
    gives_up, stays = await joined(adapter), await joined(adapter)
    first = asyncio.create_task(_receive(gives_up))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(_receive(stays))
    await asyncio.sleep(0.01)
    await adapter.send(CHANNEL, made("1"))
    first.cancel()
    async with asyncio.timeout(5):
        assert await second == ["1"]
    assert first.cancelled()


class TestLevers:
    @pytest.mark.parametrize("order", ["none", "key"])
    async def test_an_expired_delivery_goes_to_somebody_else(
        self, adapter: MemoryAdapter, order: Order
    ) -> None:
        lost = Lost()
        loser = await joined(adapter, order=order, lost=lost)
        await adapter.send(CHANNEL, made("1", key=b"k"))
        (old,) = await loser.receive(1)
        other = await joined(adapter, order=order)
        adapter.broker.expire(old)
        (new,) = await other.receive(1)
        assert (new.arrivals, new.returns) == (2, 0)
        (outcome,) = await loser.settle([(old, ACK)])
        assert isinstance(outcome, Stale)
        assert lost.deliveries == [old]
        assert list(await other.settle([(new, ACK)])) == [None]
        with pytest.raises(ValueError, match="nobody"):
            adapter.broker.expire(new)

    async def test_a_cut_connection_is_typed_and_subscribing_again_works(
        self, adapter: MemoryAdapter
    ) -> None:
        lost = Lost()
        member = await joined(adapter, lost=lost)
        await adapter.send(CHANNEL, made("1", "2"))
        (old,) = await member.receive(1)
        waiting = asyncio.create_task(_until_it_raises(member))
        await asyncio.sleep(0)
        adapter.broker.disconnect()
        assert isinstance(await waiting, ConnectionLost)
        assert lost.deliveries[0] is old
        (outcome,) = await member.settle([(old, ACK)])
        assert isinstance(outcome, Stale)
        again = await (await joined(adapter)).receive(10)
        assert bodies(again) == ["1", "2"]
        await member.close()
        assert list(await member.receive(1)) == []

    async def test_while_the_broker_is_stopped_everything_is_refused_and_nothing_forgotten(self) -> None:
        adapter = await opened()
        await joined(adapter)
        await adapter.send(CHANNEL, made("1"))
        adapter.broker.stop()
        assert [type(outcome) for outcome in await adapter.send(CHANNEL, made("2"))] == [ConnectionLost]
        with pytest.raises(ConnectionLost):
            await joined(adapter)
        with pytest.raises(ConnectionLost):
            await adapter.connect()
        adapter.broker.start()
        assert bodies(await (await joined(adapter)).receive(10)) == ["1"]

    async def test_the_next_sends_are_refused_one_by_one(self, adapter: MemoryAdapter) -> None:
        member = await joined(adapter)
        adapter.broker.refuse(2, Throttled("slower"))
        adapter.broker.refuse(1, PublishUnknown("who knows"), stored=True)
        outcomes = await adapter.send(CHANNEL, made("1", "2", "3", "4"))
        assert [type(outcome) for outcome in outcomes] == [Throttled, Throttled, PublishUnknown, type(None)]
        assert bodies(await member.receive(10)) == ["3", "4"]

    async def test_the_next_settlements_are_refused_and_can_be_tried_again(
        self, adapter: MemoryAdapter
    ) -> None:
        member = await joined(adapter)
        await adapter.send(CHANNEL, made("1", "2"))
        settled = [(delivery, ACK) for delivery in await member.receive(2)]
        adapter.broker.refuse_settlements(1)
        first, second = await member.settle(settled)
        assert (type(first), second) == (Unavailable, None)
        assert list(await member.settle(settled[:1])) == [None]

    async def test_a_frozen_broker_answers_when_it_is_thawed_and_close_needs_no_answer(self) -> None:
        adapter = await opened()
        member, closing = await joined(adapter), await joined(adapter)
        adapter.broker.freeze()
        sending = asyncio.create_task(_send(adapter))
        receiving = asyncio.create_task(_receive(member))
        await asyncio.sleep(0.02)
        assert not sending.done()
        assert not receiving.done()
        await closing.close()
        assert list(await closing.receive(1)) == []
        adapter.broker.thaw()
        assert await sending == [None]
        assert await receiving == ["1"]

    def test_a_frozen_process_loses_what_it_holds_after_the_lease_and_learns_it_when_it_wakes(self) -> None:
        async def main() -> None:
            sleeper, other = (
                await opened("memory://frozen", lease=30),
                await opened("memory://frozen", lease=30),
            )
            lost = Lost()
            asleep = await joined(sleeper, lost=lost)
            awake = await joined(other)
            await other.send(CHANNEL, made("1", "2"))
            held = await asleep.receive(1)
            assert bodies(held) == ["1"]
            sleeper.freeze()
            assert bodies(await awake.receive(1)) == ["2"]
            begin = asyncio.get_running_loop().time()
            assert bodies(await awake.receive(1)) == ["1"]
            assert 20 <= asyncio.get_running_loop().time() - begin <= 40
            settling = asyncio.create_task(_settle(asleep, held))
            sleeper.thaw()
            assert await settling == [Stale]
            assert lost.deliveries == list(held)
            await other.send(CHANNEL, made("3"))
            await awake.close()
            assert sorted(bodies(await asleep.receive(10))) == ["1", "2", "3"]
            await sleeper.close()
            await other.close()

        try:
            run_virtual(main())
        finally:
            forget("frozen")

    def test_a_member_that_renews_keeps_its_lease_for_days(self) -> None:
        async def main() -> None:
            one, two = await opened("memory://renewed", lease=30), await opened("memory://renewed", lease=30)
            holder, other = await joined(one), await joined(two)
            await one.send(CHANNEL, made("1"))
            held = await holder.receive(1)
            waiting = asyncio.create_task(_receive(other))
            await asyncio.sleep(48 * 3600)
            assert not waiting.done()
            assert list(await holder.settle([(delivery, Retry()) for delivery in held])) == [None]
            assert await waiting == ["1"]
            await one.close()
            await two.close()

        try:
            run_virtual(main())
        finally:
            forget("renewed")


class TestThreads:
    async def test_eight_threads_publish_and_nothing_is_lost(self) -> None:
        adapter = await opened("memory://threads")
        member = await joined(adapter)

        def publish(thread: int) -> None:
            async def main() -> None:
                mine = await opened("memory://threads")
                for number in range(100):
                    assert list(await mine.send(CHANNEL, made(f"{thread}-{number}"))) == [None]
                await mine.close()

            asyncio.run(main())

        threads = [threading.Thread(target=publish, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        taken: list[str] = []
        async with asyncio.timeout(10):
            while len(taken) < 800:
                batch = await member.receive(13)
                taken += bodies(batch)
                await member.settle([(delivery, ACK) for delivery in batch])
        for thread in threads:
            thread.join()
        assert len(set(taken)) == 800
        await adapter.close()
        forget("threads")

    @pytest.mark.parametrize("order", ["none", "key"])
    def test_a_member_whose_loop_is_gone_holds_nothing_back(self, order: Order) -> None:
        async def leave_it_behind() -> None:
            adapter = await opened("memory://gone")
            member = await joined(adapter, order=order)
            await adapter.send(CHANNEL, made("1", "2", key=b"k"))
            await member.receive(1)

        async def find_it() -> list[str]:
            adapter = await opened("memory://gone")
            await adapter.send(CHANNEL, made("3", key=b"k"))
            return bodies(await (await joined(adapter, order=order)).receive(10))

        asyncio.run(leave_it_behind())
        assert asyncio.run(find_it()) == ["1", "2", "3"]
        forget("gone")


async def _until_it_raises(member: Subscription) -> Exception:
    try:
        while True:
            await member.receive(1)
    except ConnectionLost as error:
        return error


async def _send(adapter: MemoryAdapter) -> list[object]:
    return list(await adapter.send(CHANNEL, made("1")))


async def _receive(member: Subscription) -> list[str]:
    return bodies(await member.receive(1))


async def _settle(member: Subscription, held: Sequence[Delivery]) -> list[type]:
    return [type(outcome) for outcome in await member.settle([(delivery, ACK) for delivery in held])]
