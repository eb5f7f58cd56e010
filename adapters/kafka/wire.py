"""
A message as a Kafka record, and back.

Body, key and headers travel as they are; the content type as the header `content-type`, first of all, which is where
CloudEvents has it. A header's text goes as UTF-8 and comes back as text; where bytes would be taken for text, or a header
called `content-type` for the content type, one more header says so (`bk-packed`). What waits carries `bk-wait` last:
the seconds that are left behind its rung. Neither of the two is ever shown.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, Protocol

from brokerkit.errors import BadHeader
from brokerkit.message import Header, Message

__all__ = ["OVERHEAD", "Raw", "Record", "read", "read_waiting", "size_of", "write"]

CONTENT_TYPE = "content-type"
PACKED = "bk-packed"
WAIT = "bk-wait"
OVERHEAD = 128
"""Bytes of a batch and a record around its fields, at the most, without headers."""

_PER_HEADER = 10
_LONGEST_WAIT = 24 * 3600.0
_NOTE = re.compile(r"(n?)((?:\d{1,6}(?:,\d{1,6})*)?)")

RawHeaders = list[tuple[str, bytes]]
Raw = tuple[bytes, bytes | None, RawHeaders]
"""Value, key and headers of a record to be sent."""


class Record(Protocol):
    """A record as the client hands it out."""

    @property
    def offset(self) -> int:
        """Where it stands."""
        ...

    @property
    def timestamp(self) -> int:
        """Milliseconds of the broker's clock, on our own topics."""
        ...

    @property
    def key(self) -> bytes | None:
        """The key."""
        ...

    @property
    def value(self) -> bytes | None:
        """The body; None is a tombstone."""
        ...

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """The headers, in order."""
        ...


def write(message: Message, wait: float | None) -> Raw:
    """
    Return the record of a message. wait: what is left behind its rung, in seconds; None where nothing waits.

    Raises `BadHeader` for a text that cannot be encoded.
    """
    headers: RawHeaders = []
    ambiguous: list[str] = []
    note = False
    bare = False
    if message.content_type is not None:
        headers.append((CONTENT_TYPE, _encoded(CONTENT_TYPE, message.content_type)))
    for index, (name, value) in enumerate(message.headers):
        if isinstance(value, str):
            headers.append((name, _encoded(name, value)))
        else:
            headers.append((name, value))
            if _is_text(value):
                ambiguous.append(str(index))
        bare = bare or name == CONTENT_TYPE
        note = note or name == PACKED
    bare = bare and message.content_type is None
    if note or ambiguous or bare:
        headers.append((PACKED, ("n" if bare else "").encode() + ",".join(ambiguous).encode()))
    if wait is not None:
        headers.append((WAIT, f"{wait:.3f}".encode()))
    return message.body, message.key, headers


def size_of(raw: Raw) -> int:
    """Return the bytes that a record of its own takes in the log, at the most."""
    value, key, headers = raw
    total = OVERHEAD + len(value) + len(key or b"")
    for name, content in headers:
        total += len(name.encode()) + len(content) + _PER_HEADER
    return total


def read(record: Record) -> Message:
    """Return the message that a record holds; never raises. On the hot path: nothing in it is asked for twice."""
    raw = record.headers
    if not raw:
        return _made(record.value or b"", None, record.key, ())
    if raw[-1][0] == PACKED:
        return _message(record, raw)
    try:
        headers = [(name, value.decode()) for name, value in raw]  # type: ignore[union-attr]
    except (UnicodeDecodeError, AttributeError):  # bytes, or a header without a value
        return _message(record, raw)
    content_type: str | None = None
    for index, (name, value) in enumerate(headers):
        if name == CONTENT_TYPE:
            content_type = value
            del headers[index]
            break
    return _made(record.value or b"", content_type, record.key, tuple(headers))


def read_waiting(record: Record) -> tuple[Message, float]:
    """Return the message of a record in an inlet or on a rung, and the seconds that it waits behind the rung."""
    raw = record.headers
    if not raw or raw[-1][0] != WAIT:
        return read(record), 0.0
    return _message(record, raw[:-1]), _seconds(raw[-1][1])


_NEW: Any = Message.__new__
_BODY, _TYPE, _KEY, _HEADERS, _COPY_ID = (
    vars(Message)[name].__set__ for name in ("body", "content_type", "key", "headers", "copy_id")
)


def _made(body: bytes, content_type: str | None, key: bytes | None, headers: tuple[Header, ...]) -> Message:
    """Make a message by its slots: a frozen dataclass makes itself at three times the price."""
    message: Message = _NEW(Message)
    _BODY(message, body)
    _TYPE(message, content_type)
    _KEY(message, key)
    _HEADERS(message, headers)
    _COPY_ID(message, None)
    return message


def _message(record: Record, raw: Sequence[tuple[str, bytes | None]]) -> Message:
    bare = False
    binary: frozenset[int] = frozenset()
    if raw and raw[-1][0] == PACKED:
        noted = _noted(raw[-1][1], len(raw) - 1)
        if noted is not None:
            bare, binary = noted
            raw = raw[:-1]
    content_type: str | None = None
    headers: list[Header] = []
    for name, value in raw:
        if name == CONTENT_TYPE and content_type is None and not bare and value is not None:
            try:
                content_type = value.decode()
                continue
            except UnicodeDecodeError:
                pass
        headers.append((name, _decoded(value) if len(headers) not in binary else value or b""))
    return Message(
        body=record.value or b"", content_type=content_type, key=record.key, headers=tuple(headers)
    )


def _noted(value: bytes | None, count: int) -> tuple[bool, frozenset[int]] | None:
    """Read our note; None for what a stranger has put under its name."""
    match = _NOTE.fullmatch((value or b"?").decode("ascii", "replace")) if value != b"" else None
    if value == b"":
        return False, frozenset()
    if match is None:
        return None
    indexes = frozenset(map(int, match[2].split(","))) if match[2] else frozenset[int]()
    return (bool(match[1]), indexes) if max(indexes, default=0) < max(count, 1) else None


def _decoded(value: bytes | None) -> str | bytes:
    if value is None:
        return ""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _encoded(name: str, value: str) -> bytes:
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        message = f"header {name!r}: the value holds a lone surrogate and cannot be encoded; give bytes"
        raise BadHeader(message) from error


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _seconds(value: bytes | None) -> float:
    """Read what waits; a stranger's nonsense waits not at all."""
    try:
        seconds = float(value or b"0")
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WAIT) if math.isfinite(seconds) else 0.0
