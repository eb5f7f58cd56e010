"""
A subscription without order, or at a dead place: the members of a group compete for its messages.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from brokerkit.adapters.nats.held import Held
from brokerkit.adapters.nats.member import Member, Site
from brokerkit.adapters.nats.source import Source
from brokerkit.message import Address

__all__ = ["CompetingSubscription"]

_QUICK = 0.02
"""Who comes back for more within so many seconds is quick, and is asked for ahead."""

_RECENTLY = 0.2


class CompetingSubscription(Member):
    """
    Pulls a group's channel and its inlet, or its dead place.

    Asks for what a waiting `receive` wants, so that messages stay with the server for whoever is free; a member that comes
    back quickly is given as much again in advance, within its prefetch.
    """

    def __init__(self, site: Site, prefetch: int) -> None:
        super().__init__(site)
        self._prefetch = prefetch
        self._waiting: deque[Held] = deque()
        self._addresses: dict[Source, Address] = {}
        self._returned = 0.0
        self._ahead = 0

    async def start(self, channel: Sequence[tuple[str, str]], own: tuple[str, str]) -> None:
        """Open the sources: (stream, durable) of the channel, if it has one, and of the group's own place."""
        for stream, name in channel:
            self._addresses[self.source(stream, name)] = Address(self.site.at.channel)
        self._addresses[self.source(*own)] = self.site.at
        self.watches_time = self.site.at.place == "inlet"
        if self.watches_time:
            await self.look_at_clock()
        for source in self.sources:
            await source.start()
        self.begin()

    def address_of(self, source: Source) -> Address:
        """Return where a source's messages came in."""
        return self._addresses[source]

    def place(self, held: Held) -> None:
        """Let an arrival wait."""
        self._waiting.append(held)
        self.wake()

    def take(self, limit: int, now: float) -> list[Held]:
        """Return what waits and is still ours."""
        waiting = self._waiting
        taken: list[Held] = []
        while waiting and len(taken) < limit:
            held = waiting.popleft()
            if self.held.get(held.key) is held and self.ours(held, now):
                taken.append(held)
        if taken:
            self._ahead = limit if now - self._returned < _QUICK else 0
            self._returned = now
            if self._ahead and len(self._waiting) * 2 < limit:
                self._hungry(taken[0].source)
        return taken

    async def ask(self) -> None:
        """Ask each source for what is wanted and does not wait here already."""
        ahead = self._ahead if self._loop.time() - self._returned < _RECENTLY else 0
        room = max(self.limit, min(ahead, self._prefetch - len(self.held)))
        wanted = room - len(self._waiting)
        if wanted > 0 and not self.closed:
            for source in self.sources:
                await source.ask(wanted)

    async def before_acks(self, source: Source, acked: Sequence[Held]) -> None:
        """Delete dead letters that are done: their stream keeps what is only acked."""
        if self.site.at.place == "dead":
            await asyncio.gather(*(self.site.api.delete_message(source.stream, held.seq) for held in acked))
