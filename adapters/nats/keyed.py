"""
A subscription with order by key: the partitions that this member owns, and the group's inlet.
"""

import asyncio
import random
from collections import deque
from collections.abc import Sequence

from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.link import Incoming
from brokerkit.adapters.nats.member import Member, Site
from brokerkit.adapters.nats.names import partition_of, subject
from brokerkit.adapters.nats.partition import Partition
from brokerkit.adapters.nats.presence import Presence
from brokerkit.adapters.nats.source import Source
from brokerkit.adapters.nats.topology import GROUP
from brokerkit.message import Address

__all__ = ["KeyedSubscription"]

_WINDOW = 100
_INTRODUCTION = 0.1
_ELSEWHERE = 0.1
"""Seconds after which a copy for a key of another member's is offered again."""


class KeyedSubscription(Member):
    """
    One owner for each partition at a time, shared evenly between the members that are there.

    A copy in the inlet is handed out by whoever owns the partition of its key; the others give it back.
    """

    def __init__(self, site: Site, *, pin_timeout: float, pins: bool) -> None:
        super().__init__(site)
        self.parts: list[Partition] = []
        self._pins = pins
        self._pin_timeout = pin_timeout
        self._by_source: dict[Source, Partition] = {}
        self._inlet: Source | None = None
        self._copies: deque[Held] = deque()
        self._presence: Presence | None = None
        self._turning = False
        self._first = 0

    async def start(self, channel: Sequence[tuple[str, str]], own: tuple[str, str]) -> None:
        """Open the sources: (stream, durable) of each partition, and of the inlet."""
        for index, (stream, name) in enumerate(channel):
            source = self.source(stream, name, self._pin_timeout)
            source.fields = {"group": GROUP} if self._pins else {}
            part = Partition(self, index, source, self._pin_timeout, pins=self._pins)
            self.parts.append(part)
            self._by_source[source] = part
        self._inlet = self.source(*own)
        self.watches_time = True
        await self.look_at_clock()
        await self._inlet.start()
        at = self.site.at
        assert at.group is not None  # noqa: S101 - an inlet
        self._presence = Presence(
            self.site.link,
            subject(at.channel, "members", at.group),
            beat=self._pin_timeout / 4,
            owned=lambda: {part.index for part in self.parts if part.mine or part.state == "claiming"},
            on_change=self.changed,
        )
        await self._presence.start()
        await asyncio.sleep(_INTRODUCTION)  # so long the others have to answer
        self.begin()
        self.changed()

    # -- what Member asks

    def address_of(self, source: Source) -> Address:
        """Return where a source's messages came in."""
        return self.site.at if source is self._inlet else Address(self.site.at.channel)

    def arrived(self, source: Source, message: Incoming) -> None:
        """See to the pin before the message."""
        part = self._by_source.get(source)
        if part is not None:
            if not (part.mine or part.state == "claiming" or self.closed):
                return  # it is somebody else's by now: who owns it next asks for it
            part.before(message.headers.get("Nats-Pin-Id"))
        super().arrived(source, message)

    def place(self, held: Held) -> None:
        """Let an arrival wait in its partition, or among the copies."""
        part = self._by_source.get(held.source)
        if part is not None:
            held.part = part.index
            part.arrived(held)
        else:
            key = held.delivery.message.key
            held.part = None if key is None else partition_of(key, len(self.parts))
            if held.part is not None and not self.parts[held.part].takes_copies(self._loop.time()):
                self._refuse(held)
                return
            self._copies.append(held)
        self.wake()

    def by_lease(self, source: Source) -> bool:
        """For a partition the pin decides."""
        return not (self._pins and source in self._by_source)

    def _refuse(self, held: Held) -> None:
        """Give a copy back whose key is another member's."""
        del self.held[held.key]
        pause = random.uniform(_ELSEWHERE / 2, _ELSEWHERE * 1.5)  # noqa: S311 - so that two members do not go in step
        self.spawn(self.turn_away(held.source, held.reply, held.identity, pause))
        if held.source.credit == 0:
            self._hungry(held.source)

    def take(self, limit: int, now: float) -> list[Held]:
        """Return what the partitions that are certainly ours have, turn by turn, and the copies."""
        taken: list[Held] = []
        self._take_copies(limit, now, taken)
        count = len(self.parts)
        self._first += 1
        for step in range(count):
            part = self.parts[(self._first + step) % count]
            if part.state == "owned" and part.confirmed(now):
                while part.waiting and len(taken) < limit:
                    held = part.waiting.popleft()
                    if self.held.get(held.key) is held:
                        part.out += 1
                        taken.append(held)
        if taken:
            self._hungry(self.sources[0])
        return taken

    def _take_copies(self, limit: int, now: float, taken: list[Held]) -> None:
        for _ in range(len(self._copies)):
            if len(taken) >= limit:
                return
            held = self._copies.popleft()
            if self.held.get(held.key) is not held or not self.ours(held, now):
                continue
            if held.part is not None:
                part = self.parts[held.part]
                if not part.takes_copies(now):
                    self._refuse(held)
                    continue
                part.out += 1
            taken.append(held)

    def ours(self, held: Held, now: float) -> bool:
        """Say whether it is still ours: by the pin of its partition, and by its own lease."""
        part = None if held.part is None else self.parts[held.part]
        if part is not None and held.source is part.source and self._pins:
            # until the pin is confirmed for the first time nothing of it is handed out, and nothing is lost
            return part.mine and (now < part.until or part.state == "taking")
        return now < held.until

    def settled(self, held: Held) -> None:
        """Count what is out; a partition that waits to be given back may go now."""
        if held.out and held.part is not None:
            part = self.parts[held.part]
            part.out -= 1
            part.check_leaving()

    async def ask(self) -> None:
        """Ask every partition that is ours, and the inlet while a receive waits."""
        if self.closed:
            return
        for part in self.parts:
            if part.state == "claiming":
                await part.source.ask(1)
            elif part.state == "owned" and len(part.waiting) < _WINDOW:
                await part.source.ask(_WINDOW - len(part.waiting) if self._pins else 1)
        if self._inlet is not None and self.limit and len(self._copies) < self.limit:
            await self._inlet.ask(self.limit - len(self._copies))

    def gone(self, source: Source, why: str) -> None:
        """A pin that the server does not know costs the partition; a consumer that is deleted, the subscription."""
        part = self._by_source.get(source)
        if part is not None and why.startswith("423"):
            part.lose(why)
            return
        super().gone(source, why)

    def turned(self, now: float) -> None:
        """Renew pins, give signs of life."""
        if not self._turning:
            self._turning = True
            self.spawn(self._turn(now))

    async def _turn(self, now: float) -> None:
        try:
            await asyncio.gather(*(part.turn(now) for part in self.parts))
            if self._presence is not None:
                await self._presence.turn()
        finally:
            self._turning = False

    def check_leases(self, now: float) -> None:
        """Give up the partitions whose pin could not be confirmed, and copies whose lease is over."""
        for part in self.parts:
            if self._pins and part.state in {"owned", "leaving"} and now >= part.until:
                part.lose("its pin could not be renewed in time")
        super().check_leases(now)

    async def leave(self) -> None:
        """Give every partition back in order, then the copies, and say good-bye."""
        await asyncio.gather(*(part.release() for part in self.parts))
        if self._inlet is not None:
            await self._inlet.drain()
        await self.give_back(list(self.held.values()))
        if self._presence is not None:
            await self._presence.close()

    # -- what the partitions ask

    def changed(self) -> None:
        """Look again at who should own what."""
        if self.closed or self._presence is None:
            return
        mine = self._presence.plan(len(self.parts)) if self._pins else set(range(len(self.parts)))
        before = [part.state for part in self.parts]
        for part in self.parts:
            if part.index in mine:
                part.claim()
            else:
                part.yield_up()
        if before != [part.state for part in self.parts]:
            self.spawn(self._presence.say())
        self._hungry(self.sources[0])

    def lose_part(self, part: Partition) -> None:
        """Lose everything of a partition; copies with its keys go back to the inlet."""
        mine = [held for held in self.held.values() if held.part == part.index]
        for held in mine:
            if held.source is self._inlet:
                self.spawn(self.turn_away(held.source, held.reply, held.identity, 0))
        self.lose(mine)
        part.out = 0

    def forget_quietly(self, held: Sequence[Held]) -> None:
        """Forget what has been given back."""
        for each in held:
            if self.held.get(each.key) is each:
                del self.held[each.key]
