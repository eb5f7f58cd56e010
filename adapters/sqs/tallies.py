"""
Counts of a group, by name: tags of its inlet queue, each with the count and the hour of its last change.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence

from brokerkit.adapters.sqs.calls import CallFailed
from brokerkit.adapters.sqs.queues import Queue, Queues
from brokerkit.errors import SettleError, Unavailable

__all__ = ["Tallies"]

_PREFIX = "bk-tally:"
_MOST = 40
"""Tags of ours on one queue; the service allows 50 in all."""

_HOUR = 3600


class Tallies:
    """
    The counts of one group.

    A tag is read and written, not added to: one member at a time changes a name, who holds its message. Needs the
    rights to tag a queue; without them every change is `Unavailable`.
    """

    def __init__(self, queues: Queues, queue: Queue) -> None:
        self._queues = queues
        self._queue = queue
        self._lock = asyncio.Lock()

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change the counts, with one look at all tags before and one call for each change."""
        async with self._lock:
            try:
                tags = await self._tags()
            except CallFailed as error:
                return [self._unavailable(error)] * len(changes)
            counts: list[int | SettleError] = []
            for name, change in changes:
                try:
                    counts.append(await self._change(tags, _PREFIX + name, change))
                except CallFailed as error:
                    counts.append(self._unavailable(error))
            return counts

    async def _tags(self) -> dict[str, str]:
        found = await self._queues.call("ListQueueTags", {"QueueUrl": self._queue.url})
        tags: Mapping[str, str] = found.get("Tags") or {}
        return {name: value for name, value in tags.items() if name.startswith(_PREFIX)}

    async def _change(self, tags: dict[str, str], name: str, change: int) -> int:
        before = _count(tags.get(name))
        after = max(0, before + change)
        if after == before:
            return after
        if not after:
            await self._untag(tags, [name])
            return 0
        if name not in tags and len(tags) >= _MOST:
            await self._untag(tags, sorted(tags, key=lambda each: _hour(tags[each]))[: len(tags) - _MOST + 1])
        value = f"{after}@{int(time.time()) // _HOUR}"
        await self._queues.call("TagQueue", {"QueueUrl": self._queue.url, "Tags": {name: value}})
        tags[name] = value
        return after

    async def _untag(self, tags: dict[str, str], names: Sequence[str]) -> None:
        await self._queues.call("UntagQueue", {"QueueUrl": self._queue.url, "TagKeys": list(names)})
        for name in names:
            tags.pop(name, None)

    def _unavailable(self, error: CallFailed) -> Unavailable:
        return Unavailable(f"queue {self._queue.name}: a count could not be kept: {error}")


def _count(value: str | None) -> int:
    text = (value or "").partition("@")[0]
    return int(text) if text.isdigit() else 0


def _hour(value: str) -> int:
    text = value.partition("@")[2]
    return int(text) if text.isdigit() else 0
