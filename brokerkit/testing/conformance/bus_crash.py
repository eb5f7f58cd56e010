"""
Processes that die, freeze and stay away: nothing is lost, and no innocent becomes a dead letter.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
from pathlib import Path

import pytest
from tenacity import wait_none

from brokerkit.adapter import Order
from brokerkit.bus import Bus
from brokerkit.delivery import Delivery
from brokerkit.patterns import retry
from brokerkit.settlement import Retry
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bus_attempts import in_both_orders, off_without_order
from brokerkit.testing.conformance.bus_bench import BusBench, Consumer
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.log import note_of

__all__ = ["Crashes"]

KILLER = "50"
MOST_CRASHES = 5


class Crashes:
    """Tests with processes that end or stand still."""

    @needs("lease", "counts_arrivals", "marks|tallies")
    @in_both_orders
    async def test_a_handler_that_kills_its_process_is_dead_lettered_and_its_innocent_neighbours_are_handled(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        plan = Plan(channel=channel, prefetch=100, order=order)
        await bench.found(channel, order=order)
        work = [Deed(n=n, do="die" if str(n) == KILLER else "work", seconds=0.002) for n in range(101)]
        sent = set(await bench.publish(channel, [deed.outgoing(f"k{deed.n % 20}") for deed in work]))
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

    @needs("lease", "counts_arrivals", "marks|tallies")
    @spared_by("returns-count-as-arrivals")
    @in_both_orders
    async def test_an_innocent_that_was_there_at_two_deaths_may_be_returned_and_fail_like_any_other(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        await bench.found(channel, order=order)
        await bench.publish(channel, [Deed(n=0, do="work", seconds=3600).outgoing("k")])
        for death in (1, 2):
            consumer = await bench.consumer(Plan(channel=channel, order=order))
            await bench.log.count(death, "begin")
            await consumer.way.kill()
        bus = await bench.bus()
        suspected: list[int] = []

        @bus.subscriber(channel, group="g", order=order, patterns=[retry(2, wait=wait_none(), in_place=0)])
        async def handle(delivery: Delivery) -> Retry | None:
            suspected.append(delivery.attempt * delivery.suspect)
            if len(suspected) <= MOST_CRASHES:
                return Retry(reason="not now", counts=False)
            if delivery.attempt == 1:
                message = "this counts"
                raise ConnectionError(message)
            return None

        async with bench.consuming(bus):
            await bench.log.all_of({"0"}, "ack", times=2)
        assert suspected[: MOST_CRASHES + 1] == [1] * (MOST_CRASHES + 1)
        assert len(suspected) == MOST_CRASHES + 2
        assert await bench.letters(channel) == []

    @needs("lease")
    @pytest.mark.parametrize(("settlement", "times"), [("ack", 0), ("retry", 1), ("dead", 2)])
    async def test_a_settlement_that_comes_after_the_lease_is_stale_and_loses_and_doubles_nothing(
        self, bench: BusBench, tmp_path: Path, settlement: str, times: int
    ) -> None:
        channel = bench.name()
        go = tmp_path / "go"
        attempts = 1 if settlement == "dead" else 5
        sleeper = await bench.consumer(Plan(channel=channel, concurrency=1, prefetch=4, attempts=attempts))
        await bench.publish(channel, [Deed(n=0, do="block", times=times, go=str(go)).outgoing()])
        await bench.log.all_of({"0"}, "begin")
        if bench.capabilities.processes:  # elsewhere a blocked loop is as still as it can be
            await bench.freeze(sleeper)
        bus = await bench.bus("heir")

        @bus.subscriber(channel, group="g")
        async def handle(delivery: Delivery) -> None:
            bench.log.add(note_of("inherited", "heir", delivery))

        async with bench.consuming(bus):
            sent = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(1, 10)])
            await bench.log.all_of({"0", *sent}, "ack", who="heir", times=2)
            sleeper.way.resume()
            go.touch()
            await bench.log.all_of({"0"}, "stale", who=sleeper.who)
            more = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(20, 30)])
            await bench.log.all_of(set(more), "ack")
            await bench.nothing_left(channel)
        assert [(note.id, note.attempt) for note in bench.log.of("inherited", event="0")] == [("0", 1)]
        assert "0" not in bench.log.ids("ack", "retry", "dead", who=sleeper.who)
        assert await bench.letters(channel) == []
        await sleeper.stop()

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
        if bench.capabilities.log:
            await self._full_on_a_log(bench, bus, let_go)
            return
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

    async def _full_on_a_log(self, bench: BusBench, bus: Bus, let_go: asyncio.Event) -> None:
        """
        The same where a partition has one owner: it waits with its owner, and the others flow.

        Both are there before the first message: who joins makes the others drain, and this handler would not.
        """
        channel = bench.name()
        sent = {str(n) for n in range(40)}
        async with bench.consuming(bus), bench.acting("other", Plan(channel=channel)):
            await bench.publish(channel, [Deed(n=int(n)).outgoing() for n in sent])
            await bench.log.until(
                lambda: bench.log.of("begin", who="full") and bench.log.of("ack", who="other"),
                "both have some",
            )
            await asyncio.sleep(2.2 * (bench.capabilities.lease or 0))
            assert len(bench.log.of("begin", who="full")) == 1
            let_go.set()
            await bench.log.all_of(sent, "ack")
        assert bench.log.of("stale") == []
        assert len(bench.log.of("ack")) == len(sent)
        await bench.nothing_left(channel)
