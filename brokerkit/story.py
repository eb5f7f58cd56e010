"""
The story of a message that failed: what went wrong, when, and how often; short enough to travel in a header.
"""

import functools
import json
import math
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

__all__ = ["Failure", "Story", "decode_story", "encode_story"]

Story = list[dict[str, Any]]

_MESSAGE = 1024
_TRACEBACK = 8 * 1024
_LIMIT = 8 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_URL_SECRET = re.compile(r"(?<=://)[^/\s]+@")
_FRAMES: Final = -32
_ENDS = 4
_NUMBERS = frozenset({"n", "at", "cut"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    One failed handling.

    type: dotted name of the error's class. message: its text, at most 1,024 characters, control characters escaped, user
    information in URLs masked. trace: the traceback, innermost frames kept, at most 8 kB, its messages no longer than that.
    """

    type: str
    message: str
    trace: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Describe an error."""
        kind = type(error)
        name = (
            kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
        )
        try:
            text = str(error)
        except Exception as broken:  # noqa: BLE001 - a foreign __str__ must not cost the message its story
            text = f"<unprintable: {type(broken).__name__}>"
        parts = traceback.format_exception(kind, error, error.__traceback__, limit=_FRAMES)
        trace = "".join(map(_short, parts))
        return cls(type=name, message=_short(text), trace=trace[-_TRACEBACK:])


def _short(text: str) -> str:
    """Clean and cut one text; far beyond the cut first, so that a huge one costs little and no mask loses its end."""
    cleaned = clean(text[:_TRACEBACK])
    return (
        cleaned
        if len(cleaned) <= _MESSAGE
        else cleaned[: _MESSAGE - 1] + ("\n" if text.endswith("\n") else "…")
    )


def clean(text: str) -> str:
    """Escape control characters (new line and tab stay) and mask user information in URLs."""
    masked = _URL_SECRET.sub("***@", text)
    escaped = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", masked)
    return escaped.encode("utf-8", "backslashreplace").decode()


def encode_story(story: Story, limit: int = _LIMIT) -> str:
    """
    Return compact JSON of at most `limit` bytes (but never less than `[]`), as ASCII.

    What does not fit is cut step by step: tracebacks, then the middle of the history, then messages, then all but the
    last entry, which says how it ended. Never raises: a story that could not be written would keep its message from
    ever being settled.
    """
    for cut in _CUTS:
        text = _written(cut(story))
        if len(text) <= limit:
            return text
    return "[]"


def _written(story: Story) -> str:
    try:
        return json.dumps(story, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps([_plain(entry) for entry in story], separators=(",", ":"))


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry less what JSON cannot express; nested values are given up."""
    return {
        str(name): value
        for name, value in entry.items()
        if value is None
        or isinstance(value, str | int)
        or (isinstance(value, float) and math.isfinite(value))
    }


def decode_story(text: object) -> Story:
    """
    Return the story in a header; what is not readable is an empty story, for it proves nothing.

    Fields that this version does not know are kept; numbers and traces that are none are dropped.
    """
    if not text or not isinstance(text, str | bytes):
        return []
    try:
        story = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(story, list):
        return []
    entries = cast("list[object]", story)
    return [_sound(cast("dict[str, Any]", entry)) for entry in entries if isinstance(entry, dict)]


def _sound(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in entry.items()
        if not (name in _NUMBERS and type(value) is not int)
        and not (name == "trace" and not isinstance(value, str))
    }


def _whole(story: Story) -> Story:
    return story


def _short_traces(story: Story) -> Story:
    return [
        {**entry, "trace": entry.get("trace", "")[-2048:] if entry is story[-1] else ""} for entry in story
    ]


def _no_traces(story: Story) -> Story:
    return [{name: value for name, value in entry.items() if name != "trace"} for entry in story]


def _ends_only(story: Story) -> Story:
    plain = _no_traces(story)
    return plain if len(plain) <= _ENDS else [*plain[:1], {"cut": _hidden(plain[1:-2])}, *plain[-2:]]


def _hidden(story: Story) -> int:
    """Return how many handlings some entries stand for."""
    return sum(entry.get("cut", 1) for entry in story)


def _bare(width: int, story: Story) -> Story:
    return [_narrow(width, entry) for entry in _ends_only(story)]


def _last(width: int, story: Story) -> Story:
    return [{"cut": _hidden(story[:-1])}, *(_narrow(width, entry) for entry in _no_traces(story[-1:]))]


def _narrow(width: int, entry: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value[:width] if isinstance(value, str) else value
        for name, value in entry.items()
        if value is None or isinstance(value, str | int | float)
    }


def _count(story: Story) -> Story:
    return [{"cut": _hidden(story)}]


_CUTS: Final[tuple[Callable[[Story], Story], ...]] = (
    _whole,
    _short_traces,
    _no_traces,
    _ends_only,
    *(functools.partial(_bare, width) for width in (120, 30)),
    *(functools.partial(_last, width) for width in (120, 30, 8)),
    _count,
)
