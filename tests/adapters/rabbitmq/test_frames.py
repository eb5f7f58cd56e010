"""Frames that would end the connection: a stranger's message must not stop a group."""

import datetime as dt
import struct
from typing import Any

import aiormq.abc
import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, header

from brokerkit.adapters.rabbitmq.frames import mended
from brokerkit.message import Address, Message
from tests.adapters.rabbitmq.broker import Adapters, fresh, inlet, join, raw_channel, raw_publish, sure
from tests.servers import RealServer

FILLER = "zzzz"
BAD = b"\xff\xfe\xc3\xfc"


def header_frame(**properties: Any) -> bytes:
    return pamqp.frame.marshal(header.ContentHeader(0, 1, commands.Basic.Properties(**properties)), 1)


def read(frame: bytes) -> Any:
    """Read a frame as the client does, mended."""
    return pamqp.frame.unmarshal(frame[:7] + mended(frame[0], frame[7:]))[2]


@pytest.mark.parametrize(
    "properties",
    [
        {"headers": {FILLER: "value", "good": "é"}},
        {"headers": {"nested": {FILLER: {FILLER: 1}}, "list": [{FILLER: True}, 1, "a"]}},
        {"content_type": FILLER, "headers": {"good": "é"}},
        {"correlation_id": FILLER, "message_id": FILLER, "app_id": FILLER, "headers": {"good": 2**40}},
    ],
)
def test_bytes_that_are_no_text_become_question_marks_and_the_rest_stays(properties: dict[str, Any]) -> None:
    frame = header_frame(**properties)
    broken = frame.replace(FILLER.encode(), BAD)
    with pytest.raises(Exception, match="decode"):
        pamqp.frame.unmarshal(broken)
    expected = pamqp.frame.unmarshal(frame.replace(FILLER.encode(), b"????"))[2]
    assert dict(read(broken).properties) == dict(expected.properties)  # type: ignore[union-attr]


def test_a_routing_key_that_is_no_text_can_be_read() -> None:
    deliver = commands.Basic.Deliver("tag", 200, True, "orders", FILLER)  # noqa: FBT003
    broken = pamqp.frame.marshal(deliver, 1).replace(FILLER.encode(), BAD)
    found = read(broken)
    assert (found.consumer_tag, found.delivery_tag, found.routing_key) == ("tag", 200, "????")


def test_a_time_beyond_all_years_is_the_beginning_of_time() -> None:
    when = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    frame = header_frame(timestamp=when, headers={"when": when})
    broken = frame.replace(struct.pack(">Q", int(when.timestamp())), b"\x7f" + b"\xff" * 7)
    found = read(broken).properties
    assert (found.timestamp.year, found.headers["when"].year) == (1970, 1970)


@pytest.mark.parametrize("depth", [49, 51, 300, 3000])
def test_tables_nested_deeper_than_the_client_can_read_are_left_out(depth: int) -> None:
    table = b""
    for _ in range(depth):
        table = b"\x01a" + b"F" + struct.pack(">I", len(table)) + table
    rest = struct.pack(">HHQH", 60, 0, 1, 0x2000) + struct.pack(">I", len(table)) + table + b"\xce"
    frame = struct.pack(">BHI", 2, 1, len(rest) - 1) + mended(2, rest)
    found = pamqp.frame.unmarshal(frame)[2]
    assert isinstance(found, header.ContentHeader)
    assert bool(found.properties.headers) == (depth < 50)


@given(st.binary(min_size=14, max_size=60), st.sampled_from([1, 2, 3, 8]))
def test_whatever_comes_the_length_stays_and_nothing_is_raised(rest: bytes, kind: int) -> None:
    assert len(mended(kind, rest)) == len(rest)


@given(st.dictionaries(st.text(max_size=20), st.text() | st.integers(-(2**31), 2**31 - 1) | st.booleans()))
def test_what_can_be_read_is_not_touched(headers: dict[str, Any]) -> None:
    frame = header_frame(headers=headers, content_type="text/plain", message_id="ü", delivery_mode=2)
    assert mended(frame[0], frame[7:]) is frame[7:] or mended(frame[0], frame[7:]) == frame[7:]


@pytest.mark.parametrize("depth", [45, 90, 200])
async def test_a_stranger_s_deep_table_stops_nobody(
    adapters: Adapters, rabbitmq_server: RealServer, depth: int
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    deep: dict[str, Any] = {}
    for _ in range(depth):
        deep = {"a": deep}
    async with raw_channel(rabbitmq_server.url) as raw:
        await raw_publish(raw, channel, "any", b"deep", deep=deep)
    await sure(adapter, Address(channel), [Message(body=b"next")])
    assert {each.message.body for each in await member.take(2, ack=True)} == {b"deep", b"next"}
    assert member.lost == []


async def test_a_stranger_s_message_that_the_client_cannot_read_stops_nobody(
    adapters: Adapters, rabbitmq_server: RealServer
) -> None:
    adapter = await adapters()
    channel = fresh()
    member = await join(adapter, inlet(channel))
    async with raw_channel(rabbitmq_server.url) as raw:
        frames = (
            commands.Basic.Publish(exchange=channel, routing_key=FILLER),
            header.ContentHeader(0, 1, commands.Basic.Properties(headers={FILLER: "v"}, app_id=FILLER)),
            body.ContentBody(b"x"),
        )
        payload = b"".join(pamqp.frame.marshal(frame, raw.number) for frame in frames)
        await raw.write_queue.put(
            aiormq.abc.ChannelFrame(payload=payload.replace(FILLER.encode(), BAD), should_close=False)
        )
        (delivery,) = await member.take(1, ack=True)
    assert delivery.message == Message(body=b"x", headers=(("????", "v"),))
    await sure(adapter, Address(channel), [Message(body=b"next")])
    assert [each.message.body for each in await member.take(1, ack=True)] == [b"next"]
    assert member.lost == []
