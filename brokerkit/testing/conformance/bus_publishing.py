"""
Publishing through the bus: out of handlers, out of many tasks, and what a stranger sends.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from tenacity import wait_none

from brokerkit.copies import OURS
from brokerkit.delivery import Delivery
from brokerkit.message import Message
from brokerkit.patterns import inbox, retry
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.log import note_of

__all__ = ["Publishing"]

PUBLISHERS = 50
EACH = 40


class Publishing:
    """Tests of what is published, and of effects."""

    async def test_a_handler_that_publishes_and_fails_has_published_nothing_and_the_next_run_the_same_ids(
        self, bench: BusBench
    ) -> None:
        source, target = bench.name("source"), bench.name("target")
        bus = await bench.bus("relay")
        ids: list[list[str]] = []
        marked = asyncio.Event()

        @bus.subscriber(source, group="g", patterns=[retry(3, wait=wait_none(), in_place=0)])
        async def handle(delivery: Delivery) -> None:
            events = [await bus.publish(target, {"n": n}, type="deed", key="k") for n in (1, 1, 2)]
            ids.append([event.id for event in events])
            bench.log.add(note_of("tried", "relay", delivery))
            if delivery.attempt == 1:
                message = "after publishing"
                raise ConnectionError(message)
            await marked.wait()

        async with bench.consuming(bus), bench.acting("reader", Plan(channel=target, concurrency=1)):
            await bench.publish(source, [Deed(n=0).outgoing()])
            await bench.log.count(2, "tried")
            await bench.publish(target, [Deed(n=99).outgoing("k")])
            await bench.log.all_of({"99"}, "ack")
            assert bench.log.ids("end") == ["99"]
            marked.set()
            await bench.log.all_of(set(ids[0]), "ack", who="reader")
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 3
        bench.once(bench.log.ids("end"), ["99", *ids[0]])

    async def test_what_many_tasks_publish_while_others_consume_is_all_consumed(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.publisher()
        confirmed: set[str] = set()

        async def publish(first: int) -> None:
            for n in range(first, first + EACH):
                event = await bus.publish(channel, {"n": n}, type="deed", id=str(n), key=f"k{n % 7}")
                confirmed.add(event.id)

        async with bench.acting("one", Plan(channel=channel)), bench.acting("two", Plan(channel=channel)):
            async with asyncio.timeout(bench.patience * 6), asyncio.TaskGroup() as group:
                for publisher in range(PUBLISHERS):
                    group.create_task(publish(publisher * EACH))
            assert len(confirmed) == PUBLISHERS * EACH
            await bench.log.all_of(confirmed, "ack", times=4)
        bench.once(bench.log.ids("end"), confirmed)
        await bench.nothing_left(channel)

    async def test_headers_of_ours_that_a_stranger_sends_to_the_channel_change_nothing(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()
        seen: list[tuple[str, int, int, int, int, int]] = []

        @bus.subscriber(channel, group="g", patterns=[retry(2, wait=wait_none(), in_place=0)])
        async def handle(delivery: Delivery) -> None:
            seen.append(
                (
                    delivery.event.id,
                    delivery.attempt,
                    delivery.run,
                    delivery.hop,
                    delivery.alone,
                    len(delivery.story),
                )
            )
            bench.log.add(note_of("begin", "bus", delivery))
            message = "hopeless"
            raise ValueError(message)

        forged = (
            *((name, "9") for name in sorted(OURS)),
            ("bk-attempt", "999999"),
            ("BK-Attempt", "7"),
        )
        plain = '{"specversion":"1.0","id":"%s","source":"s","type":"deed","data":{}}'
        cloud = "application/cloudevents+json"
        async with bench.consuming(bus):
            messages = [
                Message(body=(plain % "forged").encode(), content_type=cloud, headers=forged),
                Message(body=(plain % "honest").encode(), content_type=cloud),
            ]
            await bench.send(bench.first, channel, messages)
            await bench.log.all_of({"forged", "honest"}, "dead")
        for name in ("forged", "honest"):
            assert [each[1:] for each in seen if each[0] == name] == [(1, 0, 0, 0, 0), (2, 0, 1, 0, 1)]
        for letter in await bench.letters(channel):
            assert (letter.attempts, letter.runs, letter.group, len(letter.history)) == (2, 0, "g", 2)
        assert bench.log.of("alarm") == []

    async def test_behind_the_inbox_a_message_that_comes_twice_has_one_effect(
        self, bench: BusBench, tmp_path: Path
    ) -> None:
        pytest.importorskip("sqlalchemy")
        pytest.importorskip("aiosqlite")
        from brokerkit.testing.conformance.effects import Effects  # noqa: PLC0415 - an extra

        channel = bench.name()
        store = await Effects.open(tmp_path / "effects.db")
        buses = [await bench.bus(f"bus-{number}") for number in range(2)]
        for bus in buses:
            bus.subscriber(channel, group="g", concurrency=4, patterns=[inbox(store.engine)])(store.add)
        spectator = await bench.member(channel, "spectator", adapter=bench.first)
        async with bench.consuming(buses[0]), bench.consuming(buses[1]):
            await bench.publish(channel, [Deed(n=n).outgoing() for n in range(25)])
            # not published twice: a broker that drops repeated sends would let only one of the two through
            seen = await spectator.take(25, ack=True)
            await bench.send(bench.first, channel, [delivery.message for delivery in seen])
            await bench.log.count(50, "ack")
        assert Counter(await store.close()) == Counter({str(n): 1 for n in range(25)})
        assert bench.log.of("dead", "retry") == []
