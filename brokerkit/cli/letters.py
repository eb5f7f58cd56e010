"""
A dead letter as an object for programs, and as text for people.
"""

import json
from typing import TYPE_CHECKING, Any, Final

from brokerkit.cli.output import safe

if TYPE_CHECKING:
    from brokerkit.event import Event
    from brokerkit.patterns.dead_letter import Letter

__all__ = ["age", "as_item", "described", "when"]

_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))
_HEX: Final = 512


def age(seconds: float) -> str:
    """Return a duration in its largest unit: `3h`."""
    for unit, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def when(seconds: float | None) -> str | None:
    """Return wall time as RFC 3339 text."""
    from brokerkit.envelope import timestamp

    return None if seconds is None else timestamp(seconds)


def as_item(letter: "Letter", *, whole: bool = False) -> dict[str, Any]:
    """Return the object that `-o json` prints; whole, with traceback, history and data."""
    from brokerkit.cli.records import shown_data, shown_headers

    event = _event(letter)
    item: dict[str, Any] = {
        "id": letter.id,
        "source": letter.source,
        "type": letter.type or None,
        "time": letter.time,
        "channel": letter.channel,
        "group": letter.group,
        "key": None if letter.key is None else letter.key.decode("utf-8", "backslashreplace"),
        "reason": letter.reason,
        "detail": letter.detail,
        "error": {"type": letter.error_type, "message": letter.message} if letter.error_type else None,
        "attempts": letter.attempts,
        "runs": letter.runs,
        "first_failure": when(letter.first_failure),
        "last_failure": when(letter.last_failure),
        "position": None if letter.position is None else "/".join(map(str, letter.position)),
        "content_type": event.datacontenttype,
        "headers": shown_headers(letter.headers),
    }
    if not whole:
        return item
    return item | {"trace": letter.trace, "history": list(letter.history)} | shown_data(event.data)


def _event(letter: "Letter") -> "Event[bytes]":
    from brokerkit.envelope import open_event
    from brokerkit.message import Message

    message = Message(
        body=letter.body, content_type=letter.content_type, key=letter.key, headers=letter.headers
    )
    return open_event(message, lambda: (letter.source, letter.id))


def described(letter: "Letter") -> str:
    """Return everything about a letter, for a terminal: what is foreign cannot steer it."""
    item = as_item(letter)
    lines = [
        f"{name:<14}{safe(_shown(value))}" for name, value in item.items() if value and name != "headers"
    ]
    lines += [f"{'header':<14}{safe(f'{name}: {_shown(value)}')}" for name, value in item["headers"]]
    lines += ["", "history"]
    lines += [f"  {_entry(entry)}" for entry in letter.history]
    if letter.trace:
        lines += ["", "traceback", *(f"  {safe(line)}" for line in letter.trace.splitlines())]
    return "\n".join([*lines, "", "data", *(f"  {safe(line)}" for line in _data(_event(letter).data))])


def _entry(entry: dict[str, Any]) -> str:
    at = entry.get("at")
    time = when(at / 1000) if isinstance(at, int | float) else "-"
    rest = [f"{name}={_shown(value)}" for name, value in entry.items() if name not in {"at", "trace"}]
    return safe(" ".join([time or "-", *rest]))


def _shown(value: Any) -> str:
    if isinstance(value, dict) and "message" in value:
        return f"{value['type']}: {value['message']}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data(data: bytes) -> list[str]:
    """Return data as lines: JSON laid out, text as it is, the beginning of anything else in hex."""
    try:
        return json.dumps(json.loads(data), ensure_ascii=False, indent=2).splitlines()
    except (ValueError, RecursionError):
        pass
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError:
        rest = f"... {len(data)} bytes" if len(data) > _HEX else ""
        return [data[:_HEX].hex(" ", 4) + rest]
