"""
The story of a message that failed: what went wrong, when, and how often; short enough to travel in a header.
"""

import json
import re
import traceback
from dataclasses import dataclass
from typing import Any

__all__ = ["Failure", "Story", "decode_story", "encode_story"]

Story = list[dict[str, Any]]

_MESSAGE = 1024
_TRACEBACK = 8 * 1024
_LIMIT = 8 * 1024
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_URL_SECRET = re.compile(r"(?<=://)[^/\s@]+@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    One failed handling.

    type: dotted name of the error's class. message: its text, at most 1 kB, control characters escaped, user
    information in URLs masked. trace: the traceback, innermost frames kept, at most 8 kB.
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
        trace = "".join(traceback.format_exception(kind, error, error.__traceback__))
        return cls(type=name, message=clean(text)[:_MESSAGE], trace=clean(trace)[-_TRACEBACK:])


def clean(text: str) -> str:
    """Escape control characters (new line and tab stay) and mask user information in URLs."""
    masked = _URL_SECRET.sub("***@", text)
    escaped = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", masked)
    return escaped.encode("utf-8", "backslashreplace").decode()


def encode_story(story: Story, limit: int = _LIMIT) -> str:
    """
    Return compact JSON of at most `limit` bytes, as ASCII.

    What does not fit is cut step by step: tracebacks, then the middle of the history, then messages. The first and the
    last entry stay to the end.
    """
    for cut in (_whole, _short_traces, _no_traces, _ends_only, _bare):
        text = json.dumps(cut(story), separators=(",", ":"))
        if len(text) <= limit:
            return text
    return json.dumps([{"cut": len(story)}], separators=(",", ":"))[: max(limit, 2)]


def decode_story(text: str | bytes | None) -> Story:
    """Return the story in a header; what is not readable is an empty story, for it proves nothing."""
    if not text:
        return []
    try:
        story = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return [entry for entry in story if isinstance(entry, dict)] if isinstance(story, list) else []


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
    return plain if len(plain) <= _ENDS else [*plain[:1], {"cut": len(plain) - 3}, *plain[-2:]]


def _bare(story: Story) -> Story:
    return [
        {name: value[:120] if isinstance(value, str) else value for name, value in entry.items()}
        for entry in _ends_only(story)
    ]


_ENDS = 4
