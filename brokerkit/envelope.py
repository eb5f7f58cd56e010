"""
The envelope: how a CloudEvents event is laid into a message, and read out again.

Written structured by default, binary or plain on request; read in all three forms, told apart as the CloudEvents
1.0.2 bindings say: an `application/cloudevents` content type is structured, a `ce...specversion` header is binary, a JSON
object with `specversion`, `id`, `source` and `type` is structured from a sender that sets no content type, and anything
else is a plain message from a stranger, whose id comes from the broker's coordinates.

Only the attributes are parsed here. The data stays a slice of bytes; the endpoint decodes it.
"""

import base64
import binascii
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring as _quoted
from types import MappingProxyType
from typing import Any, Literal
from urllib.parse import quote, unquote

import pydantic_core
from pydantic_core import core_schema

from brokerkit.event import Event, made
from brokerkit.message import Header, Message

__all__ = ["FORMS", "STRUCTURED", "Form", "lay", "open_event", "timestamp"]

Form = Literal["structured", "binary", "plain"]
FORMS: tuple[Form, ...] = ("structured", "binary", "plain")

STRUCTURED = "application/cloudevents+json"
_PREFIXES = ("ce-", "ce_", "cloudevents:", "cloudevents_")
_REQUIRED = ("id", "source", "type")
_OPTIONAL = ("subject", "time", "datacontenttype", "dataschema")
_TELLING = frozenset({"specversion", *_REQUIRED})
_TEXT = (str, type(None))
_MEMBERS = frozenset({"specversion", "data", "data_base64", *_REQUIRED, *_OPTIONAL})
_SAFE = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in ' "%')
_decoder = json.JSONDecoder()
_DATA = b',"data":'
_MICROS = 1_000_000
_SPACE = b" \t\n\r"

# What `_structured` writes of an event without extensions, when no text needs an escape
_TEXT_OF = rb'"([^"\\\x00-\x1f]+)"'
_ordinary = re.compile(
    rb'\{"specversion":"1\.0","id":'
    + _TEXT_OF
    + rb',"source":'
    + _TEXT_OF
    + rb',"type":'
    + _TEXT_OF
    + rb'(?:,"subject":'
    + _TEXT_OF
    + rb')?(?:,"time":'
    + _TEXT_OF
    + rb')?,"datacontenttype":"application/json"'
    + _DATA
).match

# Parses JSON without making objects of it: any value fails to be null, and the failure has a default
_json = pydantic_core.SchemaValidator(
    core_schema.with_default_schema(core_schema.none_schema(), default=None, on_error="default")
)

_NONE: Mapping[str, str] = MappingProxyType({})


class _Unreadable(ValueError):
    """An envelope that cannot be read; its text becomes `Event.error`."""


def timestamp(seconds: float) -> str:
    """Return wall time as RFC 3339 text in UTC."""
    whole = math.floor(seconds)
    micros = round((seconds - whole) * 1e6)
    if micros >= _MICROS:
        whole, micros = whole + 1, 0
    return f"{_second(whole)}.{micros:06d}Z" if micros else f"{_second(whole)}Z"


@lru_cache(maxsize=4)
def _second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).isoformat()[:-6]


def lay(
    event: Event[bytes],
    form: Form,
    *,
    key: bytes | None,
    headers: tuple[Header, ...],
    prefix: Literal["ce-", "ce_"] = "ce-",
    is_json: bool = False,
) -> Message:
    """
    Return the message that carries an event in that form. `plain` keeps the data only: id and type are lost.

    is_json: the data is known to be one JSON value, because our own codec has just written it.

    Its `copy_id` stands for source and id together: two sources may use the same id, and a broker that drops
    repeated sends must not take one for the other.
    """
    copy_id = _first_id(event)
    if form == "structured":
        return Message(
            body=_structured(event, is_json),
            content_type=STRUCTURED,
            key=key,
            headers=headers,
            copy_id=copy_id,
        )
    if form == "binary":
        headers = _binary(event, prefix) + headers
    return Message(
        body=event.data, content_type=event.datacontenttype, key=key, headers=headers, copy_id=copy_id
    )


def _first_id(event: Event[bytes]) -> str:
    digest = _hash_of(event.source).copy()
    digest.update(event.id.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _hash_of(source: str) -> "hashlib.blake2b":
    return hashlib.blake2b(source.encode("utf-8", "surrogatepass") + b"\0", digest_size=16)


def _attributes(event: Event[bytes]) -> dict[str, str]:
    attributes = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
    for name in _OPTIONAL:
        if (value := getattr(event, name)) is not None:
            attributes[name] = value
    attributes.update(event.extensions)
    return attributes


def _structured(event: Event[bytes], is_json: bool) -> bytes:
    members = ",".join([f"{_quoted(name)}:{_quoted(value)}" for name, value in _attributes(event).items()])
    head = f"{{{members}".encode()
    data = event.data
    if not data:
        return head + b"}"
    if is_json:
        return head + _DATA + data + b"}"
    if _is_json(event.datacontenttype) and data == data.strip(_SPACE) and _is_one_value(data):
        return head + _DATA + data + b"}"
    # what calls itself JSON and is none would break the envelope, or add attributes to it
    return head + b',"data_base64":"' + base64.b64encode(data) + b'"}'


def _binary(event: Event[bytes], prefix: Literal["ce-", "ce_"]) -> tuple[Header, ...]:
    """Return the attributes as headers: percent-encoded with `ce-`, as they are with Kafka's `ce_` (its CloudEvents binding)."""
    attributes = _attributes(event)
    attributes.pop("datacontenttype", None)
    if prefix == "ce_":
        return tuple((f"ce_{name}", value) for name, value in attributes.items())
    return tuple((f"ce-{name}", quote(value, safe=_SAFE)) for name, value in attributes.items())


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return True
    essence = content_type.partition(";")[0].strip().lower()
    return essence.endswith(("/json", "+json"))


def open_event(message: Message, stranger: Callable[[], tuple[str, str]]) -> Event[bytes]:
    """
    Read the event of a message; never raises.

    What cannot be read becomes an event with `error` set and the body as its data. `stranger` gives the (source, id)
    of a message that is no CloudEvent or cannot be read as one.
    """
    content_type = message.content_type
    try:
        if content_type == STRUCTURED:
            return _read_ordinary(message.body) or _event(*_split(message.body))
        if content_type is not None and content_type.lstrip()[:23].lower() == "application/cloudevents":
            return _read_structured(message)
        if any(_specversion(name) for name, _ in message.headers):
            return _read_binary(message)
        if content_type is None and message.body[:1] == b"{" and _looks_structured(message.body):
            members, data = _split(message.body)
            if members.keys() >= _TELLING:
                return _event(members, data)
    except (ValueError, RecursionError) as error:
        return _plain(message, stranger, error=str(error) or type(error).__name__)
    return _plain(message, stranger)


def _read_ordinary(body: bytes) -> Event[bytes] | None:
    """Read what brokerkit writes most often, at a third of the price; None if it is anything else."""
    found = _ordinary(body)
    if found is None or body[-1:] != b"}":
        return None
    data = body[found.end() : -1].strip(_SPACE)
    if not _is_one_value(data):
        return None
    name, source, kind, subject, time = found.groups()
    return made(
        name.decode(),
        source.decode(),
        kind.decode(),
        data,
        None if subject is None else subject.decode(),
        None if time is None else time.decode(),
        "application/json",
        None,
        _NONE,
    )


def _read_structured(message: Message) -> Event[bytes]:
    content_type = (message.content_type or STRUCTURED).partition(";")[0].strip().lower()
    if content_type != STRUCTURED:
        reason = f"content type {content_type!r}: only the JSON format of single events is read"
        raise _Unreadable(reason)
    return _event(*_split(message.body))


def _split(body: bytes) -> tuple[dict[str, Any], bytes]:
    """
    Return the members of the envelope and the raw slice of `data`.

    What brokerkit writes has `data` last, so one search and one small parse do. That the head alone is an object
    proves that the search hit the top level; a quote inside a text would be escaped and cannot match. That the rest is
    one value proves that nothing stands behind it.
    """
    at = body.find(_DATA)
    if at > 0 and body[-1:] == b"}" and body[:1] == b"{":
        data = body[at + len(_DATA) : -1].strip(_SPACE)
        try:
            head = body[:at].decode() + "}"
            members, end = _scan(head, 0)
            if end == len(head) and "data" not in members and _is_one_value(data):
                return members, data
        except (ValueError, StopIteration):
            return _walk(body)
    return _walk(body)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        reason = "a name stands twice"
        raise _Unreadable(reason)
    return members


_strict = json.JSONDecoder(object_pairs_hook=_distinct)
_scan: Callable[[str, int], tuple[Any, int]] = _strict.scan_once  # type: ignore[attr-defined] # untyped, not private


def _is_one_value(data: bytes) -> bool:
    """Say whether a slice is one JSON value and nothing behind it, at half the price of decoding it."""
    try:
        _json.validate_json(data)
    except ValueError:
        return False
    return True


def _walk(body: bytes) -> tuple[dict[str, Any], bytes]:
    text = body.decode("utf-8-sig")
    members: dict[str, Any] = {}
    data = b""
    at = _skip(text, 0)
    if text[at : at + 1] != "{":
        reason = "a structured event is a JSON object"
        raise _Unreadable(reason)
    at = _skip(text, at + 1)
    last = text[at : at + 1] == "}"
    while not last:
        if text[at : at + 1] != '"':
            reason = f"expected a name at {at}"
            raise _Unreadable(reason)
        name, at = _decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":":
            reason = f"expected ':' at {at}"
            raise _Unreadable(reason)
        start = _skip(text, at + 1)
        value, at = _decoder.raw_decode(text, start)
        if name in members:
            reason = f"attribute {name!r} stands twice"
            raise _Unreadable(reason)
        members[name] = value
        if name == "data":
            data = text[start:at].encode()
        at = _skip(text, at)
        last = text[at : at + 1] != ","
        at = at if last else _skip(text, at + 1)
    if text[at : at + 1] != "}" or _skip(text, at + 1) != len(text):
        reason = f"expected the end of the object at {at}"
        raise _Unreadable(reason)
    return members, data


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return at


def _event(members: dict[str, Any], data: bytes) -> Event[bytes]:
    if members.get("specversion") != "1.0":
        reason = f"specversion {members.get('specversion')!r} is not 1.0"
        raise _Unreadable(reason)
    for name in _REQUIRED:
        if type(value := members.get(name)) is not str or not value:
            reason = f"required attribute {name!r} is missing or empty"
            raise _Unreadable(reason)
    for name in _OPTIONAL:
        if type(members.get(name)) not in _TEXT:
            reason = f"attribute {name!r} is not text"
            raise _Unreadable(reason)
    content_type = members.get("datacontenttype")
    if "data_base64" in members or not (content_type is None or content_type == "application/json"):
        data = _data(members, data)
    return made(
        members["id"],
        members["source"],
        members["type"],
        data,
        members.get("subject"),
        members.get("time"),
        content_type,
        members.get("dataschema"),
        _NONE if members.keys() <= _MEMBERS else _extensions(members),
    )


def _extensions(members: dict[str, Any]) -> Mapping[str, str]:
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in members.items()
        if name not in _MEMBERS and value is not None
    }


def _data(members: dict[str, Any], data: bytes) -> bytes:
    if "data_base64" in members:
        if data:
            reason = "data and data_base64 stand both"
            raise _Unreadable(reason)
        try:
            return base64.b64decode(members["data_base64"], validate=True)
        except (binascii.Error, TypeError, ValueError) as error:
            reason = "data_base64 is not base64"
            raise _Unreadable(reason) from error
    if data and not _is_json(members.get("datacontenttype")):
        value = json.loads(data)
        return value.encode() if isinstance(value, str) else data
    return data


def _looks_structured(body: bytes) -> bool:
    return b'"specversion"' in body and all(f'"{name}"'.encode() in body for name in _REQUIRED)


def _attribute(name: str) -> str | None:
    lowered = name.lower()
    for prefix in _PREFIXES:
        if lowered.startswith(prefix):
            return lowered[len(prefix) :]
    return None


def _specversion(name: str) -> bool:
    return name[-11:].lower() == "specversion" and _attribute(name) == "specversion"


def _read_binary(message: Message) -> Event[bytes]:
    members: dict[str, Any] = {}
    for name, value in message.headers:
        if (attribute := _attribute(name)) and attribute not in ("data", "data_base64"):
            text = value.decode() if isinstance(value, bytes) else value
            members[attribute] = _unquoted(text) if "%" in text and name[:3].lower() == "ce-" else text
    if message.content_type is not None:
        members["datacontenttype"] = message.content_type
    return _event(members, b"").with_data(message.body)


def _unquoted(text: str) -> str:
    """Undo percent-encoding, which only the `ce-` bindings have; what was never encoded stays as it is."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        return text


def _plain(
    message: Message, stranger: Callable[[], tuple[str, str]], error: str | None = None
) -> Event[bytes]:
    source, identity = stranger()
    return Event(
        id=identity,
        source=source,
        type="",
        datacontenttype=message.content_type,
        data=message.body,
        derived=True,
        error=error,
    )
