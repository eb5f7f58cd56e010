"""
The copies that the settler makes: a counted retry, a long return, a dead letter, a redrive.

A copy keeps body, content type, key and the sender's headers to the byte. Our own headers are replaced, never
appended, and the broker's own (`x-death`, `Nats-*` and their kin) never travel on: a forged or inherited one can make
a broker drop the copy in silence.

Our headers are believed only where position proves them: on what came through the group's own inlet or dead place.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError
from brokerkit.message import Header, Message
from brokerkit.story import decode_story, encode_story

__all__ = [
    "OURS",
    "STORY_ROOM",
    "VERSION",
    "Mark",
    "TooNew",
    "copy_id",
    "dead_copy",
    "is_foreign",
    "mark_of",
    "read_delivery",
    "redrive_copy",
    "retry_copy",
    "return_copy",
    "tally_name",
]

VERSION = 1
OURS = frozenset(
    {
        "bk-v",
        "bk-attempt",
        "bk-run",
        "bk-hop",
        "bk-alone",
        "bk-wait",
        "bk-first",
        "bk-group",
        "bk-origin",
        "bk-story",
    }
)
_FOREIGN = frozenset({"x-death", "x-delivery-count", "x-acquired-count"})
_FOREIGN_PREFIXES = ("x-first-death-", "x-last-death-", "nats-")
_MOST = 1_000_000
_DIGITS = 18
STORY_ROOM = 8 * 1024


class TooNew(BrokerkitError):
    """A copy carries a newer header version than this one reads; it is returned uncounted, never settled otherwise."""

    code = "too_new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What the owner of a held delivery leaves beside it for the next owner."""

    attempt: int
    alone: int
    first: int
    due: int
    story: str

    def encode(self) -> bytes:
        """Return the bytes that `Marks.mark` keeps."""
        fields = {
            "v": VERSION,
            "attempt": self.attempt,
            "alone": self.alone,
            "first": self.first,
            "due": self.due,
            "story": self.story,
        }
        return json.dumps(fields, separators=(",", ":")).encode()


def read_delivery(delivery: Delivery, now: float) -> None:
    """
    Fill in what the core knows of a delivery: attempt, run, hop, first arrival, crash marks, story.

    Raises `TooNew` for a copy or mark of a later version. Everything else that is odd is read as if it were absent:
    numbers out of range are clamped, so a forged or damaged header cannot cost a message its tries.
    """
    delivery.attempt = 1
    delivery.run = delivery.hop = delivery.alone = 0
    delivery.first = now
    delivery.due = 0.0
    delivery.story = []
    if delivery.address.place is not None:
        delivery.believe(_read_copy(delivery, now))
    if delivery.mark is not None:
        _read_mark(delivery)


def _read_copy(delivery: Delivery, now: float) -> str | None:
    ours = {name: value for name, value in delivery.message.headers if name in OURS}
    if (version := _number(ours.get("bk-v"), VERSION)) > VERSION:
        message = f"the copy at {delivery.address} has header version {version}, this is {VERSION}: upgrade this consumer"
        raise TooNew(message)
    delivery.attempt = max(1, _number(ours.get("bk-attempt"), 1))
    delivery.run = _number(ours.get("bk-run"), 0)
    delivery.hop = _number(ours.get("bk-hop"), 0)
    delivery.alone = _number(ours.get("bk-alone"), 0)
    delivery.first = min(_number(ours.get("bk-first"), int(now * 1000)) / 1000, now)
    delivery.story = decode_story(ours.get("bk-story"))
    origin = ours.get("bk-origin")
    return (origin.decode(errors="replace") if isinstance(origin, bytes) else origin) or None


def _read_mark(delivery: Delivery) -> None:
    try:
        loaded = json.loads(delivery.mark or b"")
    except (ValueError, RecursionError):
        return
    if not isinstance(loaded, dict):
        return
    fields = cast("dict[str, Any]", loaded)
    if (version := _number(fields.get("v"), VERSION)) > VERSION:
        message = (
            f"the mark at {delivery.address} has version {version}, this is {VERSION}: upgrade this consumer"
        )
        raise TooNew(message)
    delivery.attempt = max(1, _number(fields.get("attempt"), delivery.attempt))
    delivery.alone = _number(fields.get("alone"), delivery.alone)
    if first := _number(fields.get("first"), 0, most=1 << 53):
        delivery.first = min(delivery.first, first / 1000)
    delivery.due = _number(fields.get("due"), 0, most=1 << 53) / 1000
    delivery.story = decode_story(fields.get("story")) or delivery.story


def _number(value: object, default: int, most: int = _MOST) -> int:
    if isinstance(value, bytes | str) and len(value) <= _DIGITS and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return default
    return min(value, max(default, most))


def mark_of(delivery: Delivery, *, alone: int) -> bytes:
    """Return the mark that keeps a held delivery's attempt, history and crash marks."""
    mark = Mark(
        attempt=delivery.attempt,
        alone=alone,
        first=int(delivery.first * 1000),
        due=int(delivery.due * 1000),
        story=encode_story(delivery.story),
    )
    return mark.encode()


def tally_name(delivery: Delivery) -> str:
    """Return the name under which the starts of an event are counted in its group; a redrive begins a new count."""
    return _digest((*delivery.event.identity, delivery.channel, delivery.group, "starts", str(delivery.run)))


def retry_copy(delivery: Delivery) -> Message:
    """Return the copy for a counted retry: the same event and headers, one attempt more, one hop on."""
    return _copy(delivery, stage="retry", attempt=delivery.attempt + 1, run=delivery.run, room=STORY_ROOM)


def return_copy(delivery: Delivery) -> Message:
    """
    Return the copy for an uncounted return: the same event, headers and attempt, one hop on.

    For returns that are longer than the adapter holds a message itself.
    """
    return _copy(delivery, stage="return", attempt=delivery.attempt, run=delivery.run, room=STORY_ROOM)


def dead_copy(delivery: Delivery, *, room: int = STORY_ROOM) -> Message:
    """Return the dead letter: the same event and headers with the whole story, cut to `room` bytes."""
    return _copy(delivery, stage="dead", attempt=delivery.attempt, run=delivery.run, room=room)


def redrive_copy(delivery: Delivery) -> Message:
    """
    Return the copy that goes back to the group that failed: attempt 1 again, one run on, id and story kept.

    First arrival, crash marks and hops begin again, else what a limit had ended could never be handled again.
    """
    return _copy(delivery, stage="redrive", attempt=1, run=delivery.run + 1, room=STORY_ROOM)


def _copy(delivery: Delivery, *, stage: str, attempt: int, run: int, room: int) -> Message:
    fresh = run != delivery.run
    hop = 1 if fresh else delivery.hop + 1
    ours: list[Header] = [
        ("bk-v", str(VERSION)),
        ("bk-attempt", str(attempt)),
        ("bk-run", str(run)),
        ("bk-hop", str(hop)),
        ("bk-group", delivery.group),
    ]
    if not fresh:
        ours.append(("bk-first", str(int(delivery.first * 1000))))
    if delivery.alone and not fresh:
        ours.append(("bk-alone", str(delivery.alone)))
    if delivery.event.derived:
        ours.append(("bk-origin", delivery.event.id))
    if delivery.story:
        ours.append(("bk-story", encode_story(delivery.story, room)))
    return delivery.message.replace(
        headers=_travelling(delivery.message) + tuple(ours),
        copy_id=copy_id(delivery, stage=stage, attempt=attempt, run=run, hop=hop),
    )


def _travelling(message: Message) -> tuple[Header, ...]:
    return tuple(
        (name, value) for name, value in message.headers if name.lower() not in OURS and not is_foreign(name)
    )


def is_foreign(name: str) -> bool:
    """Say whether a header is a broker's own: it would act on whoever sends it on."""
    lowered = name.lower()
    return lowered in _FOREIGN or lowered.startswith(_FOREIGN_PREFIXES)


def copy_id(delivery: Delivery, *, stage: str, attempt: int, run: int, hop: int) -> str:
    """
    Return the id of one copy, for brokers that drop repeated sends.

    The same hop made again after a crash has the same id; no two hops ever share one (a dead letter or a redrive under
    the event's own id would be confirmed and thrown away by NATS and SQS).
    """
    parts = (
        *delivery.event.identity,
        delivery.channel,
        delivery.group,
        stage,
        str(run),
        str(attempt),
        str(hop),
    )
    return _digest(parts)


def _digest(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        # with its length: whatever a stranger's id holds, no two lists of parts are written alike
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
