"""Deliveries are taken out of what comes, whole and in order, and everything else reaches the client untouched."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pamqp.frame
from aiormq.connection import FrameReceiver
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import body, commands, header
from pamqp.heartbeat import Heartbeat

from brokerkit.adapters.rabbitmq.reader import Intake, Reader

OURS, THEIRS = 3, 4


def content(number: int, method: Any, pieces: list[bytes]) -> bytes:
    properties = commands.Basic.Properties(headers={"n": "1"}, delivery_mode=2)
    frames: list[Any] = [
        method,
        header.ContentHeader(0, sum(map(len, pieces)), properties),
        *map(body.ContentBody, pieces),
    ]
    return b"".join(pamqp.frame.marshal(frame, number) for frame in frames)


def delivery(number: int, tag: int, pieces: list[bytes]) -> bytes:
    return content(number, commands.Basic.Deliver("ctag", tag, tag % 2 == 0, "ex", "key"), pieces)


PIECES = st.lists(st.binary(min_size=1, max_size=30), max_size=3)
THINGS: st.SearchStrategy[tuple[str, list[bytes]]] = st.one_of(
    st.tuples(st.just("ours"), PIECES),
    st.tuples(st.just("theirs"), PIECES),
    st.tuples(st.just("returned"), PIECES),
    st.tuples(st.sampled_from(["beat", "qos", "cancel"]), st.just([])),
)


def on_the_wire(what: str, tag: int, pieces: list[bytes]) -> bytes:
    match what:
        case "ours":
            return delivery(OURS, tag, pieces)
        case "theirs":
            return delivery(THEIRS, tag, pieces)
        case "returned":
            return content(OURS, commands.Basic.Return(312, "NO_ROUTE", "ex", "key"), pieces)
        case "beat":
            return pamqp.frame.marshal(Heartbeat(), 0)
        case "qos":
            return pamqp.frame.marshal(commands.Basic.QosOk(), OURS)
        case _:
            return pamqp.frame.marshal(commands.Basic.Cancel("ctag"), OURS)


async def read_all(wire: bytes, cuts: list[int], taken: list[Any]) -> list[bytes]:
    """Feed bytes in pieces, and return the frames that the client gets, written again."""
    stream = asyncio.StreamReader()
    reader = Reader(stream)
    channel: Any = object()
    reader.give(OURS, Intake(channel, taken.append))

    async def feed() -> None:
        at = 0
        for cut in sorted(cuts):
            stream.feed_data(wire[at:cut])
            at = max(at, cut)
            await asyncio.sleep(0)
        stream.feed_data(wire[at:])
        stream.feed_eof()

    feeding = asyncio.create_task(feed())
    ours: Any = reader
    frames: list[bytes] = []
    receiver = FrameReceiver(ours)
    while not reader.at_eof():
        try:
            _, number, frame = await receiver.get_frame()
        except Exception:  # noqa: BLE001 - the end, where the last frames were ours
            break
        frames.append(pamqp.frame.marshal(frame, number))
    await feeding
    return frames


@settings(max_examples=50, deadline=None)
@given(st.lists(THINGS, max_size=12), st.data())
def test_in_whatever_pieces_it_comes_each_gets_its_own(
    things: list[tuple[str, list[bytes]]], data: st.DataObject
) -> None:
    parts = [on_the_wire(what, tag, pieces) for tag, (what, pieces) in enumerate(things)]
    wire = b"".join(parts)
    cuts = data.draw(st.lists(st.integers(0, len(wire)), max_size=8))
    taken: list[Any] = []
    frames = asyncio.run(read_all(wire, cuts, taken))
    assert b"".join(frames) == b"".join(
        part for part, (what, _) in zip(parts, things, strict=True) if what != "ours"
    )
    assert [
        (
            each.delivery.delivery_tag,
            each.delivery.redelivered,
            each.delivery.exchange,
            each.routing_key,
            each.body,
        )
        for each in taken
    ] == [
        (tag, tag % 2 == 0, "ex", "key", b"".join(pieces))
        for tag, (what, pieces) in enumerate(things)
        if what == "ours"
    ]
    assert all(each.header.properties.headers == {"n": "1"} for each in taken)


async def test_a_number_that_another_channel_has_taken_over_keeps_its_deliveries() -> None:
    stream = asyncio.StreamReader()
    reader = Reader(stream)
    taken: list[Any] = []
    channel: Any = object()
    old, new = Intake(channel, lambda _: None), Intake(channel, taken.append)
    reader.give(OURS, old)
    reader.give(OURS, new)
    reader.take(OURS, old)
    stream.feed_data(delivery(OURS, 1, [b"x"]) + pamqp.frame.marshal(Heartbeat(), 0))
    await reader.readexactly(1)
    assert [each.body for each in taken] == [b"x"]
    reader.take(OURS, new)
    stream.feed_data(delivery(OURS, 2, [b"y"]))
    await reader.readexactly(6)
    await reader.readexactly(1)
    assert await reader.readexactly(1) == b"\x01"  # the client's own again
    assert len(taken) == 1


async def test_a_stream_of_nothing_but_deliveries_is_a_heartbeat_for_the_client() -> None:
    stream = asyncio.StreamReader()
    reader = Reader(stream)
    now = [100.0]
    clock: Any = SimpleNamespace(time=lambda: now[0])
    reader._loop = clock
    reader._passed = 100.0
    taken: list[Any] = []
    channel: Any = object()
    reader.give(OURS, Intake(channel, taken.append))
    reading = asyncio.create_task(reader.readexactly(1))
    stream.feed_data(delivery(OURS, 1, [b"x"]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (len(taken), reading.done()) == (1, False)
    now[0] = 102.0
    stream.feed_data(delivery(OURS, 2, [b"x"]))
    assert await asyncio.wait_for(reading, 5) == b"\x08"
    assert (
        await reader.readexactly(6) + await reader.readexactly(1) == pamqp.frame.marshal(Heartbeat(), 0)[1:]
    )
    silent = asyncio.create_task(reader.readexactly(1))
    now[0] = 110.0
    await asyncio.sleep(0)
    assert not silent.done()  # and silence is none
    silent.cancel()


async def test_a_stream_that_never_pauses_is_a_heartbeat_too() -> None:
    now = [100.0]
    wire = b"".join(delivery(OURS, tag, [b"x" * 50_000]) for tag in range(1, 21))

    class Saturated:
        """A socket on which there is always more, cut in the middle of frames, a tenth of a second for each piece."""

        at = 0

        async def read(self, _: int) -> bytes:
            now[0] += 0.1
            piece = wire[self.at : self.at + 30_000]
            self.at += len(piece)
            return piece

    stream: Any = Saturated()
    reader = Reader(stream)
    clock: Any = SimpleNamespace(time=lambda: now[0])
    reader._loop = clock
    reader._passed = 100.0
    taken: list[Any] = []
    channel: Any = object()
    reader.give(OURS, Intake(channel, taken.append))
    for beats in range(1, 4):
        assert await reader.readexactly(1) == b"\x08"
        assert await reader.readexactly(6) + await reader.readexactly(1) == b"\0" * 6 + b"\xce"
        assert now[0] <= 100 + 1.5 * beats
    assert [each.delivery.delivery_tag for each in taken] == list(range(1, len(taken) + 1))
    assert {each.body for each in taken} == {b"x" * 50_000}


async def test_a_delivery_that_cannot_be_taken_does_not_end_the_connection() -> None:
    stream = asyncio.StreamReader()
    reader = Reader(stream)
    taken: list[Any] = []

    def take(raw: Any) -> None:
        taken.append(raw)
        if len(taken) == 1:
            raise RuntimeError

    channel: Any = object()
    reader.give(OURS, Intake(channel, take))
    stream.feed_data(
        delivery(OURS, 1, []) + delivery(OURS, 2, [b"a", b"b"]) + pamqp.frame.marshal(Heartbeat(), 0)
    )
    assert await reader.readexactly(1) == b"\x08"
    assert [each.body for each in taken] == [b"", b"ab"]
