"""
A message as a row: key, head and body.

The head is compact JSON: the content type, then names and values of the headers in turn, in order and with
repeated names. A value that is bytes stands as a list with its base64 text.
"""

import json
from base64 import b64decode, b64encode
from binascii import crc32

from brokerkit.adapters.sqlite.schema import SLOTS
from brokerkit.errors import BadHeader
from brokerkit.message import Header, Message

__all__ = ["Row", "message_of", "row_of", "slot_of"]

Row = tuple[bytes | None, str | None, bytes]

_encode = json.JSONEncoder(separators=(",", ":")).encode


def row_of(message: Message) -> Row:
    """Return key, head and body. Raises `BadHeader` for a header value that is neither text nor bytes."""
    if message.content_type is None and not message.headers:
        return message.key, None, message.body
    head: list[object] = [message.content_type]
    for name, value in message.headers:
        head.append(name)
        head.append(_plain(name, value))
    return message.key, _encode(head), message.body


def message_of(key: bytes | None, head: str | None, body: bytes) -> Message:
    """Return the message that `row_of` was given."""
    if head is None:
        return Message(body=body, key=key)
    content_type, *rest = json.loads(head)
    names: list[str] = rest[::2]
    values: list[str | list[str]] = rest[1::2]
    headers: list[Header] = [
        (name, b64decode(value[0]) if isinstance(value, list) else value)
        for name, value in zip(names, values, strict=True)
    ]
    return Message(body=body, content_type=content_type, key=key, headers=tuple(headers))


def slot_of(key: bytes | None, seq: int) -> int:
    """Return the slot of a key, the same in every process and for ever; messages without a key are spread."""
    return (seq if key is None else crc32(key)) % SLOTS


def _plain(name: str, value: object) -> object:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return [b64encode(value).decode("ascii")]
    message = f"header {name!r}: the value is {type(value).__name__}; give str or bytes"
    raise BadHeader(message)
