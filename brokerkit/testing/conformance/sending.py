"""
Sending: what comes out is what went in, one outcome for each, and nothing goes where it does not belong.
"""

# A test's name is its sentence, its numbers are the expected ones.
# ruff: noqa: D102

import asyncio
from collections.abc import Sequence

import pytest

from brokerkit.errors import BadHeader, Closed, NotFound, SendError, TooLarge, Unroutable
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.bench import Bench, Member, bodies, inlet, text
from brokerkit.testing.conformance.gate import needs

__all__ = ["Sending"]

WEIRD = (
    "",
    " ",
    "a b",
    "/slash/",
    "back\\slash",
    "..",
    "%20%00",
    "+&?=#",
    '"quoted"',
    "'; DROP TABLE m; --",
    "{}[]()<>",
    "~!@#$^*|`",
    "a,b;c:d",
    "ümläut",
    "ﬁ e\u0301 é",
    "\u202eright to left",
    "漢字",
    "😀",
)
"""Eighteen strings that get lost where somebody escapes too much or too little."""


class Sending:
    """Tests of `send` and of what arrives."""

    async def test_a_message_arrives_as_it_was_sent(self, bench: Bench) -> None:
        member = await bench.member()
        sent = Message(
            body=b'{"total": 3}',
            content_type="application/cloudevents+json; charset=utf-8",
            key=b"o-17",
            headers=(("trace", "00-ab"), ("Zeta", "1"), ("alpha", "2")),
            copy_id="c-1",
        )
        await bench.send(await bench.adapter(), bench.name(), [sent])
        (delivery,) = await member.take(1, ack=True)
        assert delivery.message == sent.replace(copy_id=None)
        assert delivery.address == Address(bench.name())

    @pytest.mark.parametrize("value", WEIRD)
    async def test_a_weird_header_value_survives_or_is_refused(self, bench: Bench, value: str) -> None:
        member = await bench.member()
        adapter = await bench.adapter()
        (outcome,) = await adapter.send(
            Address(bench.name()), [Message(body=b"x", headers=(("weird", value),))]
        )
        if outcome is not None:
            assert isinstance(outcome, BadHeader)
            return
        (delivery,) = await member.take(1, ack=True)
        assert delivery.message.headers == (("weird", value),)

    async def test_header_values_of_bytes_stay_bytes(self, bench: Bench) -> None:
        headers = (("raw", b"\x00\xff\r\n"), ("text", "1"), ("empty", b""), ("like-text", b"1"))
        await self._survives(bench, Message(body=b"x", headers=headers))

    async def test_repeated_header_names_keep_number_and_order(self, bench: Bench) -> None:
        headers = (("a", "1"), ("b", "2"), ("a", "3"), ("A", "4"), ("a", "1"))
        await self._survives(bench, Message(body=b"x", headers=headers))

    async def test_thirty_headers_survive(self, bench: Bench) -> None:
        headers = tuple((f"h-{number}", "v" * number) for number in range(30))
        await self._survives(bench, Message(body=b"x", headers=headers))

    @pytest.mark.parametrize(
        "body", [b"", b"null", b"\xff\xfe\x80", b"\x00", b'{"broken', bytes(range(256)) * 40]
    )
    async def test_any_body_survives(self, bench: Bench, body: bytes) -> None:
        await self._survives(bench, Message(body=body))

    @pytest.mark.parametrize("key", [None, b"", b"k", b"\x00\xff'\"", b"k" * 1024])
    async def test_any_key_survives(self, bench: Bench, key: bytes | None) -> None:
        await self._survives(bench, Message(body=b"x", key=key))

    @pytest.mark.parametrize("content_type", [None, "", "text/plain"])
    async def test_any_content_type_survives(self, bench: Bench, content_type: str | None) -> None:
        await self._survives(bench, Message(body=b"x", content_type=content_type))

    @needs("max_message")
    async def test_a_message_at_the_limit_arrives_and_one_byte_more_is_refused(self, bench: Bench) -> None:
        member = await bench.member()
        head = Message(body=b"", key=b"k", headers=(("a", "ü"), ("b", b"\xff")))
        most = head.replace(body=b"x" * (bench.capabilities.max_message - head.size))
        outcomes = await bench.first.send(Address(bench.name()), [most, most.replace(body=most.body + b"x")])
        assert outcomes[0] is None
        assert isinstance(outcomes[1], TooLarge)
        (delivery,) = await member.take(1, ack=True)
        assert delivery.message == most
        await member.nothing()

    @needs("max_message")
    async def test_one_that_is_too_large_does_not_harm_its_neighbours(self, bench: Bench) -> None:
        member = await bench.member()
        large = Message(
            body=b"", headers=(("a", "x" * 40_000), ("b", b"x" * (bench.capabilities.max_message - 40_000)))
        )
        outcomes = await bench.first.send(Address(bench.name()), [text("1"), large, text("2")])
        assert [type(outcome) for outcome in outcomes] == [type(None), TooLarge, type(None)]
        assert sorted(bodies(await member.take(2, ack=True))) == ["1", "2"]

    async def test_a_batch_has_one_outcome_for_each_and_all_arrive(self, bench: Bench) -> None:
        member = await bench.member()
        sent = [str(number) for number in range(250)]
        await bench.send(bench.first, bench.name(), sent)
        assert sorted(bodies(await member.take(250, ack=True)), key=int) == sent

    async def test_an_empty_batch_has_no_outcomes(self, bench: Bench) -> None:
        assert list(await bench.first.send(Address(bench.name()), [])) == []

    async def test_concurrent_publishers_and_subscribers_lose_nothing(self, bench: Bench) -> None:
        publishers = [await bench.adapter() for _ in range(3)]
        members = [await bench.member(adapter=publishers[number % 3]) for number in range(5)]
        sent = [f"{sender}-{number}" for sender in range(10) for number in range(50)]
        taken: list[str] = []
        enough = asyncio.Event()

        async def publish(sender: int) -> None:
            for number in range(50):
                await bench.send(publishers[sender % 3], bench.name(), [f"{sender}-{number}"])

        async def consume(member: Member) -> None:
            while batch := await member.subscription.receive(7):
                await member.ack(batch)
                taken.extend(bodies(batch))
                if len(taken) >= len(sent):
                    enough.set()

        async with asyncio.timeout(bench.patience * 2), asyncio.TaskGroup() as group:
            for member in members:
                group.create_task(consume(member))
            for sender in range(10):
                group.create_task(publish(sender))
            await enough.wait()
            for member in members:
                await member.close()
        assert sorted(taken) == sorted(sent)

    async def test_three_hundred_concurrent_sends_all_arrive(self, bench: Bench) -> None:
        member = await bench.member()
        sent = [str(number) for number in range(300)]
        await asyncio.gather(*(bench.send(bench.first, bench.name(), [body]) for body in sent))
        assert sorted(bodies(await member.take(300, ack=True)), key=int) == sent

    async def test_another_event_loop_may_send(self, bench: Bench) -> None:
        member = await bench.member()
        process = await bench.elsewhere()
        waiting = asyncio.create_task(member.take(1, ack=True))
        await process.send(Address(bench.name()), [text("1")])
        assert bodies(await waiting) == ["1"]

    async def test_twenty_channels_do_not_mix(self, bench: Bench) -> None:
        channels = [bench.name(f"c{number}") for number in range(20)]
        members = [await bench.member(channel, adapter=bench.first) for channel in channels]
        for channel in channels:
            await bench.send(bench.first, channel, [channel] * 3)
        for channel, member in zip(channels, members, strict=True):
            assert bodies(await member.take(3, ack=True)) == [channel] * 3

    async def test_similar_and_long_names_do_not_mix(self, bench: Bench) -> None:
        names = ["a-b.c", "a.b-c", "ab.c", "a-b-c", "a.b.c", "0", "a0-1", "dlq", "x" * 70]
        pairs = [(f"{channel}-{bench.run}", group) for channel in names for group in ("a-b", "a.b", "ab")]
        members = [await bench.member(channel, group, adapter=bench.first) for channel, group in pairs]
        for channel, group in pairs:
            await bench.send(bench.first, inlet(channel, group), [f"{channel} {group}"])
        for (channel, group), member in zip(pairs, members, strict=True):
            assert bodies(await member.take(1, ack=True)) == [f"{channel} {group}"]

    async def test_must_route_is_unroutable_without_a_group_and_harmless_with_one(self, bench: Bench) -> None:
        messages = [text("1"), text("2")]
        outcomes = await bench.first.send(Address(bench.name()), messages, must_route=True)
        assert [type(outcome) for outcome in outcomes] == [Unroutable, Unroutable]
        member = await bench.member()
        assert list(await bench.first.send(Address(bench.name()), [text("3")], must_route=True)) == [None]
        assert bodies(await member.take(1, ack=True)) == ["3"]
        await member.nothing()

    async def test_a_copy_for_a_missing_group_is_refused_or_kept_for_it(self, bench: Bench) -> None:
        (outcome,) = await bench.first.send(inlet(bench.name(), "g"), [text("early")])
        member = await bench.member()
        if outcome is None:
            assert bodies(await member.take(1, ack=True)) == ["early"]
        else:
            assert isinstance(outcome, NotFound)
            await member.nothing()

    async def test_what_a_message_says_does_not_move_it(self, bench: Bench) -> None:
        member = await bench.member()
        dead = await bench.member(place="dead")
        forged = Message(
            body=b"x",
            headers=(
                ("bk-v", "1"),
                ("bk-attempt", "9"),
                ("bk-group", "g"),
                ("bk-hop", "3"),
                ("x-death", "a lie"),
                ("Nats-Msg-Id", "same"),
            ),
        )
        await bench.send(bench.first, bench.name(), [forged, forged])
        first, second = await member.take(2, ack=True)
        assert (first.address, second.address) == (Address(bench.name()), Address(bench.name()))
        assert first.message.headers == forged.headers
        await dead.nothing()

    async def test_send_on_a_closed_adapter_is_closed(self, bench: Bench) -> None:
        adapter = await bench.adapter()
        await adapter.close()
        try:
            outcomes: Sequence[SendError | None] = await adapter.send(
                Address(bench.name()), [text("1"), text("2")]
            )
        except Closed:
            return
        assert [type(outcome) for outcome in outcomes] == [Closed, Closed]

    async def test_a_cancelled_send_harms_no_other(self, bench: Bench) -> None:
        member = await bench.member()
        for number in range(40):
            doubtful = asyncio.create_task(
                bench.first.send(Address(bench.name()), [text(f"doubtful-{number}")])
            )
            await asyncio.sleep(0)
            doubtful.cancel()
            sure = asyncio.create_task(bench.first.send(Address(bench.name()), [text(f"sure-{number}")]))
            await asyncio.gather(doubtful, return_exceptions=True)
            assert list(await sure) == [None]
        await bench.send(bench.first, bench.name(), ["last"])
        taken = await member.until("last")
        taken += await member.some(0.1)
        sure_ones = [body for body in bodies(taken) if body.startswith("sure")]
        assert sorted(sure_ones) == sorted(f"sure-{number}" for number in range(40))
        assert len(set(bodies(taken))) == len(taken)

    async def _survives(self, bench: Bench, message: Message) -> None:
        member = await bench.member()
        await bench.send(bench.first, bench.name(), [message])
        (delivery,) = await member.take(1, ack=True)
        assert delivery.message == message
