"""
Events as text: what `publish` reads, and what `tail` writes, which is the same.
"""

import asyncio
import base64
import contextlib
import json
import sys
import threading
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, cast

import click

from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError
from brokerkit.publisher import Outgoing

__all__ = [
    "JSON",
    "AsIs",
    "Numbered",
    "Template",
    "as_record",
    "header_pairs",
    "lines_of",
    "shown_data",
    "shown_headers",
]

Numbered = tuple[int, "Outgoing | Exception"]
Line = tuple[int, bytes]

JSON: Final = "application/json"
_CHUNK: Final = 64 * 1024
_READ: Final = frozenset(
    {"data", "data_base64", "type", "key", "id", "subject", "time", "headers", "extensions"}
)
_IGNORED: Final = frozenset({"channel", "source", "position", "content_type"})


class BadLine(BrokerkitError):
    """A line of NDJSON says nothing that can be published; the text says what is wrong."""

    code = "bad_line"


@dataclass(frozen=True, slots=True)
class Written:
    """Data that has its bytes already."""

    data: bytes


@dataclass(slots=True)
class AsIs:
    """A codec that hands written bytes through, so that `1.0` stays `1.0`."""

    content_type: str = JSON

    @property
    def is_json(self) -> bool:
        """Whether the data is JSON."""
        return self.content_type.partition(";")[0].strip().lower().endswith(("/json", "+json"))

    def encode(self, value: object) -> bytes:
        """Return the bytes."""
        if not isinstance(value, Written):
            raise TypeError(type(value).__name__)
        return value.data

    def decoder(self, model: Any) -> NoReturn:
        """Nothing is decoded by a command."""
        raise NotImplementedError(model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """What the flags say of every event; a line of NDJSON says more, and wins."""

    type: str | None
    key: str | None
    id: str | None
    headers: Sequence[tuple[str, str | bytes]]

    def of_body(self, body: str, *, json: bool) -> Outgoing:
        """Return the event of BODY; a usage error if it cannot be read or is not the JSON that it should be."""
        data = _read_body(body)
        if json:
            data = data.strip()
            try:
                check_json(data)
            except ValueError as error:
                message = (
                    f"BODY is not JSON ({error}); quote it, or say what it is with --content-type text/plain"
                )
                raise click.UsageError(message, click.get_current_context()) from error
        return Outgoing(data=Written(data), type=self.type, key=self.key, id=self.id, headers=self.headers)

    def of_line(self, line: bytes) -> Outgoing | Exception:
        """Return the event of a line, or what is wrong with the line."""
        try:
            return self._of_record(_record(line))
        except (BadLine, ValueError) as error:
            return error if isinstance(error, BadLine) else BadLine(str(error))

    def _of_record(self, record: Mapping[str, Any]) -> Outgoing:
        kind = _text(record, "type") or self.type
        if kind is None:
            message = "no 'type' in the line; write it there, or give --type for all"
            raise BadLine(message)
        return Outgoing(
            data=_data(record),
            type=kind,
            key=_text(record, "key") or self.key,
            id=_text(record, "id"),
            subject=_text(record, "subject"),
            time=_text(record, "time"),
            headers=[*_headers(record), *self.headers],
            extensions=_object(record, "extensions"),
        )


def header_pairs(given: Sequence[str]) -> list[tuple[str, str | bytes]]:
    """Return `NAME=VALUE` flags as headers; a usage error for one without a name."""
    pairs: list[tuple[str, str | bytes]] = []
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals:
            message = f"--header {each!r}: write NAME=VALUE, such as --header tenant=acme"
            raise click.UsageError(message, click.get_current_context())
        pairs.append((name, value))
    return pairs


def check_json(data: bytes) -> None:
    """Raise `ValueError` for what is not one JSON value, NaN and infinity among it."""
    try:
        json.loads(data, parse_constant=_refuse)
    except RecursionError as error:
        message = "nested too deeply"
        raise ValueError(message) from error


def _refuse(name: str) -> NoReturn:
    message = f"{name} has no JSON form"
    raise ValueError(message)


def _read_body(body: str) -> bytes:
    if body == "-":
        return sys.stdin.buffer.read()
    if not body.startswith("@"):
        return body.encode("utf-8", "surrogateescape")
    try:
        return Path(body[1:]).read_bytes()
    except OSError as error:
        message = f"BODY {body!r}: {error.strerror}; name a file that can be read"
        raise click.UsageError(message, click.get_current_context()) from error


def _record(line: bytes) -> dict[str, Any]:
    check_json(line)
    found = json.loads(line)
    if not isinstance(found, dict):
        message = "a line is an object with data, type, key, id, headers"
        raise BadLine(message)
    record = cast("dict[str, Any]", found)
    if unknown := sorted(record.keys() - _READ - _IGNORED):
        message = f"unknown member {unknown[0]!r}; there are {', '.join(sorted(_READ))}"
        raise BadLine(message)
    return record


def _data(record: Mapping[str, Any]) -> Written | bytes:
    if ("data" in record) == ("data_base64" in record):
        message = "give one of 'data' and 'data_base64'"
        raise BadLine(message)
    if "data_base64" in record:
        return base64.b64decode(_text(record, "data_base64") or "", validate=True)
    written = json.dumps(record["data"], ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Written(written.encode())


def _text(record: Mapping[str, Any], name: str) -> str | None:
    value = record.get(name)
    if value is not None and not isinstance(value, str):
        message = f"{name!r} is {type(value).__name__}, not text"
        raise BadLine(message)
    return value or None


def _object(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    value: Any = record.get(name) or {}
    if not isinstance(value, dict):
        message = f"{name!r} is {type(value).__name__}, not an object"
        raise BadLine(message)
    return cast("dict[str, Any]", value)


def _headers(record: Mapping[str, Any]) -> list[tuple[str, str | bytes]]:
    given: Any = record.get("headers") or []
    pairs: Any = _object(record, "headers").items() if isinstance(given, dict) else given
    try:
        return [(name, _header_value(value)) for name, value in pairs]
    except (TypeError, ValueError, KeyError) as error:
        message = "'headers' is an object, or a list of [name, value]"
        raise BadLine(message) from error


def _header_value(value: Any) -> str | bytes:
    if isinstance(value, str):
        return value
    return base64.b64decode(value["base64"], validate=True)


def as_record(delivery: Delivery, *, data: bool) -> dict[str, Any]:
    """Return a stored message as the object that `tail` writes and `publish --from-ndjson` reads."""
    event, message = delivery.event, delivery.message
    record: dict[str, Any] = {
        "channel": delivery.channel,
        "position": None if delivery.position is None else "/".join(map(str, delivery.position)),
        "id": event.id,
        "source": event.source,
        "type": event.type or None,
        "subject": event.subject,
        "time": event.time,
        "key": None if message.key is None else message.key.decode("utf-8", "backslashreplace"),
        "headers": shown_headers(message.headers),
        "extensions": dict(event.extensions),
        "content_type": event.datacontenttype,
    }
    return record | shown_data(event.data) if data else record


def shown_headers(headers: Sequence[tuple[str, str | bytes]]) -> list[list[str | dict[str, str]]]:
    """Return the headers that the sender chose, not those that carry the envelope, nor ours."""
    ours = ("bk-", "ce-", "ce_", "cloudevents")
    return [[name, _shown_header(value)] for name, value in headers if not name.lower().startswith(ours)]


def _shown_header(value: str | bytes) -> str | dict[str, str]:
    return value if isinstance(value, str) else {"base64": base64.b64encode(value).decode()}


def shown_data(data: bytes) -> dict[str, Any]:
    """Return bytes as `data` if they are JSON, else as `data_base64`."""
    try:
        check_json(data)
        value = json.loads(data)
        json.dumps(value, allow_nan=False)
    except ValueError:
        return {"data_base64": base64.b64encode(data).decode()}
    return {"data": value}


async def lines_of(path: Path, limit: int) -> AsyncIterator[Sequence[Line]]:
    """
    Yield the lines of a file (`-` is stdin) with their numbers, empty ones left out, at most `limit` at once.

    What has arrived is yielded without waiting for more, so that a pipe may be slow. The reading has a thread of its own.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue(4)

    def hand_over(chunk: bytes | OSError) -> None:
        asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()

    threading.Thread(
        target=_read_chunks, args=(path, hand_over), name="brokerkit reader", daemon=True
    ).start()
    number = 0
    rest = b""
    while chunk := await chunks.get():
        if isinstance(chunk, OSError):
            raise chunk
        *lines, rest = (rest + chunk).split(b"\n")
        numbered = [(number + at, line) for at, line in enumerate(lines, 1) if line.strip()]
        number += len(lines)
        for begin in range(0, len(numbered), limit):
            yield numbered[begin : begin + limit]
    if rest.strip():
        yield [(number + 1, rest)]


def _read_chunks(path: Path, hand_over: Callable[[bytes | OSError], None]) -> None:
    """Read without a buffer: a buffer's lock, held at the end of the process, would crash the interpreter."""
    with contextlib.suppress(RuntimeError, CancelledError):  # the loop has ended, nobody wants more
        try:
            with _unbuffered(path) as stream:
                while chunk := stream.read(_CHUNK):
                    hand_over(chunk)
        except OSError as error:
            hand_over(error)
        hand_over(b"")


@contextlib.contextmanager
def _unbuffered(path: Path) -> Generator[Any, None, None]:
    if str(path) == "-":
        stdin = sys.stdin.buffer
        yield getattr(stdin, "raw", stdin)
        return
    with path.open("rb", buffering=0) as stream:
        yield stream
