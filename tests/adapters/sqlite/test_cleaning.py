"""Deleting what nobody needs, and nothing else."""
# ruff: noqa: ASYNC110, ASYNC240 - cleaning tells no event; a stat of a small file blocks nobody

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from brokerkit.adapters.sqlite import SqliteAdapter, cleaning, log
from brokerkit.adapters.sqlite.cleaner import Cleaner
from brokerkit.adapters.sqlite.row import row_of
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from tests.adapters.sqlite.store import Store, bodies

Connect = Callable[..., Awaitable[SqliteAdapter]]
OpenStore = Callable[..., Store]


def stored(store: Store) -> list[str]:
    rows = store.do(lambda tx: tx.execute("SELECT body FROM message ORDER BY seq").fetchall())
    return [body.decode() for (body,) in rows]


def clean(store: Store) -> None:
    start: int | None = 0
    while start is not None:
        start = store.do(partial(cleaning.delete_done, channel=store.place.channel, start=start))


def expire(store: Store, age: float, dead_age: float = float("inf")) -> dict[str, int]:
    now = store.clock.now
    _, lost = store.do(lambda tx: cleaning.delete_expired(tx, store.place.channel, now - age, now - dead_age))
    return lost


@pytest.mark.parametrize("order", ["none", "key"])
def test_what_is_done_is_deleted_and_one_stuck_message_stays_alone(open_store: OpenStore, order: str) -> None:
    store = open_store(order)
    member = store.join()
    store.publish(*((f"k{number}", str(number)) for number in range(2500)))
    rows = [row for _ in range(3) for row in store.claim(member, 1000)]
    stuck = rows.pop(7)
    store.end(member, rows)
    clean(store)
    assert stored(store) == [stuck.body.decode()]
    store.end(member, [stuck])
    clean(store)
    assert stored(store) == []


@pytest.mark.parametrize("order", ["none", "key"])
def test_what_a_group_has_not_read_stays(open_store: OpenStore, order: str) -> None:
    store = open_store(order)
    member = store.join()
    store.publish(*((f"k{number}", str(number)) for number in range(10)))
    store.end(member, store.claim(member, 4))
    clean(store)
    assert stored(store) == [str(number) for number in range(4, 10)]


def test_a_channel_without_groups_keeps_its_messages_until_they_are_too_old(open_store: OpenStore) -> None:
    store = open_store()
    store.do(lambda tx: tx.execute("DELETE FROM place"))
    store.publish((None, "1"))
    clean(store)
    assert stored(store) == ["1"]
    store.clock.now += 100
    expire(store, 99)
    assert stored(store) == []


def test_a_slot_without_messages_does_not_hold_the_log(open_store: OpenStore) -> None:
    store = open_store("key")
    first, second = store.join(), store.join()
    store.balance(first)
    store.balance(second)
    store.publish(*(("a", str(number)) for number in range(5)))
    for member in (first, second):
        store.end(member, store.claim(member))
    clean(store)
    assert stored(store) == []


def test_a_finished_copy_is_deleted_at_once(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.copy("a", "copy")
    store.end(member, store.claim(member))
    assert stored(store) == []


def test_what_is_too_old_is_deleted_except_what_somebody_has_in_hand(open_store: OpenStore) -> None:
    store = open_store()
    member = store.join()
    store.publish(("a", "held"), ("a", "returned"), ("a", "unread"))
    store.copy("a", "copy", after=50)
    held, returned = store.claim(member, 2)
    store.end(member, [returned], after=0)
    store.clock.now += 100
    store.publish(("a", "young"))
    assert expire(store, 99) == {"billing/inlet": 3}
    assert stored(store) == ["held", "young"]
    assert bodies(store.claim(member)) == ["young"]
    assert store.end(member, [held]) == [True]


def test_dead_letters_have_an_age_of_their_own(open_store: OpenStore) -> None:
    store = open_store()
    dead = Address("orders", "billing", "dead")
    store.do(lambda tx: log.put_copies(tx, dead, [row_of(Message(body=b"dead"))], [0.0]))
    store.clock.now += 100
    assert expire(store, 1) == {}
    assert stored(store) == ["dead"]
    assert expire(store, 1, 99) == {"billing/dead": 1}
    assert stored(store) == []


async def ignore(deliveries: object, seconds: float) -> None:
    """Lose nothing that matters to the test."""


async def test_the_file_shrinks_when_a_backlog_is_done(connect: Connect, path: Path) -> None:
    adapter = await connect()
    inlet = Address("orders", "billing", "inlet")
    subscription = await adapter.subscribe(inlet, order="none", start="earliest", prefetch=32, on_lost=ignore)
    messages = [Message(body=b"x" * 2000)] * 500
    for _ in range(20):
        await adapter.send(Address("orders"), messages)
    (first,) = await subscription.receive(1)
    await subscription.settle([(first, Retry(after=1000))])
    done = 1
    while done < 10_000:
        taken = await subscription.receive(500)
        done += len(taken)
        await subscription.settle([(delivery, ACK) for delivery in taken])
    assert adapter._session is not None
    cleaner = Cleaner(adapter._session.writer, retention=604_800, dead_retention=0)
    await cleaner.clean(thoroughly=True)
    await adapter.close()
    assert path.stat().st_size < 5 * 1024 * 1024


async def test_a_thousand_settlements_start_the_cleaning(connect: Connect) -> None:
    adapter = await connect()
    inlet = Address("orders", "billing", "inlet")
    subscription = await adapter.subscribe(inlet, order="none", start="earliest", prefetch=32, on_lost=ignore)
    await adapter.send(Address("orders"), [Message(body=b"x")] * 1000)
    taken = await subscription.receive(1000)
    await subscription.settle([(delivery, ACK) for delivery in taken])
    async with asyncio.timeout(10):
        while (await adapter.browse(Address("orders"), cursor=None, limit=1))[0]:
            await asyncio.sleep(0.005)
