"""
The two ways in which a place hands out: to whoever asks, or by slots that have one owner.

Nothing here locks or waits; the broker's lock is held around every call.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from math import ceil
from typing import Protocol
from zlib import crc32

from brokerkit.adapters.memory.stored import Stored
from brokerkit.delivery import Delivery

__all__ = ["SLOTS", "Competing", "Member", "Queue", "Slotted", "stored_of"]

SLOTS = 64


class Member(Protocol):
    """What a queue knows of a subscription; one is told from another by identity."""

    out: set[Delivery]

    def wake(self) -> bool:
        """Let it look again; False if it never will."""
        ...


class Queue(Protocol):
    """
    What waits at one place, as deliveries made in advance.

    `add` is for what is new; `again` for what goes before everything new, in order of arrival at the broker.
    """

    def add(self, delivery: Delivery) -> None:
        """Queue what is new."""
        ...

    def again(self, delivery: Delivery) -> None:
        """Queue what was here before, or has been due."""
        ...

    def take(self, member: Member, limit: int, /) -> list[Delivery]:
        """Hand out to a member."""
        ...

    def settled(self) -> None:
        """Note that something that was out is not any more."""
        ...

    def tied(self, delivery: Delivery, out: Iterable[Delivery], /) -> list[Delivery]:
        """Return those of `out` that are lost together with `delivery`."""
        ...

    def lost(self, delivery: Delivery) -> None:
        """Note that the owner of this one has lost it, after it was put back."""
        ...

    def suspend(self, stored: Stored) -> None:
        """Hold back what is behind this one, until `resume`."""
        ...

    def resume(self, stored: Stored) -> None:
        """Undo `suspend`."""
        ...

    def join(self, member: Member) -> None:
        """Let a member in."""
        ...

    def leave(self, member: Member, /) -> None:
        """Let a member go; nothing of it is out any more."""
        ...

    def pass_on(self) -> None:
        """Wake another: one that was woken will not take after all."""
        ...

    def waiting(self) -> list[Delivery]:
        """Return everything that is queued, oldest first."""
        ...

    def clear(self) -> None:
        """Forget everything that is queued."""
        ...


def stored_of(delivery: Delivery) -> Stored:
    """Return what the receipt of one of our own deliveries stands for."""
    receipt = delivery.receipt
    if not isinstance(receipt, Stored):
        message = f"{delivery!r} is not a delivery of memory://"
        raise TypeError(message)
    return receipt


def _slot_of(stored: Stored) -> int:
    """Return the slot of a message: by its key, the same in every process; without a key by turns."""
    key = stored.message.key
    return (stored.seq if key is None else crc32(key)) % SLOTS


def _order(delivery: Delivery) -> int:
    return stored_of(delivery).seq


class _Line:
    """A line: what is new behind what came back."""

    __slots__ = ("back", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[Delivery] = deque()
        self.back: list[tuple[int, Delivery]] = []

    def __bool__(self) -> bool:
        return bool(self.fresh or self.back)

    def again(self, delivery: Delivery) -> None:
        heapq.heappush(self.back, (_order(delivery), delivery))

    def take(self, limit: int) -> list[Delivery]:
        back, fresh = self.back, self.fresh
        batch: list[Delivery] = []
        while back and len(batch) < limit:
            batch.append(heapq.heappop(back)[1])
        rest = limit - len(batch)
        if rest >= len(fresh):
            batch.extend(fresh)
            fresh.clear()
        else:
            next_one = fresh.popleft
            batch.extend([next_one() for _ in range(rest)])
        return batch

    def waiting(self) -> list[Delivery]:
        return sorted([*(delivery for _, delivery in self.back), *self.fresh], key=_order)

    def clear(self) -> None:
        self.fresh.clear()
        self.back.clear()


class Competing:
    """`order="none"`: one line for all members, first come, first served."""

    def __init__(self, waiting: dict[Member, None]) -> None:
        self._line = _Line()
        self._waiting = waiting

    def add(self, delivery: Delivery) -> None:
        """Queue what is new."""
        self._line.fresh.append(delivery)
        self._wake()

    def again(self, delivery: Delivery) -> None:
        """Queue what was here before, or has been due."""
        self._line.again(delivery)
        self._wake()

    def take(self, _member: Member, limit: int) -> list[Delivery]:
        """Hand out to a member, and pass the word on if something is left."""
        batch = self._line.take(limit)
        self.pass_on()
        return batch

    def settled(self) -> None:
        """Nothing depends on it."""

    def tied(self, delivery: Delivery, _out: Iterable[Delivery]) -> list[Delivery]:
        """Return it alone."""
        return [delivery]

    def lost(self, delivery: Delivery) -> None:
        """Nothing depends on it: anybody may be the next."""

    def suspend(self, stored: Stored) -> None:
        """Nothing is held back: no order was promised."""

    def resume(self, stored: Stored) -> None:
        """Nothing was held back."""

    def join(self, member: Member) -> None:
        """Let a member in."""

    def leave(self, _member: Member) -> None:
        """Let a member go."""
        self.pass_on()

    def pass_on(self) -> None:
        """Wake another, if there is something."""
        if self._waiting and self._line:
            self._wake()

    def waiting(self) -> list[Delivery]:
        """Return everything that is queued, oldest first."""
        return self._line.waiting()

    def clear(self) -> None:
        """Forget everything that is queued."""
        self._line.clear()

    def _wake(self) -> None:
        while self._waiting and not next(iter(self._waiting)).wake():
            """The one that was woken is gone, and off the list: the next."""


class Slotted:
    """
    `order="key"`: 64 slots, each with one owner, who has one line for all of its slots.

    A slot that nobody has, or that is to move and still has something out, has a line of its own meanwhile.
    """

    def __init__(self) -> None:
        self._owners: list[Member | None] = [None] * SLOTS
        self._lines: dict[Member, _Line] = {}
        self._aside: dict[int, _Line] = {}
        self._leaving: set[int] = set()
        self._suspended: dict[bytes, set[int]] = {}
        self._parked: dict[bytes, list[Delivery]] = {}

    def add(self, delivery: Delivery) -> None:
        """Queue what is new."""
        slot = _slot(delivery)
        self._line(slot).fresh.append(delivery)
        self._wake(slot)

    def again(self, delivery: Delivery) -> None:
        """Queue what was here before, or has been due."""
        slot = _slot(delivery)
        self._line(slot).again(delivery)
        self._wake(slot)

    def take(self, member: Member, limit: int) -> list[Delivery]:
        """Hand out from the member's own slots."""
        line = self._lines[member]
        return self._pick(line, limit) if self._suspended else line.take(limit)

    def settled(self) -> None:
        """See whether a slot that is to move can."""
        if self._leaving:
            self._balance()

    def tied(self, delivery: Delivery, out: Iterable[Delivery]) -> list[Delivery]:
        """Return all of its slot: one alone would come back behind its followers."""
        slot = _slot(delivery)
        return sorted((other for other in out if _slot(other) == slot), key=_order)

    def lost(self, delivery: Delivery) -> None:
        """Give the slot to somebody else, if there is anybody."""
        slot = _slot(delivery)
        owner = self._owners[slot]
        others = [member for member in self._lines if member is not owner]
        if owner is not None and others:
            self._set_aside(owner, {slot})
            self._give(slot, self._poorest(others))
            self._balance()

    def suspend(self, stored: Stored) -> None:
        """Hold back the later ones of its key."""
        if stored.message.key is not None:
            self._suspended.setdefault(stored.message.key, set()).add(stored.seq)

    def resume(self, stored: Stored) -> None:
        """Let the later ones of its key follow it."""
        key = stored.message.key
        before = self._suspended.get(key) if key is not None else None
        if key is None or before is None:
            return
        before.discard(stored.seq)
        if not before:
            del self._suspended[key]
        for delivery in self._parked.pop(key, ()):
            self.again(delivery)

    def join(self, member: Member) -> None:
        """Let a member in and give it its share, as far as slots are idle."""
        self._lines[member] = _Line()
        self._balance()

    def leave(self, member: Member) -> None:
        """Take a member's slots and share them out."""
        self._set_aside(member, self._slots(member))
        del self._lines[member]
        self._balance()

    def pass_on(self) -> None:
        """Nobody else could take it."""

    def waiting(self) -> list[Delivery]:
        """Return everything that is queued, oldest first."""
        lines = [line.waiting() for line in (*self._lines.values(), *self._aside.values())]
        return sorted((each for group in (*lines, *self._parked.values()) for each in group), key=_order)

    def clear(self) -> None:
        """Forget everything that is queued."""
        for line in self._lines.values():
            line.clear()
        self._aside.clear()
        self._parked.clear()

    def _pick(self, line: _Line, limit: int) -> list[Delivery]:
        """Take what no suspended one stands before; set the others aside, each only once."""
        batch: list[Delivery] = []
        while line and len(batch) < limit:
            delivery = line.take(1)[0]
            key = delivery.message.key
            before = self._suspended.get(key) if key is not None else None
            if before and key is not None and min(before) < _order(delivery):
                self._parked.setdefault(key, []).append(delivery)
            else:
                batch.append(delivery)
        return batch

    def _line(self, slot: int) -> _Line:
        owner = self._owners[slot]
        if owner is None or slot in self._leaving:
            return self._aside.setdefault(slot, _Line())
        return self._lines[owner]

    def _wake(self, slot: int) -> None:
        owner = self._owners[slot]
        if owner is not None and slot not in self._leaving:
            owner.wake()

    def _slots(self, member: Member) -> set[int]:
        return {slot for slot, owner in enumerate(self._owners) if owner is member}

    def _poorest(self, members: Iterable[Member]) -> Member:
        return min(members, key=self._owners.count)

    def _balance(self) -> None:
        """Take what is above a share (at once if idle, else when it is) and give out what nobody has."""
        if not self._lines:
            return
        share = ceil(SLOTS / len(self._lines))
        for member in self._lines:
            self._shed(member, share)
        for slot, owner in enumerate(self._owners):
            if owner is None:
                self._give(slot, self._poorest(self._lines))

    def _shed(self, member: Member, share: int) -> None:
        slots = self._slots(member)
        out = {_slot(delivery) for delivery in member.out}
        excess = max(0, len(slots) - share)
        going = set(sorted(slots, key=lambda slot: (slot in out, slot not in self._leaving))[:excess])
        for slot in slots & self._leaving - going:
            self._give(slot, member)
        self._set_aside(member, going - self._leaving, busy=out)
        for slot in going - out:
            self._leaving.discard(slot)
            self._owners[slot] = None

    def _set_aside(self, member: Member, slots: set[int], *, busy: AbstractSet[int] = frozenset()) -> None:
        """Move what waits in some slots out of the member's line; with something out, a slot is leaving."""
        line = self._lines[member]
        waiting = line.waiting() if slots else []
        if any(_slot(delivery) in slots for delivery in waiting):
            line.clear()
            for delivery in waiting:
                slot = _slot(delivery)
                (self._aside.setdefault(slot, _Line()) if slot in slots else line).fresh.append(delivery)
        for slot in slots:
            if slot in busy:
                self._leaving.add(slot)
            else:
                self._leaving.discard(slot)
                self._owners[slot] = None

    def _give(self, slot: int, member: Member) -> None:
        """Make a member the owner: what waited aside comes before everything new."""
        self._owners[slot] = member
        self._leaving.discard(slot)
        aside = self._aside.pop(slot, None)
        for delivery in aside.waiting() if aside is not None else ():
            self._lines[member].again(delivery)
        if aside is not None:
            member.wake()


def _slot(delivery: Delivery) -> int:
    return _slot_of(stored_of(delivery))
