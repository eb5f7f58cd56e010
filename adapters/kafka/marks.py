"""
Marks that have to be small: what a mark may be cut to, when a commit's metadata has no room for all of it.
"""

import json
from collections.abc import Iterator
from typing import Any, cast

__all__ = ["shortened"]


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
