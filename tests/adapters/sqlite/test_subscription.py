"""Receiving, settling, cancelling and closing through the adapter."""
# ruff: noqa: ASYNC222 - the child ends at once

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from brokerkit.adapter import Browses, Marks, Measures, Order, Provisions
from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.adapters.sqlite.database import Database
from brokerkit.adapters.sqlite.members import expire
from brokerkit.adapters.sqlite.subscription import SqliteSubscription
from brokerkit.clock import SYSTEM
from brokerkit.delivery import Delivery
from brokerkit.errors import Closed, ConfigurationError, NotFound, Stale, Unroutable, Unsupported
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")
DEAD = Address("orders", "billing", "dead")
Connect = Callable[..., Awaitable[SqliteAdapter]]


class Lost:
    """An `on_lost` that keeps what it is told."""

    def __init__(self) -> None:
        self.told: asyncio.Queue[tuple[Sequence[Delivery], float]] = asyncio.Queue()

    async def __call__(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        await self.told.put((deliveries, seconds))


async def subscribe(
    adapter: SqliteAdapter, at: Address = INLET, order: Order = "none", lost: Lost | None = None
) -> SqliteSubscription:
    return await adapter.subscribe(at, order=order, start="earliest", prefetch=32, on_lost=lost or Lost())


async def send(adapter: SqliteAdapter, *bodies: str, to: Address = CHANNEL, after: float = 0) -> None:
    messages = [Message(body=body.encode(), key=b"k") for body in bodies]
    assert list(await adapter.send(to, messages, after=after)) == [None] * len(bodies)


async def take(subscription: SqliteSubscription, number: int) -> list[Delivery]:
    taken: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(taken) < number:
            taken += await subscription.receive(number - len(taken))
    return taken


def texts(deliveries: Sequence[Delivery]) -> list[str]:
    return [delivery.message.body.decode() for delivery in deliveries]


async def test_the_optional_protocols_are_kept(connect: Connect) -> None:
    adapter = await connect()
    assert isinstance(adapter, Browses)
    assert isinstance(adapter, Measures)
    assert isinstance(adapter, Provisions)
    assert isinstance(await subscribe(adapter), Marks)


async def test_the_address_tells_where_the_row_is_stored_whatever_its_headers_say(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    forged = Message(body=b"forged", headers=(("bk-attempt", "9"), ("bk-group", "billing")))
    await adapter.send(CHANNEL, [forged])
    await adapter.send(INLET, [forged])
    found = await take(subscription, 2)
    assert {delivery.address for delivery in found} == {CHANNEL, INLET}
    await adapter.send(DEAD, [forged])
    (dead,) = await take(await subscribe(adapter, DEAD), 1)
    assert dead.address == DEAD


async def test_a_cancelled_receive_loses_nothing(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    for number in range(30):
        await send(adapter, str(number))
        receiving = asyncio.create_task(subscription.receive(1))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        receiving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await subscription.settle([(delivery, ACK) for delivery in await receiving])
    left = (await adapter.measure(INLET)).waiting + (await adapter.measure(INLET)).in_flight
    taken = await take(subscription, left)
    assert [delivery.arrivals for delivery in taken] == [1] * left


async def test_a_limit_smaller_than_what_a_cancelled_receive_claimed_leaves_the_rest(
    connect: Connect,
) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1", "2", "3")
    receiving = asyncio.create_task(subscription.receive(3))
    await asyncio.sleep(0)
    receiving.cancel()
    assert texts(await take(subscription, 1)) == ["1"]
    assert texts(await take(subscription, 2)) == ["2", "3"]


@pytest.mark.parametrize("order", ["none", "key"])
async def test_closing_returns_what_is_unsettled_to_others_as_polite_returns_in_order(
    connect: Connect, order: Order
) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter, order=order)
    await send(adapter, "1", "2", "3")
    held = await take(subscription, 2)
    await subscription.close()
    await subscription.close()
    assert await subscription.receive(1) == ()
    assert [type(outcome) for outcome in await subscription.settle([(held[0], ACK)])] == [Stale]
    again = await take(await subscribe(adapter, order=order), 3)
    assert [(d.message.body, d.arrivals, d.returns) for d in again] == [
        (b"1", 2, 1),
        (b"2", 2, 1),
        (b"3", 1, 0),
    ]


async def test_closing_ends_a_waiting_receive_at_once(connect: Connect) -> None:
    subscription = await subscribe(await connect())
    receiving = asyncio.create_task(subscription.receive(1))
    await asyncio.sleep(0.01)
    await subscription.close()
    assert await receiving == ()


async def test_closing_while_a_claim_is_under_way_returns_what_it_brings(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1")
    receiving = asyncio.create_task(subscription.receive(1))
    await asyncio.sleep(0)
    await subscription.close()
    got = await receiving
    assert texts([*got, *await take(await subscribe(adapter), 1 - len(got))]) == ["1"]


async def test_a_member_that_is_declared_dead_is_told_once_and_joins_again(connect: Connect) -> None:
    adapter = await connect()
    lost = Lost()
    subscription = await subscribe(adapter, lost=lost)
    await send(adapter, "1", "2")
    held = await take(subscription, 2)
    assert adapter._session is not None
    await adapter._session.writer.write(lambda tx: expire(tx, 1))
    assert [type(outcome) for outcome in await subscription.settle([(held[0], ACK)])] == [Stale]
    deliveries, seconds = await lost.told.get()
    assert (texts(deliveries), seconds) == (["2"], 0.0)
    again = await take(subscription, 2)
    assert texts(again) == ["1", "2"]
    assert list(await subscription.settle([(delivery, ACK) for delivery in again])) == [None, None]
    assert lost.told.empty()


async def test_a_blocked_event_loop_does_not_cost_the_lease(connect: Connect, path: Path) -> None:
    adapter = await connect(lease=0.3)
    lost = Lost()
    subscription = await subscribe(adapter, lost=lost)
    await send(adapter, "1")
    held = await take(subscription, 1)
    watching = threading.Thread(target=_watch, args=(path,))
    watching.start()
    watching.join()  # blocks this loop for three leases, while another adapter watches
    assert list(await subscription.settle([(held[0], ACK)])) == [None]
    assert lost.told.empty()


def _watch(path: Path) -> None:
    async def watch() -> None:
        other = SqliteAdapter(f"sqlite:///{path}?lease=0.3")
        await other.connect()
        subscription = await subscribe(other)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.9):
                await subscription.receive(1)
        await other.close()

    asyncio.run(watch())


async def test_adapters_of_several_threads_and_loops_share_a_file_without_doubles(
    connect: Connect, path: Path
) -> None:
    adapter = await connect()
    await (await subscribe(adapter)).close()
    seen: list[str] = []

    async def work() -> None:
        mine = SqliteAdapter(f"sqlite:///{path}")
        await mine.connect()
        subscription = await subscribe(mine)
        while len(seen) < 300:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    taken = await subscription.receive(10)
                    seen.extend(texts(taken))
                    assert not any(await subscription.settle([(delivery, ACK) for delivery in taken]))
        await mine.close()

    threads = [threading.Thread(target=lambda: asyncio.run(work())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(30):
        await send(adapter, *(f"{number}-{index}" for index in range(10)))
    await asyncio.gather(*(asyncio.to_thread(thread.join) for thread in threads))
    assert len(seen) == len(set(seen)) == 300


async def test_another_event_loop_is_refused(connect: Connect) -> None:
    adapter = await connect()
    with pytest.raises(Closed, match="another event loop"):
        await asyncio.to_thread(lambda: asyncio.run(_groups(adapter)))


async def _groups(adapter: SqliteAdapter) -> None:
    await adapter.groups()


async def test_a_delayed_copy_comes_not_early_and_soon_after_it_is_due(connect: Connect) -> None:
    adapter, other = await connect(), await connect()
    subscription = await subscribe(adapter)
    receiving = asyncio.create_task(subscription.receive(1))
    await asyncio.sleep(0.01)
    start = time.time()
    await send(other, "later", to=INLET, after=0.3)
    assert texts(await receiving) == ["later"]
    assert 0.3 <= time.time() - start < 0.5


async def test_an_earlier_due_time_by_the_same_adapter_is_heard_of_while_waiting(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "much later", to=INLET, after=3600)
    receiving = asyncio.create_task(subscription.receive(1))
    await asyncio.sleep(0.01)
    start = time.monotonic()
    await send(adapter, "soon", to=INLET, after=0.2)
    assert texts(await receiving) == ["soon"]
    assert time.monotonic() - start < 0.5


async def test_a_returned_delivery_comes_again_when_it_is_due(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1")
    (delivery,) = await take(subscription, 1)
    start = time.time()
    await subscription.settle([(delivery, Retry(after=0.2))])
    (again,) = await take(subscription, 1)
    assert time.time() - start >= 0.2
    assert (again.arrivals, again.returns, again.position) == (2, 1, delivery.position)


async def test_a_mark_is_there_for_the_next_owner(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1", "2")
    first, second = await take(subscription, 2)
    assert list(await subscription.mark([(first, b"\0seen"), (second, b"x")])) == [None, None]
    assert list(await subscription.mark([(second, None)])) == [None]
    await subscription.close()
    assert [delivery.mark for delivery in await take(await subscribe(adapter), 2)] == [b"\0seen", None]
    assert [type(outcome) for outcome in await subscription.mark([(first, None)])] == [Stale]


async def test_a_message_that_must_be_routed_needs_a_group(connect: Connect) -> None:
    adapter = await connect()
    (outcome,) = await adapter.send(CHANNEL, [Message(body=b"1")], must_route=True)
    assert isinstance(outcome, Unroutable)
    subscription = await subscribe(adapter)
    assert list(await adapter.send(CHANNEL, [Message(body=b"2")], must_route=True)) == [None]
    assert texts(await take(subscription, 1)) == ["2"]


async def test_a_place_of_an_unknown_group_is_not_found(connect: Connect) -> None:
    adapter = await connect()
    (outcome,) = await adapter.send(INLET, [Message(body=b"1")])
    assert isinstance(outcome, NotFound)
    with pytest.raises(NotFound):
        await adapter.measure(DEAD)


async def test_only_an_inlet_takes_a_delay(connect: Connect) -> None:
    with pytest.raises(Unsupported):
        await (await connect()).send(CHANNEL, [Message(body=b"1")], after=1)


async def test_browsing_follows_a_channel_without_taking(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1", "2", "3")
    page, cursor = await adapter.browse(CHANNEL, cursor=None, limit=2)
    assert texts(page) == ["1", "2"]
    page, cursor = await adapter.browse(CHANNEL, cursor=cursor, limit=2)
    assert texts(page) == ["3"]
    assert await adapter.browse(CHANNEL, cursor=cursor, limit=2) == ([], None)
    _, end = await adapter.browse(CHANNEL, cursor="end", limit=2)
    await send(adapter, "4")
    assert texts((await adapter.browse(CHANNEL, cursor=end, limit=2))[0]) == ["4"]
    assert texts(await take(subscription, 4)) == ["1", "2", "3", "4"]


async def test_measuring_tells_waiting_delayed_and_in_flight_apart(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    await send(adapter, "1", "2", "3")
    await send(adapter, "later", to=INLET, after=60)
    await send(adapter, "dead", to=DEAD)
    await take(subscription, 1)
    found = await adapter.measure(INLET)
    assert (found.waiting, found.delayed, found.in_flight) == (2, 1, 1)
    assert found.oldest is not None
    assert 0 <= found.oldest < 5
    assert (await adapter.measure(DEAD)).waiting == 1


async def test_provisioning_names_what_is_missing_and_creates_it(connect: Connect) -> None:
    adapter = await connect()
    wanted: list[tuple[Address, object, object]] = [(INLET, "latest", "key"), (CHANNEL, "earliest", "none")]
    assert await adapter.provision(wanted, create=False) == ["orders/billing/inlet", "orders"]  # type: ignore[arg-type]
    assert await adapter.groups() == []
    await adapter.provision(wanted, create=True)  # type: ignore[arg-type]
    assert await adapter.provision(wanted, create=False) == []  # type: ignore[arg-type]
    assert await adapter.groups() == [("orders", "billing")]


async def test_closing_an_adapter_returns_all_leaves_no_lock_files_and_is_idempotent(
    connect: Connect, path: Path
) -> None:
    adapter = await connect()
    await subscribe(adapter)
    await subscribe(adapter, DEAD)
    await asyncio.gather(adapter.close(), adapter.close())
    await adapter.close()
    assert sorted(file.name for file in path.parent.iterdir()) == ["events.db", "events.db.lock"]
    with pytest.raises(Closed):
        await adapter.measure(INLET)
    (outcome,) = await adapter.send(CHANNEL, [Message(body=b"1")])
    assert isinstance(outcome, Closed)


async def test_members_of_one_group_use_one_order_mode(connect: Connect) -> None:
    adapter = await connect()
    await subscribe(adapter, order="none")
    with pytest.raises(ConfigurationError, match="order"):
        await subscribe(adapter, order="key")


async def test_a_cancelled_subscribe_leaves_no_member_that_holds_messages(connect: Connect) -> None:
    adapter = await connect(lease=0.3)
    joining = asyncio.create_task(subscribe(adapter, order="key"))
    await asyncio.sleep(0)
    joining.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await joining
    subscription = await subscribe(adapter, order="key")
    messages = [Message(body=str(number).encode(), key=str(number).encode()) for number in range(200)]
    await adapter.send(CHANNEL, messages)
    assert len(await take(subscription, 200)) == 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_refuses_and_the_parent_goes_on(connect: Connect) -> None:
    adapter = await connect()
    subscription = await subscribe(adapter)
    child = os.fork()
    if child == 0:
        try:
            adapter._session.writer.read(lambda tx: None)  # type: ignore[union-attr]
        except Closed:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    await send(adapter, "1")
    assert texts(await take(subscription, 1)) == ["1"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
async def test_a_forked_child_is_refused_the_file_that_its_parent_had_open(connect: Connect) -> None:
    adapter = await connect()
    child = os.fork()
    if child == 0:
        try:
            Database(adapter._options.path, timeout=1, clock=SYSTEM).open()
        except ConfigurationError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    await send(adapter, "1")
