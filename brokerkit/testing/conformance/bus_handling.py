"""
Handlers that are slow, stuck, cancelled or interrupted: whatever they do, no message is lost and none is counted wrongly.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
import threading
from collections import Counter
from contextvars import ContextVar

from tenacity import wait_none

from brokerkit.delivery import Delivery
from brokerkit.patterns import retry, timeout
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.log import note_of

__all__ = ["Handling"]

SEEN: ContextVar[str] = ContextVar("SEEN", default="unset")


class Handling:
    """Tests of how handlings end, and of stops."""

    async def test_completion_out_of_order_loses_nothing(self, bench: BusBench) -> None:
        channel = bench.name()
        async with bench.acting("one", Plan(channel=channel, concurrency=8)):
            work = [Deed(n=n, do="work", seconds=0.03 * (n % 8 == 0)) for n in range(60)]
            sent = await bench.publish(channel, [deed.outgoing() for deed in work])
            await bench.log.all_of(set(sent), "ack")
        assert bench.log.ids("end") != sent, "this test needs a handler that is overtaken"
        async with bench.acting("two", Plan(channel=channel)):
            await bench.publish(channel, [Deed(n=1000).outgoing()])
            await bench.log.all_of({"1000"}, "ack")
        bench.once(bench.log.ids("end"), [*sent, "1000"])
        await bench.nothing_left(channel)

    async def test_stops_while_messages_arrive_lose_nothing(self, bench: BusBench) -> None:
        channel = bench.name()
        plan = Plan(channel=channel, concurrency=4, prefetch=4)
        await bench.found(channel)

        async def publish() -> None:
            for start in range(0, 300, 3):
                await bench.publish(channel, [Deed(n=n).outgoing() for n in range(start, start + 3)])

        async with asyncio.TaskGroup() as group:
            group.create_task(publish())
            for stop in range(8):
                async with bench.acting(f"actor-{stop}", plan):
                    await bench.log.count(35 * (stop + 1), "begin")
        async with bench.acting("last", plan):
            await bench.log.all_of({str(n) for n in range(300)}, "ack")
        bench.once(bench.log.ids("end"), map(str, range(300)))
        assert {note.attempt for note in bench.log} == {1}

    async def test_an_async_handler_that_never_returns_is_timed_out_counted_retried_and_dead_lettered(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()

        @bus.subscriber(
            channel, group="g", concurrency=2, patterns=[retry(3, wait=wait_none()), timeout(0.1)]
        )
        async def handle(deed: Deed, delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "bus", delivery))
            if deed.n == 0:
                await asyncio.Event().wait()

        async with bench.consuming(bus):
            await bench.publish(channel, [Deed(n=n).outgoing() for n in range(10)])
            await bench.log.all_of({str(n) for n in range(1, 10)}, "ack")
            await bench.log.all_of({"0"}, "dead")
        assert [note.attempt for note in bench.log.of("begin", event="0")] == [1, 2, 3]
        (letter,) = await bench.letters(channel)
        assert (letter.id, letter.reason, letter.attempts) == ("0", "exhausted", 3)
        assert letter.error_type.endswith("HandlerTimeout")

    async def test_an_async_handler_that_will_not_stop_is_abandoned_and_its_message_goes_to_the_next_consumer(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        let_go = asyncio.Event()
        bus = await bench.bus(grace=0.1)

        @bus.subscriber(channel, group="g")
        async def handle(deed: Deed, delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "bus", delivery))
            while deed.n == 0 and not let_go.is_set():
                try:
                    await let_go.wait()
                except asyncio.CancelledError:
                    continue

        try:
            async with bench.consuming(bus):
                await bench.publish(channel, [Deed(n=n).outgoing() for n in range(3)])
                await bench.log.all_of({"0"}, "begin")
                await bench.log.all_of({"1", "2"}, "ack")
            assert bus.abandoned == 1
            assert bench.log.ids("abandoned") == ["0"]
            async with bench.acting("next", Plan(channel=channel)):
                await bench.log.all_of({"0"}, "ack", who="next")
                let_go.set()  # what it returns now must change nothing
                await bench.publish(channel, [Deed(n=3).outgoing()])
                await bench.log.all_of({"3"}, "ack")
        finally:
            let_go.set()
        assert [(note.id, note.attempt) for note in bench.log.of("end")] == [("0", 1), ("3", 1)]
        assert await bench.letters(channel) == []

    async def test_a_def_handler_keeps_its_slot_until_it_returns_and_has_failed_then(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        let_go = threading.Event()
        loop = asyncio.get_running_loop()
        bus = await bench.bus()

        @bus.subscriber(
            channel, group="g", concurrency=1, patterns=[retry(3, wait=wait_none(), in_place=0), timeout(0.1)]
        )
        def handle(deed: Deed, delivery: Delivery) -> None:
            loop.call_soon_threadsafe(bench.log.add, note_of("begin", "bus", delivery))
            if deed.n == 0:
                let_go.wait(bench.patience)

        try:
            async with bench.consuming(bus):
                await bench.publish(channel, [Deed(n=0).outgoing()])
                await bench.log.all_of({"0"}, "begin")
                await bench.publish(channel, [Deed(n=1).outgoing()])
                await asyncio.sleep(0.3)  # the timeout is over
                assert bench.log.ids("begin") == ["0"]
                let_go.set()
                await bench.log.all_of({"0", "1"}, "ack")
        finally:
            let_go.set()
        assert [note.attempt for note in bench.log.of("begin", event="0")] == [1, 2]

    async def test_what_had_not_started_at_a_stop_is_handled_by_the_next_consumer_at_attempt_one(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        let_go = asyncio.Event()
        bus = await bench.bus("stops")
        ended: list[str] = []

        @bus.subscriber(channel, group="g", concurrency=2, prefetch=20)
        async def handle(delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "stops", delivery))
            await let_go.wait()
            ended.append(delivery.event.id)

        await bench.found(channel)
        sent = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(20)])
        async with bench.consuming(bus):
            await bench.log.count(2, "begin")
            asyncio.get_running_loop().call_later(0.05, let_go.set)
        assert sorted(ended) == sorted(bench.log.ids("ack"))
        assert len(ended) == 2
        async with bench.acting("next", Plan(channel=channel)):
            await bench.log.all_of(set(sent) - set(ended), "ack", who="next")
        bench.once([*ended, *bench.log.ids("end")], sent)
        assert {note.attempt for note in bench.log.of("end")} == {1}

    async def test_a_context_variable_that_one_message_sets_is_unset_in_the_next(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()
        seen: list[str] = []

        @bus.subscriber(channel, group="g", concurrency=1)
        async def handle(deed: Deed) -> None:
            seen.append(SEEN.get())
            SEEN.set(f"set by {deed.n}")
            if deed.n % 2:
                await asyncio.sleep(0)
                assert SEEN.get() == f"set by {deed.n}"

        async with bench.consuming(bus):
            sent = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(20)])
            await bench.log.all_of(set(sent), "ack")
        assert seen == ["unset"] * 20
        assert SEEN.get() == "unset"

    async def test_a_handler_that_cancels_its_own_task_has_failed_and_harms_nobody(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()

        @bus.subscriber(channel, group="g", concurrency=1, patterns=[retry(3, wait=wait_none(), in_place=0)])
        async def handle(deed: Deed, delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "bus", delivery))
            task = asyncio.current_task()
            assert task is not None
            if deed.n % 5 == 0 and delivery.attempt == 1:
                task.cancel()
                await asyncio.sleep(0)
            elif deed.n % 5 == 1:
                task.cancel()  # and returns before it is delivered
            else:
                await asyncio.sleep(0)  # where a cancellation that was left behind would hit

        async with bench.consuming(bus):
            sent = await bench.publish(channel, [Deed(n=n).outgoing() for n in range(20)])
            await bench.log.all_of(set(sent), "ack")
            assert bus.ready
        tries = Counter(bench.log.ids("begin"))
        assert tries == Counter({str(n): 2 if n % 5 == 0 else 1 for n in range(20)})
        assert await bench.letters(channel) == []
