"""
Dead letters through the bus: what gets there, with which story, and the way back.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102, PLR2004

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
from tenacity import wait_none

from brokerkit.bus import Bus
from brokerkit.delivery import Delivery
from brokerkit.errors import TooLarge
from brokerkit.message import Message
from brokerkit.patterns import retry
from brokerkit.publisher import Outgoing
from brokerkit.settlement import DeadLetter, Retry
from brokerkit.testing.conformance.actor import Deed, Plan
from brokerkit.testing.conformance.bench import eventually
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.gate import needs
from brokerkit.testing.conformance.log import note_of
from brokerkit.testing.conformance.through import Through

__all__ = ["BusDeadLetters"]


class BusDeadLetters:
    """Tests of dead letters and of redriving."""

    async def test_a_dead_letter_tells_its_whole_story(self, bench: BusBench) -> None:
        channel = bench.name()
        bus = await bench.bus()

        @bus.subscriber(channel, group="g", patterns=[retry(3, wait=wait_none(), in_place=0)])
        async def breaks_its_heart(delivery: Delivery) -> None:
            message = f"try {delivery.attempt}, see https://user:secret@host/"
            raise ValueError(message)

        async with bench.consuming(bus):
            headers: dict[str, str | bytes] = {"x-mine": "1", "x-bytes": b"\xff\x00"}
            await bench.publish(
                channel, [Outgoing(data={"a": 1}, type="deed", id="0", key="k", headers=headers)]
            )
            await bench.log.all_of({"0"}, "dead")
        (letter,) = await bench.letters(channel)
        assert (letter.id, letter.source, letter.type, letter.key) == ("0", "suite", "deed", b"k")
        assert (letter.channel, letter.group, letter.runs) == (channel, "g", 0)
        assert (letter.reason, letter.attempts, letter.error_type) == ("exhausted", 3, "ValueError")
        assert [entry["n"] for entry in letter.history] == [1, 2, 3]
        assert [str(entry["message"])[:5] for entry in letter.history] == ["try 1", "try 2", "try 3"]
        assert "breaks_its_heart" in letter.trace
        assert "secret" not in json.dumps(letter.history)
        assert letter.first_failure is not None
        assert letter.last_failure is not None
        assert letter.first_failure <= letter.last_failure
        assert {name: value for name, value in letter.headers if name.startswith("x-")} == headers

    async def test_what_cannot_be_decoded_is_dead_lettered_at_once_as_it_came_and_the_worker_lives(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        cloud = "application/cloudevents+json"
        envelope = {
            "specversion": "1.0",
            "id": "e",
            "source": "s",
            "type": "deed",
            "data": {"n": "no number"},
        }
        odd = [
            Message(body=b"\xff\x00{", content_type=cloud, key=b"k", headers=(("a", b"\xfe"), ("a", "2"))),
            Message(body=b"", content_type=cloud),
            Message(body=json.dumps(envelope).encode(), content_type=cloud, key=b"k"),
            Message(body=b"[" * 5000, content_type="application/json"),
        ]
        async with bench.acting("one", Plan(channel=channel, concurrency=1)):
            await bench.send(bench.first, channel, odd)
            await bench.publish(channel, [Deed(n=1).outgoing("k")])
            await bench.log.all_of({"1"}, "ack")
            await bench.log.count(4, "dead")
        letters = await bench.letters(channel)
        assert {letter.reason for letter in letters} == {"decode_error"}
        assert {letter.attempts for letter in letters} == {1}
        found = [(letter.body, letter.content_type, letter.key, letter.headers) for letter in letters]
        assert sorted(found, key=repr) == sorted(
            ((each.body, each.content_type, each.key, each.headers) for each in odd), key=repr
        )
        assert bench.log.ids("begin") == ["1"]

    async def test_a_type_that_no_handler_takes_is_dead_lettered_and_an_ignored_one_acked(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()

        @bus.subscriber(channel, group="g", type="deed", ignore=["noise"])
        async def handle(deed: Deed) -> None: ...

        async with bench.consuming(bus):
            await bench.publish(
                channel,
                [
                    Outgoing(data={"n": n}, type=name, id=name)
                    for n, name in enumerate(("deed", "noise", "later.version"))
                ],
            )
            await bench.log.all_of({"deed", "noise"}, "ack")
            await bench.log.all_of({"later.version"}, "dead")
        (letter,) = await bench.letters(channel)
        assert (letter.id, letter.reason, letter.attempts) == ("later.version", "unknown_type", 1)
        assert "later.version" in letter.detail

    async def test_a_redrive_reaches_the_group_that_failed_and_no_other_and_nothing_is_lost_on_the_way(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus("fails")
        mended = False

        @bus.subscriber(channel, group="fails", patterns=[retry(2, wait=wait_none(), in_place=0)])
        async def handle(delivery: Delivery) -> None:
            bench.log.add(note_of("tried", "fails", delivery))
            if not mended:
                message = f"run {delivery.run}"
                raise ConnectionError(message)

        sent = {str(n) for n in range(10)}
        async with bench.consuming(bus), bench.acting("other", Plan(channel=channel, group="other")):
            await bench.publish(channel, [Deed(n=n).outgoing(f"k{n % 3}") for n in range(10)])
            for run in range(3):
                await bench.log.all_of(sent, "dead", run=run)
                mended = run == 2
                outcomes = await bench.dead_letters(channel, "fails").redrive()
                assert {(outcome.id, outcome.result) for outcome in outcomes} == {
                    (each, "redriven") for each in sent
                }
            await bench.log.all_of(sent, "ack", who="fails")
            await bench.log.all_of(sent, "ack", who="other")
        for name in sent:
            tries = [(note.run, note.attempt) for note in bench.log.of("tried", event=name)]
            assert tries == [(0, 1), (0, 2), (1, 1), (1, 2), (2, 1), (2, 2), (3, 1)]
        bench.once(bench.log.ids("end", who="other"), sent)
        assert await bench.letters(channel, "fails") == []
        await bench.nothing_left(channel, "fails")

    async def test_one_that_dies_and_is_redriven_and_dies_and_is_redriven_at_once_is_handled_in_the_end(
        self, bench: BusBench
    ) -> None:
        """All four copies lie within the seconds in which brokers drop repeated ids."""
        channel = bench.name()
        bus = await bench.bus("dies")
        runs: list[int] = []

        @bus.subscriber(channel, group="g")
        async def handle(delivery: Delivery) -> DeadLetter | None:
            runs.append(delivery.run)
            return DeadLetter("again") if delivery.run < 2 else None

        sent = {str(n) for n in range(5)}
        async with bench.consuming(bus):
            begin = time.monotonic()
            await bench.publish(channel, [Deed(n=n).outgoing("k") for n in range(5)])
            for run in range(2):
                await bench.log.all_of(sent, "dead", run=run)
                outcomes = await bench.dead_letters(channel).redrive()
                assert {(each.id, each.result) for each in outcomes} == {(each, "redriven") for each in sent}
            await bench.log.all_of(sent, "ack")
            bench.figure("died and redriven twice: seconds in all", time.monotonic() - begin)
        if not bench.spared("acked-may-return"):
            assert sorted(runs) == [0] * 5 + [1] * 5 + [2] * 5
        assert await bench.letters(channel) == []
        await bench.nothing_left(channel)

    async def test_two_returns_by_copy_in_a_row_lose_nothing_and_cost_no_attempt(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus("returns")
        assert isinstance(bus.adapter, Through)
        bus.adapter.capabilities = replace(bus.adapter.capabilities, max_return=0.0)
        seen: list[tuple[str, int, int]] = []

        @bus.subscriber(channel, group="g")
        async def handle(delivery: Delivery) -> Retry | None:
            seen.append((delivery.event.id, delivery.attempt, delivery.hop))
            return Retry(0.2, "not now", counts=False) if delivery.hop < 2 else None

        sent = {str(n) for n in range(5)}
        async with bench.consuming(bus):
            await bench.publish(channel, [Deed(n=n).outgoing() for n in range(5)])
            await bench.log.all_of(sent, "ack")
        if not bench.spared("acked-may-return"):
            assert sorted(seen) == [(name, 1, hop) for name in sorted(sent) for hop in range(3)]
        assert {attempt for _, attempt, _ in seen} == {1}
        assert await bench.letters(channel) == []
        await bench.nothing_left(channel)

    @needs("max_message")
    async def test_a_message_at_the_limit_of_publishing_is_dead_lettered_whole_and_redriven(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus("full")
        handled: list[bytes] = []

        @bus.subscriber(channel, group="g")
        async def handle(delivery: Delivery) -> DeadLetter | None:
            handled.append(delivery.event.data)
            return None if delivery.run else DeadLetter("too much", "x" * 2000)

        publisher = await bench.publisher()
        room = bench.capabilities.max_message
        with pytest.raises(TooLarge) as refused:
            await publisher.publish(channel, b"x" * room, id="full", type="blob")
        excess, limit = (int(each) for each in re.findall(r"\d+", str(refused.value))[:2])
        data = b"x" * ((room - (excess - limit)) // 4 * 3 - 4)  # bytes travel as base64 in a structured event
        async with bench.consuming(bus):
            await publisher.publish(channel, data, id="full", type="blob")
            await bench.log.all_of({"full"}, "dead")
            (letter,) = await bench.letters(channel)
            assert (letter.id, letter.reason) == ("full", "too much")
            await bench.dead_letters(channel).redrive()
            await bench.log.all_of({"full"}, "ack")
        assert set(handled) == {data}

    async def test_a_redriven_letter_keeps_its_story(self, bench: BusBench) -> None:
        channel = bench.name()
        async with bench.acting("one", Plan(channel=channel, attempts=2)):
            await bench.publish(channel, [Deed(n=0, times=9).outgoing()])
            await bench.log.all_of({"0"}, "dead")
            await bench.dead_letters(channel).redrive(["0"])
            await bench.log.count(2, "dead")
        (letter,) = await bench.letters(channel)
        assert (letter.runs, letter.attempts, letter.reason) == (1, 2, "exhausted")
        assert [entry.get("dead") for entry in letter.history] == [None, None, "exhausted", None, None]

    async def test_while_the_dead_place_is_unreachable_nothing_is_acked_and_afterwards_nothing_is_missing(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()
        adapter = bus.adapter
        assert isinstance(adapter, Through)

        @bus.subscriber(channel, group="g", patterns=[retry(1)])
        async def handle(deed: Deed) -> None:
            if deed.times:
                message = "hopeless"
                raise ValueError(message)

        adapter.refused.add("dead")
        async with bench.consuming(bus):
            await bench.publish(channel, [Deed(n=n, times=n % 2).outgoing() for n in range(10)])
            odd, even = {"1", "3", "5", "7", "9"}, {"0", "2", "4", "6", "8"}
            await bench.log.all_of(even, "ack")
            await bench.log.until(
                lambda: {note.id for note in bench.log.of("alarm") if note.detail == "copy_failed"} == odd,
                "alarms",
            )
            assert not bus.ready
            assert set(bench.log.ids("ack", "dead", "stale")) == even

            async def even_are_gone() -> bool:
                return await bench.left(channel) in {0, 5}

            await eventually(even_are_gone, bench.patience, "what was acked is gone")
            assert await bench.letters(channel) == []
            adapter.refused.clear()
            await bench.log.all_of(odd, "dead")
            await eventually(_is_ready(bus), bench.patience, "the bus is ready again")
        assert sorted(letter.id for letter in await bench.letters(channel)) == sorted(odd)
        await bench.nothing_left(channel)

    async def test_who_stops_while_the_dead_place_is_unreachable_leaves_the_message_to_the_next(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus(grace=0.1)
        adapter = bus.adapter
        assert isinstance(adapter, Through)

        @bus.subscriber(channel, group="g", patterns=[retry(1)])
        async def handle(deed: Deed) -> None:
            message = f"hopeless {deed.n}"
            raise ValueError(message)

        adapter.refused.add("dead")
        async with bench.consuming(bus):
            await bench.publish(channel, [Deed(n=0).outgoing()])
            await bench.log.count(1, "alarm")
        assert await bench.letters(channel) == []
        async with bench.acting("next", Plan(channel=channel)):
            await bench.log.all_of({"0"}, "ack", who="next")
        assert [note.attempt for note in bench.log.of("end")] == [1]
        await asyncio.sleep(0)
        assert await bench.letters(channel) == []


def _is_ready(bus: Bus) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return bus.ready

    return ready
