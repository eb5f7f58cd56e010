"""
How a message travels: a text body, and one message attribute for all that is not text.

SQS takes ten attributes at most and no name twice, so headers, key, content type and the broker's own notes on a copy
travel packed in one attribute. A message that has none of these has no attribute, like a stranger's.
"""

import base64
import hashlib
import json
import re
import uuid
from binascii import Error
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from brokerkit.message import Header, Message
from brokerkit.packing import NAME, pack, unpack

__all__ = ["Entry", "Read", "dedupe_id", "delayed", "entry_of", "lane_of", "read_message"]

_VERSION = 1
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LANE = re.compile(r"[!-~]{1,128}")
_OURS = "bk."
_ALONE = "bk.0."  # the message groups of what has no key
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Entry:
    """
    A message as SQS takes it.

    body, packed: body and attribute. size: bytes that count towards the limits. lane, dedupe: message group and
    deduplication id, for FIFO queues.
    """

    body: str
    packed: str | None
    size: int
    lane: str
    dedupe: str

    def arguments(self, *, fifo: bool, body: str, attributes: str = "MessageAttributes") -> dict[str, Any]:
        """Return the fields of one entry of a batch; `body` is what the service calls the body."""
        fields: dict[str, Any] = {body: self.body}
        if self.packed is not None:
            fields[attributes] = {NAME: {"DataType": "String", "StringValue": self.packed}}
        if fifo:
            fields["MessageGroupId"] = self.lane
            fields["MessageDeduplicationId"] = self.dedupe
        return fields


@dataclass(frozen=True, slots=True)
class Read:
    """A message as it was sent, and for how long in all its sender wanted it held back."""

    message: Message
    after: float


def entry_of(message: Message, after: float = 0.0) -> Entry:
    """Return what travels; `after` is noted for the receiver, who waits for the rest of it."""
    body, encoded = _body_text(message.body)
    packed = _packed(message, encoded=encoded, after=after)
    size = _length(body) + (len(NAME) + len("String") + len(packed) if packed is not None else 0)
    dedupe = dedupe_id(message.copy_id)
    return Entry(body, packed, size, lane_of(message.key, dedupe), dedupe)


def read_message(raw: Mapping[str, Any], *, fifo: bool) -> Read:
    """Return what was sent. A stranger's attributes are headers, its message group is its key; nothing here raises."""
    text = str(raw.get("Body", ""))
    attributes: Mapping[str, Any] = raw.get("MessageAttributes") or {}
    packed = attributes.get(NAME, {}).get("StringValue")
    fields = _fields(packed)
    if fields is None:
        return Read(_foreign(raw, text, attributes, fifo=fifo), 0.0)
    body = _decoded(text) if fields.get("b") else text.encode("utf-8", "surrogatepass")
    if body is None:
        return Read(_foreign(raw, text, attributes, fifo=fifo), 0.0)
    headers = _headers(attributes, but=NAME)
    if "h" in fields:
        headers.extend(_unpacked(fields["h"]))
    kind = fields.get("t")
    message = Message(
        body=body,
        content_type=kind if isinstance(kind, str) else None,
        key=_key(fields.get("k")),
        headers=tuple(headers),
    )
    return Read(message, _after(fields.get("d")))


def _unpacked(entries: object) -> Sequence[Header]:
    """Return packed headers; those that are all text, as nearly all are, at a third of the cost."""
    headers: list[Header] = []
    listed = cast("Sequence[Any]", entries) if isinstance(entries, list) else [None]
    for number, entry in enumerate(listed):
        match entry:
            case [index, str(name), str(value)] if (
                index is not False and index is not True and index == number
            ):
                headers.append((name, value))
            case _:  # bytes, or a stranger's
                return unpack((), json.dumps(entries))
    return headers


def delayed(raw: Mapping[str, Any], after: float) -> dict[str, Any]:
    """Return a copy of ours as one entry of a batch, as it is but for the delay that it notes."""
    fields = _fields(raw["MessageAttributes"][NAME]["StringValue"]) or {}
    packed = json.dumps({**fields, "d": round(after * 1000)}, separators=(",", ":"))
    attributes = {NAME: {"DataType": "String", "StringValue": packed}}
    return {"MessageBody": raw["Body"], "MessageAttributes": attributes}


def dedupe_id(copy_id: str | None) -> str:
    """Return a deduplication id: the copy's own where SQS allows it, else its hash; a new one for a copy without."""
    if copy_id is None:
        return uuid.uuid4().hex
    if _LANE.fullmatch(copy_id) and not copy_id.startswith(_OURS):
        return copy_id
    return _OURS + hashlib.blake2b(copy_id.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def lane_of(key: bytes | None, dedupe: str) -> str:
    """Return the message group of a key: the key itself where SQS allows it, else its hash; without a key, one of its own."""
    if key is None:
        return f"{_ALONE}{hashlib.blake2b(dedupe.encode(), digest_size=16).hexdigest()}"
    if key.isascii() and _LANE.fullmatch(key.decode()) and not key.startswith(_OURS.encode()):
        return key.decode()
    return f"{_OURS}1.{hashlib.blake2b(key, digest_size=20).hexdigest()}"


def _body_text(body: bytes) -> tuple[str, bool]:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        text = ""
    if text and not _ILLEGAL.search(text):
        return text, False
    # SQS refuses an empty body, so an empty one is a mark and a filler
    return base64.b64encode(body).decode() or "-", True


def _packed(message: Message, *, encoded: bool, after: float) -> str | None:
    fields: dict[str, Any] = {}
    if message.key is not None:
        fields["k"] = base64.b64encode(message.key).decode()
    if message.content_type is not None:
        fields["t"] = message.content_type
    if encoded:
        fields["b"] = 1
    if after > 0:
        fields["d"] = round(after * 1000)
    headers = pack(message.headers, _nothing_is_carried)[1] if message.headers else None
    if not fields and headers is None:
        return None
    text = json.dumps({"v": _VERSION, **fields}, separators=(",", ":"))
    return text if headers is None else f'{text[:-1]},"h":{headers}}}'


def _nothing_is_carried(_name: str, _value: str) -> bool:
    return False


def _fields(packed: object) -> dict[str, Any] | None:
    if not isinstance(packed, str):
        return None
    try:
        loaded = json.loads(packed)
    except (ValueError, RecursionError):
        return None
    if not isinstance(loaded, dict) or "v" not in loaded:
        return None
    return cast("dict[str, Any]", loaded)


def _foreign(raw: Mapping[str, Any], text: str, attributes: Mapping[str, Any], *, fifo: bool) -> Message:
    group = raw.get("Attributes", {}).get("MessageGroupId") if fifo else None
    if isinstance(group, str) and group.startswith(_ALONE):
        group = None
    headers = _headers(attributes)
    kind = next((value for name, value in headers if name == "content-type"), None)
    return Message(
        body=text.encode("utf-8", "surrogatepass"),
        content_type=kind if isinstance(kind, str) else None,
        key=group.encode() if isinstance(group, str) else None,
        headers=tuple(pair for pair in headers if pair != ("content-type", kind)),
    )


def _headers(attributes: Mapping[str, Any], but: str | None = None) -> list[Header]:
    headers: list[Header] = []
    for name, value in attributes.items():
        if name == but:
            continue
        binary = value.get("BinaryValue")
        if binary is None:
            headers.append((name, str(value.get("StringValue", ""))))
        else:  # text where we read the answer ourselves, bytes where botocore has
            headers.append((name, binary if isinstance(binary, bytes) else base64.b64decode(binary)))
    return headers


def _key(value: object) -> bytes | None:
    return _decoded(value) if isinstance(value, str) else None


def _decoded(text: str) -> bytes | None:
    if text == "-":
        return b""
    try:
        return base64.b64decode(text, validate=True)
    except (Error, ValueError):
        return None


def _after(value: object) -> float:
    """Return a sender's delay in seconds; one that no sender of ours writes holds nothing back."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _DAY * 1000:
        return 0.0
    return value / 1000


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
