"""
A message as NATS carries it: headers of one value each, in printable ASCII, and a payload.

What NATS cannot carry so (bytes, a name twice, blanks at the ends, other characters), and every name that would act on the
server (`Nats-...`) or on us, goes into one packed header and comes out again as it was sent.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes

from brokerkit.message import Header, Message
from brokerkit.packing import NAME, pack, unpack

__all__ = ["AFTER", "Receipt", "after_of", "decode", "encode", "head_of", "headers_in", "read_receipt"]

AFTER = "bk-after"
"""Milliseconds, counted from the server's time of storing, before which a message of an inlet is not handed out."""

_KEY = "bk-key"
_CONTENT_TYPE = "content-type"
_COPY_ID = "Nats-Msg-Id"
_OURS = frozenset({AFTER, _KEY, _CONTENT_TYPE, NAME})
_SERVERS = "nats-"
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
_ID = re.compile(r"[!-~]{1,200}")
_V1 = 9
_SAFE = "!#$&'()*+,/:;=?@[]"
_AS_IT_IS = re.compile(rb"[0-9A-Za-z_.~-]*")
_DIGITS = 15


def carried(name: str, value: str) -> bool:
    """Say whether NATS brings a header back unchanged, and nobody acts on it."""
    lowered = name.lower()
    return (
        lowered not in _OURS
        and not lowered.startswith(_SERVERS)
        and lowered not in {"status", "description"}
        and _NAME.fullmatch(name) is not None
        and _VALUE.fullmatch(value) is not None
    )


def encode(message: Message, *, scope: str = "", after: float = 0) -> dict[str, str]:
    """
    Return the headers of a message for the wire.

    scope: goes before the copy's id, so that two groups' copies in one stream are never taken for one. after: seconds.
    """
    headers: dict[str, str] = {}
    if message.headers:
        native, packed = pack(message.headers, carried)
        headers.update(native)
        if packed is not None:
            headers[NAME] = packed
    if message.key is not None:
        headers[_KEY] = _quoted_bytes(message.key)
    if message.content_type is not None:
        headers[_CONTENT_TYPE] = _quoted(message.content_type)
    if message.copy_id is not None:
        headers[_COPY_ID] = _named(scope, message.copy_id)
    if after > 0:
        headers[AFTER] = str(-int(-after * 1000 // 1))
    return headers


def _quoted_bytes(key: bytes) -> str:
    return key.decode() if _AS_IT_IS.fullmatch(key) else quote_from_bytes(key, _SAFE)


@lru_cache(maxsize=1000)
def _quoted(text: str) -> str:
    made = quote_from_bytes(text.encode("utf-8", "surrogatepass"), " " + _SAFE)
    return made if made == made.strip() else made.replace(" ", "%20")


def _named(scope: str, copy_id: str) -> str:
    made = f"{scope}/{copy_id}" if scope else copy_id
    if _ID.fullmatch(made):
        return made
    return f"{scope}#{hashlib.blake2b(copy_id.encode('utf-8', 'surrogatepass'), digest_size=20).hexdigest()}"


def head_of(headers: Mapping[str, str]) -> bytes:
    """Return headers as they are on the wire; with the body they count towards the server's `max_payload`."""
    lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
    return f"NATS/1.0\r\n{''.join(lines)}\r\n".encode()


def decode(headers: Iterable[tuple[str, str]], body: bytes) -> Message:
    """Return the message that arrived; the server's own headers and ours of the wire are not shown."""
    key: bytes | None = None
    content_type: str | None = None
    packed: str | None = None
    native: list[Header] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered.startswith(_SERVERS) or lowered == AFTER:
            continue
        if lowered == _KEY:
            key = unquote_to_bytes(value) if "%" in value else value.encode()
        elif lowered == _CONTENT_TYPE:
            content_type = unquote_to_bytes(value).decode("utf-8", "replace") if "%" in value else value
        elif lowered == NAME:
            packed = value
        else:
            native.append((name, value))
    return Message(
        body=body,
        content_type=content_type,
        key=key,
        headers=unpack(native, packed) if packed or native else (),
    )


def after_of(headers: Mapping[str, str] | None) -> float:
    """Return the seconds that a message of an inlet has to wait after it was stored; odd values count as none."""
    value = (headers or {}).get(AFTER, "")
    return int(value) / 1000 if value.isascii() and value.isdigit() and len(value) <= _DIGITS else 0.0


def headers_in(encoded: str | None) -> list[tuple[str, str]]:
    """Return the headers of a message as the server's API shows it."""
    found: list[tuple[str, str]] = []
    for line in base64.b64decode(encoded or "").split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            found.append((name.strip().decode("ascii", "replace"), value.strip().decode("utf-8", "replace")))
    return found


class Receipt(NamedTuple):
    """What the reply subject of a delivery says. stored: the server's time in nanoseconds."""

    deliveries: int
    seq: int
    stored: int


def read_receipt(reply: str) -> Receipt:
    """Read a reply subject, of either form."""
    parts = reply.split(".")
    at = 4 if len(parts) == _V1 else 6
    return Receipt(int(parts[at]), int(parts[at + 1]), int(parts[at + 3]))
