"""
Processes that die, freeze and stay away: nothing is lost, and no innocent becomes a dead letter.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
from pathlib import Path

from brokerkit.delivery import Delivery
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bus_bench import BusBench, Consumer
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.log import note_of

__all__ = ["Crashes"]

KILLER = "50"
MOST_CRASHES = 5


class Crashes:
    """Tests with processes that end or stand still."""

    @needs("lease", "counts_arrivals", "marks")
    @spared_by("returns-count-as-arrivals")
    async def test_a_handler_that_kills_its_process_is_dead_lettered_and_its_innocent_neighbours_are_handled(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        plan = Plan(channel=channel, prefetch=100)
        await bench.found(channel)
        work = [Deed(n=n, do="die" if str(n) == KILLER else "work", seconds=0.002) for n in range(101)]
        sent = set(await bench.publish(channel, [deed.outgoing() for deed in work]))
        crashes = 0
        while not bench.log.of("dead"):
            assert crashes <= MOST_CRASHES
            await self._until_it_dies(bench, await bench.consumer(plan), crashes)
            crashes = len(bench.log.of("begin", event=KILLER))
        await bench.log.all_of(sent - {KILLER}, "end", times=2)
        await bench.nothing_left(channel)  # who dies may have acked, and not have told
        assert 2 <= crashes <= MOST_CRASHES
        (letter,) = await bench.letters(channel)
        assert (letter.id, letter.reason) == (KILLER, "crash_loop")
        assert {note.attempt for note in bench.log.of("begin", "end")} == {1}

    async def _until_it_dies(self, bench: BusBench, consumer: Consumer, crashes: int) -> None:
        """Wait until the killer has begun once more, or is dead itself."""
        await bench.log.until(
            lambda: len(bench.log.of("begin", event=KILLER)) > crashes or bench.log.of("dead"),
            f"{consumer.who} dies of it, or it is a dead letter",
            times=2,
        )

    @needs("lease")
    async def test_a_settlement_that_comes_after_the_lease_is_stale_and_loses_nothing(
        self, bench: BusBench, tmp_path: Path
    ) -> None:
        channel = bench.name()
        go = tmp_path / "go"
        plan = Plan(channel=channel, concurrency=1, prefetch=4)
        sleeper = await bench.consumer(plan)
        work = [Deed(n=n, do="block" if n == 0 else "", go=str(go)) for n in range(10)]
        sent = await bench.publish(channel, [deed.outgoing() for deed in work[:1]])
        await bench.log.all_of({"0"}, "begin")
        if bench.capabilities.processes:  # elsewhere a blocked loop is as still as it can be
            await bench.freeze(sleeper)
        bus = await bench.bus("heir")

        @bus.subscriber(channel, group="g")
        async def handle(deed: Deed) -> None: ...

        async with bench.consuming(bus):
            sent += await bench.publish(channel, [deed.outgoing() for deed in work[1:]])
            await bench.log.all_of(set(sent), "ack", who="heir", times=2)
            sleeper.way.resume()
            go.touch()
            await bench.log.all_of({"0"}, "stale", who=sleeper.who)
            more = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(20, 30)])
            await bench.log.all_of(set(more), "ack")
        assert bench.log.ids("ack", who=sleeper.who).count("0") == 0
        assert await bench.letters(channel) == []
        assert bench.log.of("retry") == []
        await sleeper.stop()
        await bench.nothing_left(channel)

    @needs("lease")
    async def test_a_full_consumer_keeps_its_place_beyond_the_lease(self, bench: BusBench) -> None:
        channel = bench.name()
        bus = await bench.bus("full")
        let_go = asyncio.Event()

        @bus.subscriber(channel, group="g", concurrency=1, prefetch=2, hold_limit=0)
        async def handle(delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "full", delivery))
            await let_go.wait()

        await bench.found(channel)
        await bench.publish(channel, [Deed(n=n).outgoing() for n in range(2)])
        async with bench.consuming(bus):
            await bench.log.all_of({"0"}, "begin")
            async with bench.acting("other", Plan(channel=channel)):
                await bench.publish(channel, [Deed(n=n).outgoing() for n in range(2, 10)])
                await bench.log.all_of({str(n) for n in range(2, 10)}, "ack", who="other")
                await asyncio.sleep(2.2 * (bench.capabilities.lease or 0))
                let_go.set()
                await bench.log.all_of({"0", "1"}, "ack", who="full")
        assert bench.log.of("stale") == []
        assert sorted(bench.log.ids("end", who="other")) == [str(n) for n in range(2, 10)]
        await bench.nothing_left(channel)
