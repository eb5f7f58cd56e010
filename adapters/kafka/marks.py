"""
Marks that have to be small: a commit's metadata has no room for all that a mark may say.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

from brokerkit.adapters.kafka.notes import fits
from brokerkit.adapters.kafka.partition import Partition

__all__ = ["put", "restore", "shortened"]


def shortened(mark: bytes) -> Iterator[bytes]:
    """
    Return a mark, and then what is left of it without its story.

    The numbers in it (attempts, crash marks, times) decide what happens to the message; the story only tells it.
    """
    yield mark
    try:
        loaded = json.loads(mark)
    except (ValueError, RecursionError):
        return
    if not isinstance(loaded, dict):
        return
    fields = cast("dict[str, Any]", loaded)
    if fields.get("story"):
        yield json.dumps({**fields, "story": ""}, separators=(",", ":")).encode()


def put(part: Partition, offset: int, value: bytes | None) -> bool:
    """Put a mark into the note to be written, shortened if need be, or erase it; False if it does not fit."""
    if value is None:
        part.marks.pop(offset, None)
        return True
    others = {place: mark for place, mark in part.marks.items() if place != offset}
    for candidate in shortened(value):
        if fits({**others, offset: candidate}, part.head):
            part.marks[offset] = candidate
            return True
    return False


def restore(part: Partition, offset: int, value: bytes | None) -> None:
    """Put back what stood there before a note could not be written."""
    if value is None:
        part.marks.pop(offset, None)
    elif offset in part.open:
        part.marks[offset] = value
