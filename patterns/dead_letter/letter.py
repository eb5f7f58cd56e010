"""
A dead letter as a record: what the message was, and why it died.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from brokerkit.copies import OURS
from brokerkit.delivery import Delivery
from brokerkit.message import Header

__all__ = ["Letter", "read_letter"]

_LATEST = 1 << 53


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """
    One dead letter.

    id, source, type, time: of the event; `id` is what `redrive` and `discard` take.
    headers: the sender's, without ours.
    reason, detail: the verdict: one stable word, and what can be said about it.
    error_type, message, trace: of the last failed handling, empty if there was none.
    history: every entry of the story but the last verdict, oldest first. Verdicts of earlier runs stay in it.
    attempts: the attempt at which it died.
    first_failure, last_failure: wall time in seconds, or None where the story was cut.
    runs: how often it was redriven before.
    position: where the broker keeps it, if it says so.
    """

    id: str
    source: str
    type: str
    time: str | None
    channel: str
    group: str
    key: bytes | None
    body: bytes
    content_type: str | None
    headers: tuple[Header, ...]
    reason: str
    detail: str
    error_type: str
    message: str
    trace: str
    history: tuple[dict[str, Any], ...]
    attempts: int
    first_failure: float | None
    last_failure: float | None
    runs: int
    position: tuple[str, int] | None


def read_letter(delivery: Delivery) -> Letter:
    """
    Return the record of a delivery from a dead place, after `brokerkit.copies.read_delivery`.

    Never raises: a story that is cut, damaged or foreign leaves fields empty.
    """
    event, story = delivery.event, delivery.story
    verdict = story[-1] if story and "dead" in story[-1] else {}
    history = story[:-1] if verdict else story
    last: dict[str, Any] = next((entry for entry in reversed(history) if "type" in entry), dict[str, Any]())
    times = [entry["at"] / 1000 for entry in history if "dead" not in entry and _is_number(entry.get("at"))]
    return Letter(
        id=event.id,
        source=event.source,
        type=event.type,
        time=event.time,
        channel=delivery.channel,
        group=delivery.group,
        key=delivery.message.key,
        body=delivery.message.body,
        content_type=delivery.message.content_type,
        headers=delivery.message.without(OURS),
        reason=_text(verdict, "dead"),
        detail=_text(verdict, "detail"),
        error_type=_text(last, "type"),
        message=_text(last, "message"),
        trace=_text(last, "trace"),
        history=tuple(history),
        attempts=delivery.attempt,
        first_failure=min(times, default=None),
        last_failure=max(times, default=None),
        runs=delivery.run,
        position=delivery.position,
    )


def died_at(story: Sequence[dict[str, Any]]) -> float | None:
    """Return the wall time in seconds of the verdict, or None if the story does not say."""
    at = story[-1].get("at") if story and "dead" in story[-1] else None
    return at / 1000 if at is not None and _is_number(at) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LATEST


def _text(entry: dict[str, Any], name: str) -> str:
    value = entry.get(name, "")
    return value if isinstance(value, str) else str(value)
