"""
Looking without taking: how much waits, what is stored, which groups there are.
"""

import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence

from brokerkit.adapter import Measurement
from brokerkit.adapters.kafka.client import Admin, Committed, Place
from brokerkit.adapters.kafka.names import Names, partition_name
from brokerkit.adapters.kafka.notes import Note, decode
from brokerkit.adapters.kafka.plan import Plan
from brokerkit.adapters.kafka.wire import Record, read
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError, NotFound
from brokerkit.message import Address

__all__ = ["Looks"]

_AHEAD = 100
_END = "end"


class _State:
    """What a group has finished of one partition."""

    def __init__(self, committed: Committed | None, begin: int) -> None:
        self.head = begin if committed is None else max(committed.offset, begin)
        self.note: Note | None = None if committed is None else decode(committed.note, committed.offset)
        self._firsts = [] if self.note is None else [run.first for run in self.note.runs]

    def unfinished(self, end: int) -> int:
        """Return how many are not finished, as far as offsets can say: gaps of transactions count too."""
        if self.note is None or self.note.upto > end:
            return max(end - self.head, 0)
        below = sum(run.length for run in self.note.runs if run.first >= self.head)
        return below + max(end - max(self.note.upto, self.head), 0)

    def is_done(self, offset: int) -> bool:
        """Say whether an offset is finished."""
        if offset < self.head:
            return True
        note = self.note
        if note is None or offset >= note.upto:
            return False
        at = bisect_right(self._firsts, offset) - 1
        return at < 0 or offset >= note.runs[at].first + note.runs[at].length


class Looks:
    """Reads the cluster for `Measures` and `Browses`; joins no group and commits nothing."""

    def __init__(self, admin: Admin, names: Names, plan: Plan) -> None:
        self._admin = admin
        self._names = names
        self._plan = plan

    async def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs that exist."""
        found = {self._names.read_group(group) for group in await self._admin.groups()}
        return sorted(pair for pair in found if pair is not None)

    async def measure(self, at: Address) -> Measurement:
        """
        Count by offsets what a group has not finished.

        What is on a retry rung counts as delayed. in_flight is what the members' last commits said, some milliseconds ago.
        """
        group = self._names.group(at)
        committed = await self._admin.committed(group)
        topics = self._plan.of(at)
        if not any(topic in topics for topic, _ in committed):
            message = f"{at}: there is no group {group}"
            raise NotFound(message)
        ends, states = await self._states(topics, committed)
        ladder = set(topics[1:-1])
        waiting = delayed = in_flight = 0
        heads: dict[Place, int] = {}
        for place, state in states.items():
            handed = 0 if state.note is None else state.note.handed
            left = max(state.unfinished(ends[place]) - handed, 0)
            in_flight += handed
            if place[0] in ladder:
                delayed += left
            else:
                waiting += left
            if left or handed:
                heads[place] = state.head
        return Measurement(
            waiting=waiting, delayed=delayed, in_flight=in_flight, oldest=await self._oldest(heads)
        )

    async def browse(
        self, at: Address, *, cursor: str | None, limit: int
    ) -> tuple[Sequence[Delivery], str | None]:
        """Return a page, merged by time over the partitions; what is finished in a dead place is not shown."""
        topic = self._plan.of(at)[0 if at.place == "dead" else -1]
        committed: Mapping[Place, Committed] = {}
        if at.place == "dead":
            committed = await self._admin.committed(self._names.group(at))
        ends, states = await self._states([topic], committed)
        if cursor == _END:
            return [], _cursor(ends)
        given = _offsets(topic, cursor)
        starts = {
            place: given.get(place, state.head if at.place == "dead" else 0)
            for place, state in states.items()
        }
        for place, state in states.items():
            starts[place] = max(starts[place], state.head)
        while any(starts[place] < ends[place] for place in starts):
            found = await self._admin.read(starts, max(limit, _AHEAD))
            page, starts = _page(found, starts, states, limit)
            if page:
                return [_delivery(at, topic, index, record) for index, record in page], _cursor(starts)
            if not any(found.values()):
                break
        return [], None

    async def _states(
        self, topics: Sequence[str], committed: Mapping[Place, Committed]
    ) -> tuple[Mapping[Place, int], dict[Place, _State]]:
        counts = await self._admin.partitions(topics)
        places = [(topic, index) for topic, count in counts.items() for index in range(count)]
        if not places:
            return {}, {}
        ends = await self._admin.ends(places)
        begins = await self._admin.beginnings(places)
        return ends, {place: _State(committed.get(place), begins[place]) for place in places}

    async def _oldest(self, heads: Mapping[Place, int]) -> float | None:
        if not heads:
            return None
        found = await self._admin.read(heads, 1)
        stamps = [record.timestamp / 1000 for records in found.values() for record in records]
        return max(time.time() - min(stamps), 0.0) if stamps else None


def _page(
    found: Mapping[Place, Sequence[Record]],
    starts: Mapping[Place, int],
    states: Mapping[Place, _State],
    limit: int,
) -> tuple[list[tuple[int, Record]], dict[Place, int]]:
    """Take the oldest; a partition is read on after the last one that was taken, or skipped as finished, of it."""
    following = dict(starts)
    merged = sorted(
        (
            (record.timestamp, place[1], record.offset, place, record)
            for place, records in found.items()
            for record in records
        ),
        key=lambda each: each[:3],
    )
    page: list[tuple[int, Record]] = []
    for _, index, offset, place, record in merged:
        if len(page) == limit:
            break
        following[place] = offset + 1
        if not states[place].is_done(offset):
            page.append((index, record))
    return page, following


def _delivery(at: Address, topic: str, index: int, record: Record) -> Delivery:
    return Delivery(read(record), at, position=(partition_name(topic, index), record.offset), native=record)


def _cursor(offsets: Mapping[Place, int]) -> str:
    return ",".join(f"{place[1]}:{offset}" for place, offset in sorted(offsets.items()))


def _offsets(topic: str, cursor: str | None) -> dict[Place, int]:
    if not cursor:
        return {}
    found: dict[Place, int] = {}
    for part in cursor.split(","):
        index, _, offset = part.partition(":")
        if not (index.isdecimal() and offset.isdecimal()):
            message = f"{cursor!r} is no cursor of this channel"
            raise ConfigurationError(message)
        found[topic, int(index)] = int(offset)
    return found
