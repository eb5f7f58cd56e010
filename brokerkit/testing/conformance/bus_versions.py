"""
Copies of other versions, as golden files: what version 1 wrote is understood for ever, what a later one writes is left alone.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102

import json
from importlib.resources import files
from typing import Any

from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.patterns import retry
from brokerkit.testing.conformance.actor import Deed
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.log import note_of

__all__ = ["Versions", "golden"]


def golden(version: int) -> dict[str, tuple[str, Message]]:
    """Return the copies of a version as they were written then: kind to (place, message)."""
    text = (files("brokerkit.testing.conformance") / f"copies-v{version}.json").read_text("utf-8")
    copies: dict[str, dict[str, Any]] = json.loads(text)
    return {kind: (str(copy["place"]), _message(copy)) for kind, copy in copies.items()}


def _message(copy: dict[str, Any]) -> Message:
    return Message(
        body=copy["body"].encode(),
        content_type=copy["content_type"],
        key=copy["key"].encode(),
        headers=tuple((name, value) for name, value in copy["headers"]),
    )


class Versions:
    """Tests of copies that other versions have made."""

    async def _send(self, bench: BusBench, channel: str, version: int, *kinds: str) -> None:
        copies = golden(version)
        for kind in kinds:
            place, message = copies[kind]
            await bench.send(bench.first, Address(channel, "g", place), [message])

    async def test_copies_of_version_one_are_handled_as_what_they_say(self, bench: BusBench) -> None:
        channel = bench.name()
        bus = await bench.bus()
        seen: dict[str, Delivery] = {}

        @bus.subscriber(channel, group="g", patterns=[retry(5)])
        async def handle(delivery: Delivery) -> None:
            seen[delivery.event.id] = delivery

        async with bench.consuming(bus):
            await self._send(bench, channel, 1, "retry", "redrive", "dead")
            await bench.log.all_of({"retry", "redrive"}, "ack")
            await bench.dead_letters(channel).redrive(["dead"])
            await bench.log.all_of({"dead"}, "ack")
        tried, redriven, dead = seen["retry"], seen["redrive"], seen["dead"]
        assert (tried.attempt, tried.run, tried.hop, tried.first, tried.alone) == (3, 1, 5, 1764072000.25, 1)
        assert [entry["n"] for entry in tried.story] == [1, 2]
        assert (redriven.attempt, redriven.run, redriven.hop, redriven.alone) == (1, 2, 1, 0)
        assert redriven.first > tried.first
        assert (dead.attempt, dead.run) == (1, 2)
        assert [entry.get("dead") for entry in dead.story] == [None, None, "exhausted"]
        assert {delivery.message.header("x-mine") for delivery in seen.values()} == {"1"}

    async def test_copies_of_a_later_version_are_returned_with_an_alarm_and_neither_acked_nor_dead_lettered(
        self, bench: BusBench
    ) -> None:
        channel = bench.name()
        bus = await bench.bus()

        @bus.subscriber(channel, group="g", concurrency=1)
        async def handle(_: Deed, delivery: Delivery) -> None:
            bench.log.add(note_of("begin", "bus", delivery))

        async with bench.consuming(bus):
            await self._send(bench, channel, 2, "retry")
            await self._send(bench, channel, 1, "retry", "redrive")
            await bench.log.all_of({"retry", "redrive"}, "ack")
            await bench.log.all_of({"retry-v2"}, "return")
            assert [note.detail for note in bench.log.of("alarm")] == ["too_new"]
        assert sorted(bench.log.ids("begin")) == ["redrive", "retry"]
        assert "retry-v2" not in bench.log.ids("ack", "dead", "retry")
        assert await bench.letters(channel) == []
        assert await bench.left(channel) in (0, 1)

    async def test_a_dead_letter_of_a_later_version_stays_where_it_is(self, bench: BusBench) -> None:
        channel = bench.name()
        await bench.found(channel)
        await self._send(bench, channel, 2, "dead")
        await self._send(bench, channel, 1, "dead")
        letters = bench.dead_letters(channel)
        assert [(outcome.id, outcome.result) for outcome in await letters.redrive()] == [("dead", "redriven")]
        assert [outcome.result for outcome in await letters.redrive(["dead-v2"])] == ["not_found"]
        member = await bench.member(channel, place="dead")
        (stays,) = await member.take(1)
        assert stays.message == golden(2)["dead"][1]
