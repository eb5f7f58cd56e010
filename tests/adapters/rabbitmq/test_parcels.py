"""Frames that are laid out here are, byte for byte, those that the client would write."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body, commands, header

from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.parcels import Parcel, frames_of
from brokerkit.errors import TooLarge

NAMES = st.text(min_size=1, max_size=40)
VALUES = (
    st.text()
    | st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.none()
    | st.dictionaries(NAMES, st.text())
)
PARCELS = st.builds(
    Parcel,
    exchange=st.text("abc.-", max_size=40),
    key=st.text("abc.-", max_size=40),
    body=st.binary(max_size=3000),
    content_type=st.none() | st.text("abc/+", max_size=255),
    headers=st.dictionaries(NAMES, st.text()) | st.dictionaries(NAMES, VALUES),
    mandatory=st.booleans(),
)


def by_the_client(parcel: Parcel, message_id: str, number: int, largest: int) -> bytes:
    properties = commands.Basic.Properties(
        content_type=parcel.content_type, headers=parcel.headers, delivery_mode=2, message_id=message_id
    )
    room = largest - 8 if largest else max(len(parcel.body), 1)
    pieces = [parcel.body[at : at + room] for at in range(0, len(parcel.body), room)]
    frames: list[Any] = [
        commands.Basic.Publish(exchange=parcel.exchange, routing_key=parcel.key, mandatory=parcel.mandatory),
        header.ContentHeader(0, len(parcel.body), properties),
        *(body.ContentBody(piece) for piece in pieces),
    ]
    return b"".join(pamqp.frame.marshal(frame, number) for frame in frames)


def sizes_of(frames: bytes) -> list[int]:
    sizes: list[int] = []
    while frames:
        sizes.append(int.from_bytes(frames[3:7], "big") + 8)
        frames = frames[sizes[-1] :]
    return sizes


@given(
    PARCELS,
    st.text("0123456789abcdef-", min_size=1, max_size=60),
    st.integers(1, 65535),
    st.integers(200, 4096) | st.just(0),
)
def test_frames_are_those_of_the_client(parcel: Parcel, message_id: str, number: int, largest: int) -> None:
    expected = by_the_client(parcel, message_id, number, largest)
    if largest and max(sizes_of(expected)) > largest:
        with pytest.raises(TooLarge):
            frames_of(parcel, message_id, number, largest)
    else:
        assert frames_of(parcel, message_id, number, largest) == expected


def test_without_a_limit_of_frames_a_body_is_one_frame() -> None:
    parcel = Parcel("e", "k", b"x" * 300_000, None, {"n": "x" * 200_000})
    assert sizes_of(frames_of(parcel, "id", 1, 0))[2:] == [300_008]
    empty = Parcel("e", "k", b"", None, {})
    assert len(sizes_of(frames_of(empty, "id", 1, 0))) == 2


def test_headers_that_fit_no_frame_are_refused_before_anything_is_written() -> None:
    fits, too_large = (Parcel("e", "k", b"", None, {"n": "x" * size}) for size in (4059, 4060))
    assert max(sizes_of(frames_of(fits, "id", 1, 4096))) == 4096
    with pytest.raises(TooLarge, match="4096"):
        frames_of(too_large, "id", 1, 4096)


@pytest.mark.parametrize(
    "parcel",
    [
        Parcel("e", "k", b"", "t" * 256, {}),
        Parcel("e", "k", b"", None, {"n": object()}),
        Parcel("e", "k", b"", None, {"n": "\ud800"}),
        Parcel("e", "k", b"", None, {"n": 1e300}),
    ],
)
def test_what_amqp_cannot_carry_is_refused_before_anything_is_written(parcel: Parcel) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        frames_of(parcel, "id", 1, 131072)


async def test_acks_are_those_of_the_client() -> None:
    written: list[bytes] = []
    raw: Any = SimpleNamespace(number=7, closing=asyncio.get_running_loop().create_future())
    raw.connection = SimpleNamespace(channels={7: raw})
    writer = SimpleNamespace(write=written.append, is_closing=lambda: False)
    transport: Any = SimpleNamespace(writer=writer)
    assert Channel(raw, transport).ack([(1, True), (2**40, False)])
    frames = [commands.Basic.Ack(1, multiple=True), commands.Basic.Ack(2**40)]
    assert written == [b"".join(pamqp.frame.marshal(frame, 7) for frame in frames)]
    raw.closing.cancel()
