"""
A message as an entry of a stream, and back.

The fields of an entry keep their order, may repeat and hold any bytes, so nothing has to be packed: `b` is the body, `k`
the key, `t` the content type, `h:NAME` a header of text and `x:NAME` one of bytes.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, pairwise

from brokerkit.message import Address, Message

__all__ = ["COPIES", "SLOTS", "Row", "base_of", "fields_of", "message_of", "position_of", "slot_of"]

SLOTS = 16  # streams of a channel; for ever, because a key must not move (place.lua has the same number)
COPIES = 16  # the number of the stream of copies among the streams of a place

_spread = count()


@dataclass(frozen=True, slots=True)
class Row:
    """One arrival as the claim gives it: where it lies, and how often it has come."""

    slot: int
    id: str
    arrivals: int
    returns: int
    mark: bytes | None
    fields: Sequence[bytes]


def base_of(prefix: str, channel: str) -> str:
    """Return what all keys of a channel begin with; no name can hold a brace or a colon."""
    return f"{prefix}:{{{channel}}}"


def slot_of(to: Address, message: Message) -> int:
    """Return the stream that a message goes into: by its key, and in turn if it has none."""
    if to.group is not None:
        return COPIES
    return (next(_spread) if message.key is None else zlib.crc32(message.key)) % SLOTS


def fields_of(message: Message) -> list[bytes]:
    """Return names and values in turn."""
    fields = [b"b", message.body]
    if message.key is not None:
        fields += [b"k", message.key]
    if message.content_type is not None:
        fields += [b"t", message.content_type.encode()]
    for name, value in message.headers:
        if isinstance(value, str):
            fields += [b"h:" + name.encode(), value.encode()]
        else:
            fields += [b"x:" + name.encode(), value]
    return fields


def message_of(fields: Sequence[bytes]) -> Message:
    """Return the message that was sent. Fields that are none of ours (somebody's own XADD) are passed over."""
    body, key, content_type = b"", None, None
    headers: list[tuple[str, str | bytes]] = []
    for name, value in list(pairwise(fields))[::2]:
        match name[:2]:
            case b"b":
                body = value
            case b"k":
                key = value
            case b"t":
                content_type = value.decode()
            case b"h:":
                headers.append((name[2:].decode(), value.decode()))
            case b"x:":
                headers.append((name[2:].decode(), value))
            case _:
                continue
    return Message(body=body, key=key, content_type=content_type, headers=tuple(headers))


def position_of(entry: str) -> tuple[str, int]:
    """Return the position that an id stands for: its second part numbers the messages of the channel."""
    return "0", int(entry.rpartition("-")[2])
