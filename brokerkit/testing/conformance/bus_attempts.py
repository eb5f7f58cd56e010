"""
Attempts count from one and count failures only; whoever takes over goes on counting. Delayed retries come when they are due.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
import time
from dataclasses import replace

import pytest
from tenacity import wait_none

from brokerkit.adapter import Order
from brokerkit.delivery import Delivery
from brokerkit.patterns import retry
from brokerkit.publisher import Outgoing
from brokerkit.settlement import Retry
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.gate import needs, spared_by
from brokerkit.testing.conformance.log import note_of

__all__ = ["Attempts", "in_both_orders", "off_without_order"]

in_both_orders = pytest.mark.parametrize("order", ["none", "key"])


def off_without_order(bench: BusBench, order: Order) -> None:
    """Skip what a broker without order by key cannot do."""
    if order == "key" and not bench.capabilities.order_key:
        pytest.skip("off by capability: order_key is False")


class Attempts:
    """Tests of attempts and of the time between them."""

    @in_both_orders
    async def test_attempts_count_from_one_and_the_last_is_the_one_that_succeeds(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        async with bench.acting("one", Plan(channel=channel, order=order)):
            failing = [Deed(n=n, times=n).outgoing(f"k{n}") for n in range(5)]
            sent = await bench.publish(channel, failing)
            await bench.log.all_of(set(sent), "ack")
        for n, name in enumerate(sent):
            begun = [note.attempt for note in bench.log.of("begin", event=name)]
            assert begun == list(range(1, n + 2))
        assert await bench.letters(channel) == []

    @needs("lease")
    @in_both_orders
    async def test_who_takes_over_after_a_kill_between_two_tries_goes_on_counting(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        plan = Plan(channel=channel, order=order, attempts=4, wait=1.0)
        killed = await bench.consumer(plan)
        await bench.publish(channel, [Deed(n=0, times=9).outgoing("k")])
        await bench.log.count(2, "retry", "held")
        await asyncio.sleep(0.3)  # between two tries, and the mark of the second is written
        await killed.way.kill()
        async with bench.acting("heir", plan):
            await bench.log.all_of({"0"}, "dead")
        before = [note.attempt for note in bench.log.of("begin", who=killed.who)]
        assert before in ([1, 2], [1, 2, 3])  # a slow machine kills in the third try: that one has not failed
        # without marks the next owner of a key knows nothing of the tries of the last: more of them, never fewer
        forgets = order == "key" and not bench.capabilities.marks
        assert [note.attempt for note in bench.log.of("begin", who="heir")] == (
            [1, 2, 3, 4] if forgets else [3, 4]
        )
        assert [(letter.attempts, letter.reason) for letter in await bench.letters(channel)] == [
            (4, "exhausted")
        ]

    @in_both_orders
    async def test_attempts_survive_a_polite_restart_between_two_tries(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        plan = Plan(channel=channel, order=order, attempts=4, wait=0.3)
        for restart in range(1, 4):
            async with bench.acting(f"actor-{restart}", plan):
                if restart == 1:
                    await bench.publish(channel, [Deed(n=0, times=9).outgoing("k")])
                await bench.log.count(restart, "retry", "held")
        async with bench.acting("last", plan):
            await bench.log.all_of({"0"}, "dead")
        forgets = order == "key" and not bench.capabilities.marks
        tries = [1, 1, 1, 1, 2, 3, 4] if forgets else [1, 2, 3, 4]
        assert [note.attempt for note in bench.log.of("begin")] == tries

    @spared_by("returns-count-as-arrivals")
    @spared_by("returns-count-as-arrivals")
    @in_both_orders
    async def test_polite_restarts_cost_no_attempt_and_make_no_suspect(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        suspects: list[Delivery] = []
        may_end = asyncio.Event()

        async def handle(delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "any", delivery))
            if delivery.suspect:
                suspects.append(delivery)
            await may_end.wait()

        for restart in range(6):
            bus = await bench.bus(grace=0)
            bus.subscriber(channel, group="g", order=order, patterns=[retry(2)])(handle)
            async with bench.consuming(bus):
                if restart == 0:
                    await bench.publish(channel, [Deed(n=n).outgoing(f"k{n}") for n in range(3)])
                await bench.log.count(3 * (restart + 1), "begin")
                if restart == 5:
                    may_end.set()
                    await bench.log.all_of({"0", "1", "2"}, "ack")
        assert {note.attempt for note in bench.log.of("begin")} == {1}
        assert suspects == []
        assert len(bench.log.of("begin")) == 18

    @in_both_orders
    async def test_a_delayed_retry_is_not_early_and_not_late_and_stops_no_other_key(
        self, bench: BusBench, order: Order
    ) -> None:
        off_without_order(bench, order)
        channel = bench.name()
        bus = await bench.bus()
        failed: dict[str, float] = {}
        again: dict[str, float] = {}

        @bus.subscriber(channel, group="g", order=order)
        async def handle(delivery: Delivery) -> Retry | None:
            bench.log.add(note_of("begin", "bus", delivery))
            if delivery.message.key != b"waits" or delivery.event.id == "later":
                return None
            if delivery.attempt == 1:
                failed[delivery.event.id] = time.monotonic()
                bench.log.add(note_of("failed", "bus", delivery))
                return Retry(after=float(delivery.event.id))
            again[delivery.event.id] = time.monotonic()
            bench.log.add(note_of("again", "bus", delivery))
            return None

        async with bench.consuming(bus), bench.acting("other", Plan(channel=channel, group="other")):
            waits = [Deed(n=0).outgoing("waits") for _ in range(2)]
            await bench.publish(channel, [_named(waits[0], "3.0"), _named(waits[1], "2.4")])
            await bench.log.count(1, "failed")
            await bench.publish(channel, [Deed(n=n).outgoing(f"k{n}") for n in range(50)])
            await bench.log.all_of({str(n) for n in range(50)}, "begin", who="bus")
            await bench.log.count(2, "again")
            await bench.log.until(
                lambda: len(bench.log.of("end", who="other")) == 52, "the other group has all"
            )
        others = [note.at for note in bench.log.of("begin", who="bus") if note.key != "waits"]
        assert min(others) < min(again.values())
        for name, at in again.items():
            bench.figure(f"retry with order={order!r}, seconds late", at - failed[name] - float(name))
            assert -0.001 <= at - failed[name] - float(name) <= bench.lateness, name
        assert {note.attempt for note in bench.log.of("begin", who="other")} == {1}
        order_of_waits = [
            (note.id, note.attempt) for note in bench.log.of("begin", who="bus") if note.key == "waits"
        ]
        if order == "key":
            assert order_of_waits == [("3.0", 1), ("3.0", 2), ("2.4", 1), ("2.4", 2)]

    async def test_what_one_group_retries_the_other_sees_once(self, bench: BusBench) -> None:
        channel = bench.name()
        plan = Plan(channel=channel, group="other")
        bus = await bench.bus("fails")

        @bus.subscriber(channel, group="fails", patterns=[retry(4, wait=wait_none(), in_place=0)])
        async def handle(deed: Deed, delivery: Delivery) -> None:
            bench.log.add(note_of("tried", "fails", delivery))
            if delivery.attempt <= deed.times:
                message = "not yet"
                raise ConnectionError(message)

        async with bench.consuming(bus), bench.acting("other", plan):
            sent = await bench.publish(channel, [Deed(n=n, times=n % 5).outgoing() for n in range(50)])
            await bench.log.all_of(set(sent), "ack", "dead", who="fails")
            await bench.log.all_of(set(sent), "ack", who="other")
        assert len(bench.log.of("tried")) == 10 * (1 + 2 + 3 + 4 + 4)
        bench.once(bench.log.ids("end", who="other"), sent)
        assert len(await bench.letters(channel, "fails")) == 10
        assert await bench.letters(channel, "other") == []


def _named(outgoing: Outgoing, name: str) -> Outgoing:
    """Return it under another id."""
    return replace(outgoing, id=name)
