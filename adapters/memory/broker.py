"""
The broker itself: channels, groups, what is kept, and the levers by which a test plays its faults.
"""

import threading
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from brokerkit.adapter import Measurement, Order, Start
from brokerkit.adapters.memory.gate import Gate
from brokerkit.adapters.memory.place import Place
from brokerkit.adapters.memory.stored import Stored
from brokerkit.delivery import Delivery
from brokerkit.errors import ConnectionLost, NotFound, SendError, Unroutable, Unsupported
from brokerkit.message import Address, Message

if TYPE_CHECKING:
    from brokerkit.adapters.memory.adapter import MemoryAdapter

__all__ = ["Broker", "Target", "forget", "named"]

_RETENTION = 7 * 24 * 3600.0
_SWEEP = 3600.0


class _Channel:
    """What is kept of one channel, and its groups."""

    def __init__(self, name: str, now: float) -> None:
        self.address = Address(name)
        self.kept: dict[int, Stored] = {}
        self.groups: dict[str, Place] = {}
        self.dead: dict[str, Place] = {}
        self.swept = now

    def sweep(self, now: float) -> None:
        """Once in an hour, drop what is older than the retention."""
        if now - self.swept < _SWEEP:
            return
        self.swept = now
        expired = [stored for stored in self.kept.values() if now - stored.at > _RETENTION]
        for stored in expired:
            del self.kept[stored.seq]
        if expired:
            for place in self.groups.values():
                place.forget(expired)


Target = _Channel | Place
"""Where messages go: to all groups of a channel, or to one place."""


class Broker:
    """
    One broker, shared by adapters that stand for processes. Made by `MemoryAdapter`, never by hand.

    The levers are for tests, from any thread at any time: `expire`, `disconnect`, `stop` and `start`, `refuse`,
    `refuse_settlements`, `freeze` and `thaw`.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = Gate()
        self.adapters: dict[MemoryAdapter, None] = {}
        self.stopped = False
        self.refused_settlements = 0
        self._refusals: list[tuple[SendError, bool]] = []
        self._channels: dict[str, _Channel] = {}
        self._seq = count(1)

    def expire(self, delivery: Delivery) -> None:
        """
        End the lease of a delivery now: it goes to somebody else, settling it is `Stale`, `on_lost` is called.

        With `order="key"` its whole slot is lost. Raises `ValueError` if nobody holds it.
        """
        with self.lock:
            for place in self._places():
                for member in place.members:
                    if delivery in member.out:
                        member.lose(delivery)
                        return
        message = f"nobody holds {delivery!r}"
        raise ValueError(message)

    def disconnect(self) -> None:
        """Cut every connection: `receive` raises `ConnectionLost`, what was held comes back. Subscribe again."""
        for adapter in list(self.adapters):
            adapter.disconnect()

    def stop(self) -> None:
        """Cut every connection and refuse new ones with `ConnectionLost` until `start`; nothing stored is lost."""
        self.stopped = True
        self.disconnect()

    def start(self) -> None:
        """End `stop`."""
        self.stopped = False

    def refuse(self, messages: int, error: SendError, *, stored: bool = False) -> None:
        """Answer the next so many messages with this error; with `stored` they are kept all the same."""
        with self.lock:
            self._refusals.extend([(error, stored)] * messages)

    def refuse_settlements(self, settlements: int) -> None:
        """Answer the next so many settlements with `Unavailable`; nothing changes for their deliveries."""
        with self.lock:
            self.refused_settlements += settlements

    def freeze(self) -> None:
        """Answer nothing, neither sends nor settlements nor receives, until `thaw`. Only `close` still works."""
        self.gate.close()

    def thaw(self) -> None:
        """End `freeze`: what waited is answered."""
        self.gate.open()

    def check(self) -> None:
        """Raise `ConnectionLost` while the broker is stopped."""
        if self.stopped:
            message = "the broker is stopped"
            raise ConnectionLost(message)

    def refuses_settlement(self) -> bool:
        """Use up one of the refused settlements, if there is one; the lock is held."""
        if not self.refused_settlements:
            return False
        self.refused_settlements -= 1
        return True

    def refusal(self) -> tuple[SendError, bool] | None:
        """Use up one of the refused sends, if there is one; the lock is held."""
        return self._refusals.pop(0) if self._refusals else None

    def target(self, to: Address, now: float, *, must_route: bool) -> Target:
        """
        Return where messages for an address go; the lock is held.

        Raises `Unroutable` for a channel that no group reads, `NotFound` for the place of an unknown group.
        """
        channel = self._channel(to.channel, now)
        channel.sweep(now)
        if to.group is not None:
            return self._place(channel, to)
        if must_route and not channel.groups:
            message = f"no group reads {to}"
            raise Unroutable(message)
        return channel

    def store(self, target: Target, message: Message, now: float, after: float) -> None:
        """Keep a message and queue it where it goes; the lock is held."""
        if message.copy_id is not None:
            message = message.replace(copy_id=None)
        if isinstance(target, Place):
            stored = Stored(next(self._seq), message, now, target.kept, 1)
            target.kept[stored.seq] = stored
            target.add(stored, target.address, now + after if after > 0 else None)
            return
        groups = target.groups
        stored = Stored(next(self._seq), message, now, target.kept, len(groups))
        target.kept[stored.seq] = stored
        for place in groups.values():
            place.add(stored, target.address, None)

    def join(self, at: Address, order: Order, start: Start, now: float) -> Place:
        """Return a group's inlet or dead place, made if it is missing; the lock is held."""
        channel = self._channel(at.channel, now)
        if at.group is None:
            message = f"subscribe to a group's inlet or dead place, not to {at}"
            raise Unsupported(message)
        places = channel.groups if at.place == "inlet" else channel.dead
        place = places.get(at.group)
        if place is None:
            place = places[at.group] = Place(at, order)
            if at.place == "inlet" and start == "earliest":
                _replay(channel, place)
        place.expel()
        place.reorder(order)
        return place

    def missing(self, at: Address) -> bool:
        """Return whether an address has not been made; the lock is held."""
        channel = self._channels.get(at.channel)
        if channel is None or at.group is None:
            return channel is None
        return at.group not in (channel.groups if at.place == "inlet" else channel.dead)

    def make(self, at: Address, start: Start, order: Order, now: float) -> None:
        """Make an address; the lock is held."""
        if at.group is None:
            self._channel(at.channel, now)
        else:
            self.join(at, order, start, now)

    def measure(self, at: Address, now: float) -> Measurement:
        """Measure a group's inlet or dead place, or raise `NotFound`; the lock is held."""
        if at.group is None:
            message = f"measure a group's inlet or dead place, not {at}"
            raise Unsupported(message)
        return self._place(self._channel(at.channel, now), at).measure(now)

    def stored(self, at: Address) -> Sequence[Stored]:
        """Return what is kept at a channel or a dead place, oldest first; the lock is held."""
        if at.place == "inlet":
            message = f"browse a channel or a dead place, not {at}"
            raise Unsupported(message)
        channel = self._channels.get(at.channel)
        if channel is None:
            return ()
        if at.group is None:
            return list(channel.kept.values())
        place = channel.dead.get(at.group)
        return () if place is None else list(place.kept.values())

    def newest(self) -> int:
        """Return the highest sequence number so far, by using up one; the lock is held."""
        return next(self._seq)

    def groups(self) -> Sequence[tuple[str, str]]:
        """Return the (channel, group) pairs; the lock is held."""
        return [(name, group) for name, channel in self._channels.items() for group in channel.groups]

    def _channel(self, name: str, now: float) -> _Channel:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = _Channel(name, now)
        return channel

    def _place(self, channel: _Channel, at: Address) -> Place:
        group = str(at.group)
        places = channel.groups if at.place == "inlet" else channel.dead
        place = places.get(group)
        if place is None and at.place == "dead" and group in channel.groups:
            place = places[group] = Place(at, "none")
        if place is None:
            message = f"there is no group {group!r} on {at.channel!r}; subscribe or provision it first"
            raise NotFound(message)
        return place

    def _places(self) -> Sequence[Place]:
        return [
            place
            for channel in self._channels.values()
            for place in (*channel.groups.values(), *channel.dead.values())
        ]


def _replay(channel: _Channel, place: Place) -> None:
    """Give a new group everything that is kept."""
    for stored in channel.kept.values():
        stored.pending += 1
        place.add(stored, channel.address, None)


_named: dict[str, Broker] = {}
_named_lock = threading.Lock()


def named(name: str) -> Broker:
    """Return the broker of this name in this process, or a new private one for the empty name."""
    if not name:
        return Broker()
    with _named_lock:
        return _named.setdefault(name, Broker())


def forget(name: str) -> None:
    """Forget the broker of this name and all that it keeps; adapters that are open keep their hold on it."""
    with _named_lock:
        _named.pop(name, None)
