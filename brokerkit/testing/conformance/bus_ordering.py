"""
Order through the bus: per key where it is asked for, one of a key at a time in a process everywhere.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable

from brokerkit.delivery import Delivery
from brokerkit.publisher import Outgoing
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bench import eventually
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.log import Note

__all__ = ["BusOrdering"]

COUNT = 1000
KEYS = 16
HOPELESS = {"113", "514", "915"}


def numbered(numbers: Iterable[int]) -> list[Outgoing]:
    """Return messages over all keys: every twentieth fails once or twice, and a few always."""
    made: list[Outgoing] = []
    for n in numbers:
        times = 9 if str(n) in HOPELESS else 1 + n // 20 % 2 if n % 20 == 7 else 0
        made.append(Deed(n=n, times=times).outgoing(f"k{n % KEYS}"))
    return made


def inversions(ends: Iterable[Note]) -> list[tuple[str, int, int]]:
    """Return where a later event of a key was completed first; of an event that was repeated the first time counts."""
    latest: dict[str, int] = defaultdict(lambda: -1)
    seen: set[str] = set()
    found: list[tuple[str, int, int]] = []
    for note in sorted(ends, key=lambda note: note.at):
        if note.id in seen:
            continue
        seen.add(note.id)
        key = str(note.key)
        if int(note.id) < latest[key]:
            found.append((key, latest[key], int(note.id)))
        latest[key] = max(latest[key], int(note.id))
    return found


async def most_done(bench: BusBench, number: int) -> None:
    """Wait until so many events have been completed, so that what comes next happens in the middle of work."""
    await bench.log.until(lambda: len(set(bench.log.ids("end"))) > number, f"{number} are completed", times=3)


class BusOrdering:
    """Tests of order and of sharing."""

    @needs("order_key", "lease")
    @spared_by("order-in-one-process")
    async def test_each_key_is_completed_in_order_over_retries_a_restart_and_a_kill(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        plan = Plan(channel=channel, order="key", attempts=3, wait=0.05)
        leaves, dies, stays = [await bench.consumer(plan) for _ in range(3)]
        sent: list[str] = []
        for portion in range(5):
            numbers = range(portion * COUNT // 5, (portion + 1) * COUNT // 5)
            sent += await bench.publish(channel, numbered(numbers))
            await most_done(bench, len(sent) - 150)
            if portion == 1:
                await leaves.stop()
                leaves = await bench.consumer(plan)
            if portion == 3:
                await dies.way.kill()
                dies = await bench.consumer(plan)
        await bench.log.all_of(set(sent) - HOPELESS, "end", times=3)

        async def all_dead() -> bool:
            return {letter.id for letter in await bench.letters(channel)} == HOPELESS

        # not by the notes: who is killed between the broker's answer and its own note has told nobody
        await eventually(all_dead, 3 * bench.patience, "the hopeless are dead letters")
        assert inversions(bench.log.of("end")) == []
        assert len({note.who for note in bench.log.of("end")}) >= 3
        assert stays.who in {note.who for note in bench.log.of("end")}
        await bench.nothing_left(channel)

    @needs("order_key")
    async def test_each_key_is_completed_in_order_with_one_consumer_and_nothing_is_repeated(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        async with bench.acting("one", Plan(channel=channel, order="key", attempts=3, wait=0.01)):
            sent = await bench.publish(channel, numbered(range(COUNT)))
            await bench.log.all_of(set(sent) - HOPELESS, "ack", times=3)
            await bench.log.all_of(HOPELESS, "dead")
        ends = bench.log.of("end")
        assert inversions(ends) == []
        bench.once((note.id for note in ends), set(sent) - HOPELESS)
        tries = Counter(bench.log.ids("begin"))
        assert {name: tries[name] for name in HOPELESS} == dict.fromkeys(HOPELESS, 3)

    async def test_without_order_one_key_is_still_handled_one_at_a_time_in_a_process(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()
        running: Counter[bytes | None] = Counter()
        together: list[int] = []

        @bus.subscriber(channel, group="g", concurrency=16)
        async def handle(delivery: Delivery) -> None:
            running[delivery.message.key] += 1
            together.append(sum(running.values()))
            assert running[delivery.message.key] == 1
            await asyncio.sleep(0.001)
            running[delivery.message.key] -= 1

        async with bench.consuming(bus):
            sent = await bench.publish(channel, [Deed(n=n).outgoing(f"k{n % 8}") for n in range(200)])
            await bench.log.all_of(set(sent), "ack")
        assert len(bench.log.ids("ack")) == 200
        assert max(together) > 1

    async def test_without_order_two_processes_share_the_load(self, bench: BusBench) -> None:
        channel = bench.name()
        plan = Plan(channel=channel, concurrency=4, prefetch=8)
        away = await bench.consumer(plan)
        async with bench.acting("here", plan):
            work = [
                Deed(n=n, do="work", seconds=0.005).outgoing("one key" if n % 2 else None) for n in range(200)
            ]
            sent = await bench.publish(channel, work)
            await bench.log.all_of(set(sent), "ack", times=2)
            await away.stop()
        bench.once(bench.log.ids("end"), sent)
        assert {note.who for note in bench.log.of("end")} == {"here", away.who}
