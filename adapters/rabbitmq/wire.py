"""
Between a message of ours and the properties and headers of AMQP.

Text headers travel as they are, so that others can read them. What AMQP, the client or the broker would lose or act on is
packed: bytes, repeated names, and every name that begins with `x-` or is `CC` or `BCC` (the broker routes by those, and
a forged `x-death` makes it drop a copy in silence). No number is ever written: the client sends floats with 32 bits.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from brokerkit import packing
from brokerkit.errors import BadHeader, TooLarge
from brokerkit.message import Header, Message

__all__ = ["HEADER_ROOM", "KEY", "WAIT", "arrivals_of", "headers_to_forward", "message_of", "table_of"]

KEY = "bk-key"
WAIT = "bk-wait"
_CODING = "bk-key-coding"
_TYPE = "bk-content-type"
_ORDER = "bk-order"
_OURS = frozenset({KEY, WAIT, _CODING, _TYPE, _ORDER, packing.NAME})
_ROUTES = frozenset({"cc", "bcc"})
_BROKERS = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
_BROKERS_PREFIXES = ("x-first-death-", "x-last-death-")
_COUNT = "x-delivery-count"
_LONGEST_NAME = 128
_LONGEST_TYPE = 255

HEADER_ROOM = 120_000
"""Bytes of headers that fit into one frame of 131,072: a larger one closes the connection."""


def table_of(message: Message, wait: int = 0) -> tuple[str | None, dict[str, str]]:
    """
    Return content type and header table of a message that remains to wait so many milliseconds.

    Raises `TooLarge` if the headers do not fit into one frame, `BadHeader` for a name that AMQP cannot carry.
    """
    native, packed = packing.pack(message.headers, _carried)
    table = dict(native)
    if packed is not None:
        table[packing.NAME] = packed
    if len(native) > 1 and (order := _order_of([name for name, _ in native])):
        table[_ORDER] = order
    if message.key is not None:
        _put_key(table, message.key)
    if wait:
        table[WAIT] = str(wait)
    content_type = message.content_type
    if content_type is not None and not _is_plain_type(content_type):
        table[_TYPE] = json.dumps(content_type)
        content_type = None
    _check_room(table)
    return content_type, table


def message_of(content_type: str | None, table: Mapping[str, Any], body: bytes) -> Message:
    """Return the message that came with these properties; foreign types of header values become text."""
    if not table:
        return Message(body=body, content_type=content_type)
    native: list[Header] = [
        (name, value if isinstance(value, str | bytes) else _as_text(value))
        for name, value in sorted(table.items())
        if not _is_hidden(name)
    ]
    order = table.get(_ORDER)
    if isinstance(order, str):
        native = _in_order(native, order)
    packed = table.get(packing.NAME)
    if packed is not None and not isinstance(packed, str | bytes):
        packed = _as_text(packed)
    return Message(
        body=body,
        content_type=_read_type(table, content_type),
        key=_read_key(table),
        headers=packing.unpack(native, packed),
    )


def headers_to_forward(table: Mapping[str, Any], wait: int) -> dict[str, Any]:
    """Return the headers for the next hop of a copy: what the broker has added is gone, the rest as it came."""
    kept = {name: value for name, value in table.items() if name != WAIT and not _is_brokers(name.lower())}
    if wait:
        kept[WAIT] = str(wait)
    return kept


def arrivals_of(table: Mapping[str, Any], *, redelivered: bool) -> int | None:
    """
    Return how often this copy has been handed out, this time included, or None where the queue does not count.

    Quorum queues count from 3.8 on what came back by a closed channel or connection and by `basic.reject`; `basic.nack`
    counts below 4.3 only. A classic queue that was adopted has no count. Only the broker's word is taken: on a first
    delivery the header may be the sender's.
    """
    if not redelivered:
        return 1
    count = table.get(_COUNT)
    return count + 1 if isinstance(count, int) and count >= 0 else None


def _carried(name: str, value: str) -> bool:
    lowered = name.lower()
    if lowered.startswith("x-") or lowered in _ROUTES or lowered in _OURS or len(name) > _LONGEST_NAME:
        return False
    return value.isascii() or _is_encodable(value)


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_brokers(lowered: str) -> bool:
    return lowered in _BROKERS or lowered.startswith(_BROKERS_PREFIXES)


def _is_hidden(name: str) -> bool:
    lowered = name.lower()
    return lowered in _OURS or _is_brokers(lowered)


def _order_of(names: list[str]) -> str:
    """Return where each name stands in the sorted table, or nothing if they are sorted: the client sorts it."""
    ordered = sorted(names)
    if ordered == names:
        return ""
    places = {name: place for place, name in enumerate(ordered)}
    return ",".join(str(places[name]) for name in names)


def _in_order(native: list[Header], order: str) -> list[Header]:
    places = order.split(",")
    if sorted(places) != sorted(map(str, range(len(native)))):
        return native
    return [native[int(place)] for place in places]


def _put_key(table: dict[str, str], key: bytes) -> None:
    """Write the key as text where it is text: other programs, and the hash exchange, read it."""
    try:
        table[KEY] = key.decode()
    except UnicodeDecodeError:
        table[KEY] = base64.b64encode(key).decode()
        table[_CODING] = "base64"


def _read_key(table: Mapping[str, Any]) -> bytes | None:
    key = table.get(KEY)
    if key is None:
        return None
    if isinstance(key, bytes):
        return key
    text = key if isinstance(key, str) else _as_text(key)
    if table.get(_CODING) == "base64":
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            pass
    return text.encode("utf-8", "surrogatepass")


def _is_plain_type(content_type: str) -> bool:
    return 0 < len(content_type) <= _LONGEST_TYPE and content_type.isascii() and content_type.isprintable()


def _read_type(table: Mapping[str, Any], content_type: str | None) -> str | None:
    packed = table.get(_TYPE)
    if isinstance(packed, str):
        try:
            loaded = json.loads(packed)
        except (ValueError, RecursionError):
            return content_type
        if isinstance(loaded, str):
            return loaded
    return content_type


def _check_room(table: Mapping[str, str]) -> None:
    room = 0
    for name, value in table.items():
        if not name:
            reason = "AMQP carries no header without a name"
            raise BadHeader(reason)
        room += len(name) + (len(value) if value.isascii() else len(value.encode())) + 6
    if room > HEADER_ROOM:
        reason = f"the headers need {room} bytes on the wire; at most {HEADER_ROOM}"
        raise TooLarge(reason)


def _as_text(value: object) -> str:
    """Return a foreign header value (a number, a table, a time) as text."""
    try:
        return json.dumps(value, default=str, ensure_ascii=False)
    except RecursionError:
        return ""
