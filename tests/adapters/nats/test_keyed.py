"""Order by key: one owner at a time, in order across every change of owner."""

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from brokerkit.adapter import Order
from brokerkit.adapters.nats.keyed import KeyedSubscription
from brokerkit.adapters.nats.places import Places
from brokerkit.delivery import Delivery
from brokerkit.errors import Stale
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK
from tests.adapters.nats.conftest import Connect
from tests.adapters.nats.members import PATIENCE, Joined, bodies, inlet, join, send
from tests.conftest import StartOwn
from tests.servers import RealServer

KEYS = [f"k{number}" for number in range(16)]
ROOT = Path(__file__).parents[3]


def keyed(member: Joined) -> KeyedSubscription:
    return cast("KeyedSubscription", member.subscription)


def owned(member: Joined) -> set[int]:
    return {part.index for part in keyed(member).parts if part.state in {"claiming", "taking", "owned"}}


async def send_rounds(adapter: Any, channel: str, first: int, last: int) -> None:
    messages = [
        Message(body=str(number).encode(), key=key.encode()) for number in range(first, last) for key in KEYS
    ]
    assert not any(await adapter.send(Address(channel), messages))


def by_key(deliveries: list[Delivery]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for each in deliveries:
        assert each.message.key is not None
        found[each.message.key.decode()].append(int(each.message.body))
    return found


def inversions(deliveries: list[Delivery]) -> int:
    """Count first arrivals that come after a later one of their key."""
    count = 0
    for numbers in by_key(deliveries).values():
        first: list[int] = list(dict.fromkeys(numbers))
        count += sum(one > two for one, two in pairwise(first))
    return count


async def until(check: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not check():  # noqa: ASYNC110 - what the members know is told by no event
            await asyncio.sleep(0.01)


async def test_partitions_are_shared_evenly_and_a_member_that_leaves_is_inherited(
    connect: Connect, channel: str
) -> None:
    members = [await join(await connect(lease=3), inlet(channel), order="key") for _ in range(3)]
    await until(lambda: sorted(len(owned(each)) for each in members) == [2, 3, 3])
    assert owned(members[0]) | owned(members[1]) | owned(members[2]) == set(range(8))
    await members[1].subscription.close()
    await until(lambda: len(owned(members[0])) == len(owned(members[2])) == 4)


async def test_noise_on_the_members_subject_is_nobody_s_sign_of_life(connect: Connect, channel: str) -> None:
    adapter = await connect(lease=3)
    member = await join(adapter, inlet(channel), order="key")
    for noise in (
        b"",
        b"[]",
        b"{}",
        b'{"id": 1, "is": "here", "owns": "x"}',
        b"\xff",
        b'{"id":"","is":"here","owns":[]}',
    ):
        await adapter.link.publish(f"{channel}--members.g", noise)
    await send(adapter, Address(channel), "1", key="k")
    assert bodies(await member.take(1, ack=True)) == ["1"]
    assert len(owned(member)) == 8


CHILD = """
import asyncio, sys
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.message import Address
from brokerkit.settlement import ACK

async def main(url, channel, order):
    async def on_lost(deliveries, seconds): print("lost", len(deliveries), flush=True)
    adapter = NatsAdapter(url)
    await adapter.connect()
    subscription = await adapter.subscribe(
        Address(channel, "g", "inlet"), order=order, start="earliest", prefetch=100, on_lost=on_lost)
    print("joined", flush=True)
    while batch := await subscription.receive(10):
        for each in batch:
            print("start", each.message.key.decode(), each.message.body.decode(), flush=True)
        await asyncio.sleep(0.01)
        await subscription.settle([(each, ACK) for each in batch])

asyncio.run(main(*sys.argv[1:]))
"""


class Child:
    """A member in a process of its own, which tells what it starts."""

    def __init__(self, url: str, channel: str, order: Order = "key") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CHILD, url, channel, order], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.lines: list[str] = []
        self._over = False

    async def until_told(self, what: Callable[[str], bool], count: int) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while sum(what(line.rstrip()) for line in self.lines) < count:
                line = await asyncio.to_thread(self._process.stdout.readline)
                assert line, "the child has ended"
                self.lines.append(line)

    async def until_started(self, count: int) -> None:
        await self.until_told(lambda line: line.startswith("start"), count)

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def end(self) -> list[str]:
        if not self._over:
            self._over = True
            self._process.kill()
            out, _ = self._process.communicate()
            self.lines += out.splitlines(keepends=True)
        return self.lines


@pytest.fixture
def children() -> Iterator[list[Child]]:
    started: list[Child] = []
    yield started
    for child in started:
        child.end()


async def test_after_a_kill_of_the_owner_the_next_one_goes_on_in_order_and_before_the_ack_wait(
    connect: Connect, channel: str, nats_server: RealServer, children: list[Child]
) -> None:
    url = f"{nats_server.url}?lease=2"
    adapter = await connect(url)
    await send_rounds(adapter, channel, 0, 5)
    child = Child(url, channel)
    children.append(child)
    await child.until_started(40)
    child.signal(signal.SIGKILL)
    began = asyncio.get_running_loop().time()
    heir = await join(adapter, inlet(channel), order="key")
    await send_rounds(adapter, channel, 5, 10)
    taken: list[Delivery] = []
    while not all(numbers[-1:] == [9] for numbers in map(by_key(taken).__getitem__, KEYS)):
        taken += await heir.take(1, ack=True)
    assert asyncio.get_running_loop().time() - began < 8  # the ack_wait of an ordered group is 30 s
    assert inversions(taken) == 0
    before = {tuple(line.split()[1:]) for line in child.end() if line.startswith("start")}
    seen = before | {(key, str(number)) for key, numbers in by_key(taken).items() for number in numbers}
    assert seen == {(key, str(number)) for key in KEYS for number in range(10)}
    for key, numbers in by_key(taken).items():
        done = [int(number) for name, number in before if name == key]
        assert numbers[0] <= max(done, default=-1) + 1, "nothing between what was started and what came first"


async def test_what_a_dead_owner_had_comes_soon_although_nothing_new_does(
    connect: Connect, channel: str, nats_server: RealServer, children: list[Child]
) -> None:
    url = f"{nats_server.url}?lease=1.5"
    adapter = await connect(url)
    first = await join(adapter, inlet(channel), order="key")
    await send(adapter, Address(channel), "1", "2", key="k")
    await first.take(2)
    part = next(part for part in keyed(first).parts if part.out)
    # dead, as far as anybody can see: it says and renews nothing any more
    keyed(first)._stop_ticking()
    keyed(first).closed = True
    began = asyncio.get_running_loop().time()
    heir = await join(await connect(url), inlet(channel), order="key")
    assert bodies(await heir.take(2, ack=True)) == ["1", "2"]
    assert asyncio.get_running_loop().time() - began < 12
    assert part.index in owned(heir)


async def test_a_frozen_owner_that_wakes_starts_nothing_and_is_told(
    connect: Connect, channel: str, nats_server: RealServer, children: list[Child]
) -> None:
    url = f"{nats_server.url}?lease=1.5"
    adapter = await connect(url)
    await send_rounds(adapter, channel, 0, 40)
    child = Child(url, channel)
    children.append(child)
    await child.until_started(50)
    child.signal(signal.SIGSTOP)
    heir = await join(adapter, inlet(channel), order="key")
    taken = await heir.take(300, ack=True)
    child.signal(signal.SIGCONT)
    await heir.subscription.close()
    await send_rounds(adapter, channel, 1000, 1001)
    await child.until_told(
        lambda line: line.endswith(" 1000"), len(KEYS)
    )  # all that lay in its buffers is behind it
    after = [tuple(line.split()[1:]) for line in child.end() if line.startswith("start")]
    started_twice = set(after) & {
        (each.message.key.decode(), each.message.body.decode()) for each in taken if each.message.key
    }
    # what was out when it froze, and nothing of what lay in its buffers
    assert len(started_twice) <= 30
    assert inversions(taken) == 0


async def test_a_frozen_member_without_order_that_wakes_starts_nothing_that_somebody_else_has_handled(
    connect: Connect, channel: str, nats_server: RealServer, children: list[Child]
) -> None:
    url = f"{nats_server.url}?lease=3"
    adapter = await connect(url)
    child = Child(url, channel, "none")
    children.append(child)
    await child.until_told(lambda line: line == "joined", 1)

    async def consumer() -> dict[str, Any]:
        info = await adapter.api.consumer(channel, "g")
        assert info is not None
        return info

    while not (await consumer())["num_waiting"]:
        pass
    child.signal(signal.SIGSTOP)
    await send(adapter, Address(channel), *map(str, range(10)), key="k")
    assert (await consumer())["num_ack_pending"] == 10, "they lie in the child's socket"
    heir = await join(adapter, inlet(channel))
    taken = await heir.take(10, ack=True)
    assert {each.arrivals for each in taken} == {2}
    await heir.subscription.close()
    child.signal(signal.SIGCONT)
    await send(adapter, Address(channel), "last", key="k")
    await child.until_started(1)
    assert [line for line in child.end() if line.startswith("start")] == ["start k last\n"]


async def test_a_settlement_after_the_pin_has_moved_is_stale_and_changes_nothing(
    connect: Connect, channel: str
) -> None:
    adapter = await connect(lease=2)
    member = await join(adapter, inlet(channel), order="key")
    await send(adapter, Address(channel), "1", key="k")
    (held,) = await member.take(1)
    part = next(part for part in keyed(member).parts if part.out)
    await adapter.api.unpin(channel, part.source.name, "own")
    async with asyncio.timeout(PATIENCE):
        await member.told.wait()
    assert member.lost == [held]
    (outcome,) = await member.subscription.settle([(held, ACK)])
    assert isinstance(outcome, Stale)
    assert bodies(await member.take(1, ack=True)) == ["1"]


async def test_nothing_is_handed_out_of_a_partition_whose_pin_is_not_confirmed_now(
    connect: Connect, channel: str
) -> None:
    adapter = await connect()
    member = await join(adapter, inlet(channel), order="key")
    await send(adapter, Address(channel), "1", key="k")
    await member.take(1, ack=True)
    keyed(member)._stop_ticking()
    part = next(part for part in keyed(member).parts if part.state == "owned")
    part.until = 0.0
    receiving = asyncio.create_task(member.take(1, ack=True))
    await send(adapter, Address(channel), "2", key="k")
    await until(lambda: bool(part.waiting))
    await adapter.api.stream(channel)  # an answer later it still waits
    assert part.waiting
    part.until = asyncio.get_running_loop().time() + 10
    keyed(member).wake()
    assert bodies(await receiving) == ["2"]


async def test_a_copy_with_a_key_is_handed_out_by_the_owner_of_its_partition(
    connect: Connect, channel: str
) -> None:
    one = await join(await connect(lease=3), inlet(channel), order="key")
    adapter = await connect(lease=3)
    two = await join(adapter, inlet(channel), order="key")
    await until(lambda: len(owned(one)) == len(owned(two)) == 4)
    for key in KEYS:
        await send(adapter, Address(channel), "first", key=key)
    taken: dict[int, list[Delivery]] = {0: [], 1: []}

    async def consume(index: int, member: Joined) -> None:
        while batch := await member.subscription.receive(10):
            taken[index].extend(batch)
            await member.ack(batch)

    consuming = [asyncio.create_task(consume(index, member)) for index, member in enumerate((one, two))]
    await until(lambda: sum(map(len, taken.values())) == 16)
    for key in KEYS:
        await send(adapter, inlet(channel), "copy", key=key)
    await until(lambda: sum(map(len, taken.values())) == 32)
    for deliveries in taken.values():
        keys = {bodies([each])[0]: set[bytes | None]() for each in deliveries}
        for each in deliveries:
            keys[bodies([each])[0]].add(each.message.key)
        assert keys["first"] == keys["copy"]
    await one.subscription.close()
    await two.subscription.close()
    await asyncio.gather(*consuming)


async def test_a_server_that_is_killed_costs_no_order(
    connect: Connect, channel: str, own_server: StartOwn
) -> None:
    server = await asyncio.to_thread(own_server, "nats")
    adapter = await connect(server.url, lease=3)
    member = await join(adapter, inlet(channel), order="key")
    await send_rounds(adapter, channel, 0, 20)
    taken = await member.take(100, ack=True)
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)
    async with asyncio.timeout(PATIENCE):
        while set(by_key(taken)) != set(KEYS) or not all(19 in numbers for numbers in by_key(taken).values()):
            batch = await member.subscription.receive(10)
            outcomes = await member.subscription.settle([(each, ACK) for each in batch])
            taken += [each for each, outcome in zip(batch, outcomes, strict=True) if outcome is None]
    assert {key: sorted(set(numbers)) for key, numbers in by_key(taken).items()} == {
        key: list(range(20)) for key in KEYS
    }
    assert inversions(taken) == 0


async def test_on_a_server_without_pins_one_message_of_a_partition_is_out_at_a_time(
    connect: Connect, channel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Places, "pins", property(lambda _: False))
    one, two = [await join(await connect(lease=2), inlet(channel), order="key") for _ in range(2)]
    await send_rounds(await connect(), channel, 0, 5)
    taken: list[Delivery] = []
    out: set[bytes | None] = set()

    async def consume(member: Joined) -> None:
        while batch := await member.subscription.receive(10):
            for each in batch:
                assert each.message.key not in out
                out.add(each.message.key)
            taken.extend(batch)
            await asyncio.sleep(0)
            out.difference_update([each.message.key for each in batch])
            await member.ack(batch)

    consuming = [asyncio.create_task(consume(member)) for member in (one, two)]
    await until(lambda: len(taken) == 80)
    await one.subscription.close()
    await two.subscription.close()
    await asyncio.gather(*consuming)
    assert inversions(taken) == 0
