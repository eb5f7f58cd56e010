"""
A group's inlet or its dead place: what waits, what is not due, and who is a member.

Nothing here locks or waits; the broker's lock is held around every call.
"""

import heapq
from collections.abc import Iterable

from brokerkit.adapter import Measurement, Order
from brokerkit.adapters.memory.queues import Competing, Member, Queue, Slotted, stored_of
from brokerkit.adapters.memory.stored import Stored
from brokerkit.adapters.memory.subscription import MemorySubscription
from brokerkit.delivery import Delivery
from brokerkit.errors import ConfigurationError
from brokerkit.message import Address

__all__ = ["Place"]


class Place:
    """
    One group's place.

    kept: the copies that were sent here and nowhere else. marks: by sequence number. waiting: the members
    that have nothing to do, the longest idle one first.
    """

    def __init__(self, address: Address, order: Order) -> None:
        self.address = address
        self.order = order
        self.kept: dict[int, Stored] = {}
        self.marks: dict[int, bytes] = {}
        self.members: dict[MemorySubscription, None] = {}
        self.waiting: dict[Member, None] = {}
        self.delayed: list[tuple[float, int, Delivery]] = []
        self.queue: Queue = self._queue(order)

    def _queue(self, order: Order) -> Queue:
        if order == "key":
            return Slotted()
        return Competing(self.waiting)

    def reorder(self, order: Order) -> None:
        """Change the order mode, or raise `ConfigurationError` if a member counts on the old one."""
        if order == self.order:
            return
        if self.members:
            message = f"{self.address} has members with order={self.order!r}; all of a group use the same"
            raise ConfigurationError(message)
        queued = self.queue.waiting()
        self.order = order
        self.queue = self._queue(order)
        for delivery in queued:
            self.queue.add(delivery)
        for _, _, delivery in self.delayed:
            if (delivery.arrivals or 1) > 1:  # one that was returned: its key waits for it
                self.queue.suspend(stored_of(delivery))

    def add(self, stored: Stored, address: Address, due: float | None) -> None:
        """Queue a new message, handed out as coming from `address`, not before `due`."""
        delivery = Delivery(stored.message, address, stored, arrivals=1, position=stored.position)
        if due is None:
            self.queue.add(delivery)
        else:
            self._delay(due, delivery)

    def join(self, member: MemorySubscription) -> None:
        """Let a member in."""
        self.members[member] = None
        self.queue.join(member)

    def leave(self, member: MemorySubscription, *, polite: bool) -> list[Delivery]:
        """Let a member go, put back what it held, and return that."""
        if member not in self.members:
            return []
        held = sorted(member.out, key=lambda delivery: stored_of(delivery).seq)
        self.waiting.pop(member, None)
        for delivery in held:
            self.put_back(member, delivery, due=None, polite=polite)
        del self.members[member]
        self.queue.leave(member)
        return held

    def take(self, member: MemorySubscription, limit: int, now: float) -> list[Delivery]:
        """Hand out what is due to a member."""
        if self.delayed and self.delayed[0][0] <= now:
            self.mature(now)
        batch = self.queue.take(member, limit)
        member.out.update(batch)
        return batch

    def mature(self, now: float) -> None:
        """Queue what has become due."""
        delayed, queue = self.delayed, self.queue
        while delayed and delayed[0][0] <= now:
            delivery = heapq.heappop(delayed)[2]
            queue.resume(stored_of(delivery))
            queue.again(delivery)

    def next_due(self) -> float | None:
        """Return when the next delayed one is due."""
        return self.delayed[0][0] if self.delayed else None

    def finish(self, done: Iterable[Stored]) -> None:
        """Be done with some that a member held and holds no more."""
        marks = self.marks
        for stored in done:
            stored.pending -= 1
            if stored.pending <= 0:
                stored.home.pop(stored.seq, None)
            if marks:
                marks.pop(stored.seq, None)
        self.queue.settled()

    def put_back(
        self, member: MemorySubscription, delivery: Delivery, *, due: float | None, polite: bool
    ) -> None:
        """Take one out of a member's hands and queue it as its next arrival."""
        member.out.remove(delivery)
        stored = stored_of(delivery)
        arrival = Delivery(
            stored.message,
            delivery.address,
            stored,
            arrivals=(delivery.arrivals or 0) + 1,
            returns=delivery.returns + polite,
            position=stored.position,
            mark=self.marks.get(stored.seq),
        )
        if due is None:
            self.queue.again(arrival)
        else:
            self.queue.suspend(stored)
            self._delay(due, arrival)
        self.queue.settled()

    def note(self, delivery: Delivery, value: bytes | None) -> None:
        """Keep bytes for the next owner, or erase them."""
        seq = stored_of(delivery).seq
        if value is None:
            self.marks.pop(seq, None)
        else:
            self.marks[seq] = value

    def lose(self, member: MemorySubscription, delivery: Delivery) -> list[Delivery]:
        """End the lease of one delivery, and of those that are tied to it by order; return them all."""
        gone = self.queue.tied(delivery, member.out)
        for each in gone:
            self.put_back(member, each, due=None, polite=False)
        self.queue.lost(delivery)
        return gone

    def forget(self, expired: Iterable[Stored]) -> None:
        """Drop what was kept too long and waits still; what is out or delayed ends in its own way."""
        for stored in expired:
            stored.gone = True
        queued = self.queue.waiting()
        self.queue.clear()
        for delivery in queued:
            if not stored_of(delivery).gone:
                self.queue.again(delivery)

    def police(self, now: float) -> None:
        """End the leases that have run out."""
        for member in list(self.members):
            if member.until < now:
                member.expire()

    def expel(self) -> None:
        """Put out the members whose event loop is closed: they will never settle, nor leave."""
        for member in list(self.members):
            if member.loop.is_closed():
                self.leave(member, polite=False)

    def measure(self, now: float) -> Measurement:
        """Count what waits, what is not due and what is out."""
        due = [delivery for when, _, delivery in self.delayed if when <= now]
        waiting = self.queue.waiting()
        out = [delivery for member in self.members for delivery in member.out]
        oldest = min(
            (stored_of(delivery).at for delivery in (*waiting, *out, *(d for _, _, d in self.delayed))),
            default=None,
        )
        return Measurement(
            waiting=len(waiting) + len(due),
            delayed=len(self.delayed) - len(due),
            in_flight=len(out),
            oldest=None if oldest is None else now - oldest,
        )

    def _delay(self, due: float, delivery: Delivery) -> None:
        first = self.next_due()
        heapq.heappush(self.delayed, (due, stored_of(delivery).seq, delivery))
        if first is None or due < first:
            for member in list(self.waiting):
                member.wake()
