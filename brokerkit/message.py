"""
What travels: bytes with a content type, a key and headers. Nothing here knows CloudEvents.

Header rules are the strictest that all brokers share, so that a message that is legal on one
is legal on all: names are visible ASCII, values are text without control characters, or bytes.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from brokerkit.errors import BadHeader

__all__ = ["Address", "Header", "Message", "check_headers"]

Header = tuple[str, str | bytes]

_NAME = re.compile(r"[!-9;-~]+")
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f]")
_MAX_HEADERS = 128
_MAX_HEADER_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """
    One message as the adapter carries it.

    `key` and header order, repetition and bytes survive the way through every adapter.
    `copy_id` names this very copy: a broker that drops repeated sends may compare it, so it
    changes with every hop while the event's id stays. It is never handed to a handler.
    """

    body: bytes
    content_type: str | None = None
    key: bytes | None = None
    headers: tuple[Header, ...] = ()
    copy_id: str | None = None

    def header(self, name: str) -> str | bytes | None:
        """Return the value of the first header called `name` (exact case), or None."""
        for have, value in self.headers:
            if have == name:
                return value
        return None

    def without(self, names: Iterable[str]) -> tuple[Header, ...]:
        """Return the headers less those whose name is in `names`."""
        gone = frozenset(names)
        return tuple(pair for pair in self.headers if pair[0] not in gone)

    def replace(self, **changes: Any) -> "Message":
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    @property
    def size(self) -> int:
        """Return the bytes that count towards a broker's limit: body, key, names and values of headers."""
        total = len(self.body) + len(self.key or b"")
        for name, value in self.headers:
            total += _bytes_of(name) + (len(value) if isinstance(value, bytes) else _bytes_of(value))
        return total


@dataclass(frozen=True, slots=True)
class Address:
    """
    Where a message goes or came from.

    A channel alone reaches every group. With `group` and `place` it is that group's own:
    `inlet` (reaches this group only) or `dead` (its dead letters).
    """

    channel: str
    group: str | None = None
    place: str | None = None

    def __post_init__(self) -> None:
        if (self.group is None) != (self.place is None):
            message = f"an address has both group and place or neither: {self!r}"
            raise ValueError(message)
        if self.place not in (None, "inlet", "dead"):
            message = f"a place is 'inlet' or 'dead', not {self.place!r}"
            raise ValueError(message)

    def __str__(self) -> str:
        return self.channel if self.group is None else f"{self.channel}/{self.group}/{self.place}"


def check_headers(headers: Iterable[tuple[object, object]]) -> tuple[Header, ...]:
    """
    Check headers that a user gives and return them as the tuple that a message holds.

    Raises `BadHeader` that names the header: a name that is not visible ASCII or holds a colon, a
    value that is neither `str` nor `bytes`, control characters in a text value (CR and LF would
    inject, NUL is refused by SQS and PostgreSQL), lone surrogates, more than 128 headers or 64 KiB of them.
    """
    checked: list[Header] = []
    total = 0
    for name, value in headers:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            message = f"header name {name!r}: use visible ASCII without colon or space"
            raise BadHeader(message)
        if isinstance(value, str):
            total += len(name) + _text_size(name, value)
            checked.append((name, value))
        elif isinstance(value, bytes):
            total += len(name) + len(value)
            checked.append((name, value))
        else:
            message = f"header {name!r}: the value is {type(value).__name__}; give str or bytes"
            raise BadHeader(message)
    if len(checked) > _MAX_HEADERS or total > _MAX_HEADER_BYTES:
        message = f"{len(checked)} headers of {total} bytes: at most {_MAX_HEADERS} headers and {_MAX_HEADER_BYTES} bytes"
        raise BadHeader(message)
    return tuple(checked)


def _bytes_of(text: str) -> int:
    """Return the length of a text in UTF-8; a stranger's lone surrogate counts too."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _text_size(name: str, value: str) -> int:
    if _CONTROL.search(value):
        message = (
            f"header {name!r}: control characters are not allowed in a text value; give bytes, or encode it"
        )
        raise BadHeader(message)
    try:
        return len(value.encode())
    except UnicodeEncodeError as error:
        message = f"header {name!r}: the value holds a lone surrogate and cannot be encoded; give bytes"
        raise BadHeader(message) from error
