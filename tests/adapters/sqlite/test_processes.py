"""Members in processes of their own, killed and frozen."""
# ruff: noqa: ASYNC110 - another process tells no event

import asyncio
import gc
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK
from tests.adapters.sqlite.process import PATIENCE, Process

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
Connect = Callable[..., Awaitable[SqliteAdapter]]
Start = Callable[..., Awaitable[Process]]


@pytest.fixture
async def start(path: Path) -> AsyncIterator[Start]:
    processes: list[Process] = []

    async def make(order: Order = "none", lease: float = 30.0) -> Process:
        processes.append(await Process.start(f"sqlite:///{path}?lease={lease}", order))
        return processes[-1]

    yield make
    for process in processes:
        await process.kill()


async def ignore(deliveries: object, seconds: float) -> None:
    """Lose nothing that matters to the test."""


async def subscribe(adapter: SqliteAdapter, order: Order = "none") -> SqliteSubscription:
    return await adapter.subscribe(INLET, order=order, start="earliest", prefetch=32, on_lost=ignore)


async def send(adapter: SqliteAdapter, *bodies: str, key: bytes | None = b"k") -> None:
    outcomes = await adapter.send(CHANNEL, [Message(body=body.encode(), key=key) for body in bodies])
    assert list(outcomes) == [None] * len(bodies)


async def take(subscription: SqliteSubscription, number: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(PATIENCE):
        while len(taken) < number:
            taken += await subscription.receive(number - len(taken))
    return taken


@pytest.mark.parametrize("order", ["none", "key"])
async def test_what_a_killed_process_held_is_handed_out_long_before_its_lease_ends(
    connect: Connect, start: Start, order: Order
) -> None:
    adapter = await connect(lease=30)
    process = await start(order)
    await send(adapter, "1", "2")
    assert (await process.ask("take", limit=2))[1] == ["1", "2"]
    subscription = await subscribe(adapter, order)
    receiving = asyncio.create_task(take(subscription, 2))
    await process.kill()
    killed = time.monotonic()
    taken = await receiving
    assert time.monotonic() - killed < 1.0
    assert [(d.message.body, d.arrivals, d.returns) for d in taken] == [(b"1", 2, 0), (b"2", 2, 0)]


async def test_two_deaths_make_a_suspect(connect: Connect, start: Start) -> None:
    adapter = await connect(lease=30)
    await (first := await start()).ask("lost")
    await send(adapter, "poison")
    await first.ask("take", limit=1)
    await first.kill()
    second = await start()
    await second.ask("take", limit=1)
    await second.kill()
    (delivery,) = await take(await subscribe(adapter), 1)
    assert delivery.suspect


async def test_a_frozen_member_loses_what_it_holds_is_told_so_and_joins_again(
    connect: Connect, start: Start, path: Path
) -> None:
    adapter = await connect(lease=0.6)
    frozen = await start(lease=0.6)
    await send(adapter, "1", "2")
    await frozen.ask("take", limit=2)
    frozen.freeze()
    subscription = await subscribe(adapter)
    taken = await take(subscription, 2)
    assert [(d.message.body, d.arrivals, d.returns) for d in taken] == [(b"1", 2, 0), (b"2", 2, 0)]
    frozen.thaw()
    assert await frozen.ask("ack") == ["stale", "stale"]
    frozen.tell("take", limit=1)
    await send(adapter, "3", "4")
    assert len((await frozen.answer())[1]) == 1
    assert sorted(await frozen.ask("lost")) == ["1", "2"]
    assert await frozen.ask("ack") == [None]
    assert list(await subscription.settle([(delivery, ACK) for delivery in taken])) == [None, None]


async def test_a_waiting_process_wakes_within_50_ms_of_a_commit_by_another(
    connect: Connect, start: Start
) -> None:
    adapter = await connect()
    process = await start()
    latencies: list[float] = []
    for number in range(20):
        process.tell("take", limit=1)
        await eventually_waiting(adapter)
        await send(adapter, str(number))
        sent = time.monotonic()
        latencies.append((await process.answer())[0] - sent)
        await process.ask("ack")
    assert statistics.median(latencies) < 0.05


async def eventually_waiting(adapter: SqliteAdapter) -> None:
    """Wait until the only member has noted in the file that it waits."""
    assert adapter._session is not None
    async with asyncio.timeout(PATIENCE):
        while not await adapter._session.writer.read(
            lambda tx: tx.execute("SELECT count(*) FROM member WHERE waiting = 1").fetchone()[0]
        ):
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("order", ["none", "key"])
async def test_killed_workers_lose_nothing_and_keep_the_order_of_each_key(
    connect: Connect, start: Start, tmp_path: Path, order: Order
) -> None:
    adapter = await connect()
    await subscribe_and_leave(adapter, order)
    ledger = tmp_path / "ledger"
    ledger.touch()
    workers = [await start(order) for _ in range(3)]
    for worker in workers:
        await worker.ask("work", ledger=str(ledger))
    keys = [f"k{number}" for number in range(40)]
    for number in range(1, 61):
        messages = [Message(body=f"{key} {number}".encode(), key=key.encode()) for key in keys]
        assert not any(await adapter.send(CHANNEL, messages))
        if number % 10 == 5:
            await workers.pop(0).kill()
            workers.append(await start(order))
            await workers[-1].ask("work", ledger=str(ledger))
    wanted = {f"{key} {number}" for key in keys for number in range(1, 61)}
    async with asyncio.timeout(PATIENCE):
        while not wanted <= set(lines := ledger.read_text().splitlines()):
            await asyncio.sleep(0.05)
    assert set(lines) == wanted
    if order == "key":
        for key in keys:
            first_times = list(dict.fromkeys(line for line in lines if line.startswith(f"{key} ")))
            assert first_times == [f"{key} {number}" for number in range(1, 61)]


async def subscribe_and_leave(adapter: SqliteAdapter, order: Order) -> None:
    subscription = await subscribe(adapter, order)
    await subscription.close()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # what was never closed says so
def test_a_loop_that_ends_without_closing_its_adapter_gives_everything_back(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'broker.db'}?lease=5"
    at = Address("orders", "billing", "inlet")

    async def lost(deliveries: Sequence[Delivery], seconds: float) -> None:
        return

    async def dies() -> None:
        adapter = SqliteAdapter(url)
        await adapter.connect()
        await adapter.send(Address("orders"), [Message(body=b"1")])
        subscription = await adapter.subscribe(at, order="none", start="earliest", prefetch=1, on_lost=lost)
        assert len(await subscription.receive(1)) == 1
        message = "the program ends by an error"
        raise RuntimeError(message)

    async def heir() -> None:
        adapter = SqliteAdapter(url)
        await adapter.connect()
        subscription = await adapter.subscribe(at, order="none", start="earliest", prefetch=1, on_lost=lost)
        async with asyncio.timeout(20):
            assert len(await subscription.receive(1)) == 1
        await adapter.close()

    with pytest.raises(RuntimeError, match="ends by an error"):
        asyncio.run(dies())
    asyncio.run(heir())
    gc.collect()  # here, and not in the middle of another test


async def test_after_the_death_of_its_only_member_a_group_can_change_its_order(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'broker.db'}?lease=30"
    only = await Process.start(url, "none")
    await only.kill()
    heir = await Process.start(url, "key")
    await heir.kill()


async def test_a_member_with_a_longer_lease_is_not_taken_for_dead_by_one_with_a_shorter(
    tmp_path: Path,
) -> None:
    path = tmp_path / "broker.db"
    told: asyncio.Queue[Sequence[Delivery]] = asyncio.Queue()

    async def lost(deliveries: Sequence[Delivery], seconds: float) -> None:
        await told.put(deliveries)

    slow, quick = SqliteAdapter(f"sqlite:///{path}?lease=6"), SqliteAdapter(f"sqlite:///{path}?lease=0.3")
    for adapter in (slow, quick):
        await adapter.connect()
    at = Address("orders", "billing", "inlet")
    held = await slow.subscribe(at, order="none", start="earliest", prefetch=1, on_lost=lost)
    await slow.send(Address("orders"), [Message(body=b"1")])
    (delivery,) = await held.receive(1)
    other = await quick.subscribe(at, order="none", start="earliest", prefetch=1, on_lost=lost)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.8):
            await other.receive(1)
    assert told.empty()
    assert await held.settle([(delivery, ACK)]) == [None]
    for adapter in (slow, quick):
        await adapter.close()
