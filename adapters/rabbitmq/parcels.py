"""
Messages as they go out: a parcel, and its frames.

The client writes one message at a time through two queues and builds each frame from objects. Here the three frames of a message
are laid out at once, byte for byte as the client would, so that many messages can leave in one write.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pamqp.encode
import pamqp.frame
from pamqp import commands

from brokerkit.errors import TooLarge

__all__ = ["Parcel", "frames_of"]

_FRAME_END = b"\xce"
_BODY_ROOM = 8
"""Bytes around the content of a frame."""

_HEAD = struct.Struct(">BHI")
_CONTENT = struct.Struct(">HHQH")
_BASIC = 60
_HAS_TYPE, _HAS_HEADERS, _HAS_MODE, _HAS_ID = 0x8000, 0x2000, 0x1000, 0x0080
_PERSISTENT = b"\x02"
_LONGEST_NAME = 128


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """One message as it goes out, and where to. Mandatory: it must reach a queue, else `NotFound`."""

    exchange: str
    key: str
    body: bytes
    content_type: str | None
    headers: dict[str, Any]
    mandatory: bool = False


def frames_of(parcel: Parcel, message_id: str, number: int, largest: int) -> bytes:
    """
    Return the frames that publish a parcel, persistent, on the channel of that number; no frame is larger than `largest` bytes.

    0 is no limit. Raises `TooLarge` for headers that do not fit into one frame, and `TypeError`, `ValueError` or
    `OverflowError` for what AMQP cannot carry.
    """
    flags = _HAS_HEADERS | _HAS_MODE | _HAS_ID
    content_type = b""
    if parcel.content_type:
        flags |= _HAS_TYPE
        content_type = _short(parcel.content_type)
    body = parcel.body
    content = b"".join(
        (
            _CONTENT.pack(_BASIC, 0, len(body), flags),
            content_type,
            _table(parcel.headers),
            _PERSISTENT,
            _short(message_id),
        )
    )
    room = largest - _BODY_ROOM if largest > _BODY_ROOM else max(len(body), len(content))
    if len(content) > room:  # they cannot be split, and the broker would close the connection
        reason = f"the headers need a frame of {len(content) + _BODY_ROOM} bytes; this connection's are at most {largest}"
        raise TooLarge(reason)
    parts = [
        _method(number, parcel.exchange, parcel.key, parcel.mandatory),
        _HEAD.pack(2, number, len(content)),
        content,
        _FRAME_END,
    ]
    for start in range(0, len(body), room):
        piece = body[start : start + room]
        parts += (_HEAD.pack(3, number, len(piece)), piece, _FRAME_END)
    return b"".join(parts)


@lru_cache(1024)
def _method(number: int, exchange: str, key: str, mandatory: bool) -> bytes:
    publish = commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    return pamqp.frame.marshal(publish, number)


def _short(text: str) -> bytes:
    encoded = text.encode()
    return bytes((len(encoded),)) + encoded


def _table(headers: Mapping[str, Any]) -> bytes:
    """Lay out a table in the order of the client, which sorts it; what is not text or has a long name it does itself."""
    parts: list[bytes] = []
    for name in sorted(headers):
        value = headers[name]
        encoded = name.encode()
        if type(value) is not str or len(encoded) > _LONGEST_NAME:
            return pamqp.encode.field_table(dict(headers))
        text = value.encode()
        parts += (bytes((len(encoded),)), encoded, b"S", len(text).to_bytes(4, "big"), text)
    table = b"".join(parts)
    return len(table).to_bytes(4, "big") + table
