"""
What one member knows of one partition while it owns it. Pure bookkeeping: no client, no time.

A partition's life with an owner is one `Partition` object; the next assignment makes another one, and what belongs to a
dead object is `Stale`. Offsets that are read and not finished are `open`, in order; the commit stands at the first of
them, and the note beside it says which others above it are finished.
"""

from collections.abc import Container, Iterable, Sequence

from brokerkit.adapters.kafka.names import partition_name
from brokerkit.adapters.kafka.notes import Note, Run, encode
from brokerkit.delivery import Delivery
from brokerkit.message import Address

__all__ = ["Partition"]

_MOST_BEFORE = 1_000_000
_FRESH = (1, 0)


class Partition:
    """
    One partition, from an assignment to the next.

    wait: seconds of its rung, 0 for the inlet, None where nothing waits. hold: how many may be held in memory before it is
    paused. open: what was read and is not finished, by offset. next: the offset after the last one read. live: whether it is
    still ours. draining: nothing of it is handed out any more. adopted: whether its note was read. begun: whether it is written
    that we are at work; nothing is read before.
    mapped: up to where the last note could say which offsets are finished.
    """

    __slots__ = (
        "_before",
        "_head",
        "_horizon",
        "_special",
        "_zone",
        "address",
        "adopted",
        "begun",
        "draining",
        "held",
        "hold",
        "live",
        "mapped",
        "marks",
        "name",
        "next",
        "open",
        "paused",
        "plain",
        "topic",
        "tp",
        "unordered",
        "wait",
        "written",
    )

    def __init__(
        self, topic: str, index: int, address: Address, *, wait: int | None = None, hold: int = 500
    ) -> None:
        self.topic = topic
        self.tp = (topic, index)
        self.name = partition_name(topic, index)
        self.address = address
        self.wait = wait
        self.hold = hold
        self.open: dict[int, Delivery] = {}
        self.next = 0
        self.held = 0
        self.live = True
        self.draining = False
        self.adopted = False
        self.begun = False
        self.paused = True
        self.plain = True
        self.unordered = False
        self.mapped = 0
        self.marks: dict[int, bytes] = {}
        self.written: tuple[int, str] | None = None
        self._head = 0
        self._horizon = 0
        self._zone = 0
        self._special = False
        self._before: dict[int, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"<Partition {self.name} head={self.head} next={self.next} open={len(self.open)} live={self.live}>"

    def adopt(self, head: int, note: Note | None, *, end: int, slack: int) -> None:
        """
        Take over where the last owner has left off.

        end: the log's end now; what comes later cannot have been in its hands. slack: how many beyond the note it may have
        handed out since it was written. A note that reaches beyond the end belongs to a log that was cut, and is not believed.
        """
        self.next = self._head = self._horizon = head
        self.adopted = True
        if note is None or note.upto > end or sum(run.length for run in note.runs) > _MOST_BEFORE:
            return
        self._horizon = note.upto
        self._before = {
            offset: (run.arrivals, run.returns)
            for run in note.runs
            for offset in range(run.first, run.first + run.length)
        }
        self.marks = {offset: value for offset, value in note.marks.items() if offset >= head}
        self._special = bool(self._before)
        if not note.drained:
            self._zone = min(note.upto + slack, end)
        self.plain = max(self._horizon, self._zone) <= head and not self.marks

    def forget_notes(self) -> None:
        """The log is another one from here on: what is known of its offsets says nothing any more."""
        self.unordered = True
        self._horizon = self._zone = self._head
        self._before.clear()
        self.marks.clear()

    @property
    def head(self) -> int:
        """Where the commit stands: at the first that is not finished."""
        if self.unordered:
            return min(self._unfinished(), default=self.next)
        return next(iter(self.open), self.next)

    @property
    def careful(self) -> bool:
        """Whether what is read next may have ended its last owner: a hand-out is written down before it happens."""
        return self.next < self._zone

    def known(self, offset: int) -> tuple[int, int] | None:
        """Return (arrivals, returns) for an offset that is read now, or None if it is finished."""
        if self._head <= offset < self._horizon:
            before = self._before.pop(offset, None)
            if before is None:
                return None
            self._special = True
            return before[0] + 1, before[1]
        if self._horizon <= offset < self._zone:
            self._special = True
            return 2, 0
        return _FRESH

    def read_upto(self, offset: int) -> None:
        """Note that everything below this offset was read."""
        self.next = offset
        if self.marks:
            head = self.head  # what retention has deleted is marked no more
            self.marks = {place: mark for place, mark in self.marks.items() if place >= head}
        if not self.plain and offset >= max(self._horizon, self._zone) and not self.marks:
            self.plain = True
            self._before.clear()

    def finish(self, delivery: Delivery, offset: int) -> bool:
        """Finish what is open; False if this very delivery is not."""
        if self.open.get(offset) is not delivery:
            return False
        del self.open[offset]
        if self.marks:
            self.marks.pop(offset, None)
        return True

    def replace(self, offset: int, delivery: Delivery) -> None:
        """Put a new delivery in an open one's place: it was returned politely and comes again."""
        self.open[offset] = delivery
        self._special = True

    def note(self, buffered: Container[int], *, drained: bool) -> tuple[int, str]:
        """
        Return the offset to commit and what to write beside it.

        buffered: the ids of the deliveries that are read and not handed out. drained: whether what was handed out and is
        open goes back politely.
        """
        head = self.head
        runs = self._runs(head, buffered, drained=drained)
        unread = [(offset, *counts) for offset, counts in self._before.items() if offset >= self.next]
        for offset, arrivals, returns in unread:
            _append(runs, offset, arrivals, returns)
        upto = max(self.next, self._horizon if self._horizon > self.next else 0)
        handed = 0 if drained else sum(id(each) not in buffered for each in self.open.values())
        text, self.mapped = encode(
            Note(
                drained=drained,
                upto=upto,
                runs=runs,
                handed=handed,
                marks={offset: mark for offset, mark in self.marks.items() if offset >= head},
            ),
            head,
        )
        return head, text

    def handed(self, buffered: Container[int]) -> list[Delivery]:
        """Return what was handed out and is open."""
        return [delivery for delivery in self.open.values() if id(delivery) not in buffered]

    def _unfinished(self) -> Iterable[int]:
        """Return the open offsets in order. Of a log that was cut there may be some beyond what was read of the new one."""
        return sorted(offset for offset in self.open if offset < self.next) if self.unordered else self.open

    def _runs(self, head: int, buffered: Container[int], *, drained: bool) -> list[Run]:
        if not self._special and not drained:
            count = len(self.open)
            if count == self.next - head and not self.unordered:
                return [Run(head, count, *_FRESH)] if count else []
            return _runs_of(self._unfinished())
        runs: list[Run] = []
        fresh = True
        for offset in self._unfinished():
            delivery = self.open[offset]
            arrivals, returns = delivery.arrivals or 1, delivery.returns
            fresh = fresh and (arrivals, returns) == _FRESH
            if drained and id(delivery) in buffered:
                arrivals -= 1
            elif drained:
                returns += 1
            _append(runs, offset, arrivals, returns)
        if fresh and not self._before:
            self._special = False
        return runs


def _runs_of(offsets: Iterable[int]) -> list[Run]:
    """Return runs of offsets that have come once."""
    runs: list[Run] = []
    first = last = -1
    for offset in offsets:
        if offset != last + 1 or first < 0:
            if first >= 0:
                runs.append(Run(first, last - first + 1, *_FRESH))
            first = offset
        last = offset
    if first >= 0:
        runs.append(Run(first, last - first + 1, *_FRESH))
    return runs


def _append(runs: list[Run], offset: int, arrivals: int, returns: int) -> None:
    if runs:
        last = runs[-1]
        if last.first + last.length == offset and (last.arrivals, last.returns) == (arrivals, returns):
            runs[-1] = last._replace(length=last.length + 1)
            return
    runs.append(Run(offset, 1, arrivals, returns))


def buffered_ids(deliveries: Sequence[Delivery]) -> set[int]:
    """Return the ids by which a partition tells what was not handed out."""
    return set(map(id, deliveries))
