"""
One test's way to the broker, and a few words that the tests share.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable, Sequence

from brokerkit.adapter import (
    Adapter,
    Browses,
    Capabilities,
    Describes,
    Identifies,
    Measures,
    Order,
    Provisions,
    Start,
)
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.elsewhere import Elsewhere, start_elsewhere
from brokerkit.testing.conformance.harness import LIMITS, Harness, Restarts
from brokerkit.testing.conformance.member import Member, bodies, join

__all__ = ["Bench", "Member", "bodies", "eventually", "inlet", "text"]

_LATENESS = 1.5


def inlet(channel: str, group: str) -> Address:
    """Return a group's inlet."""
    return Address(channel, group, "inlet")


def text(body: str, key: str | None = None) -> Message:
    """Return a message of text."""
    return Message(body=body.encode(), key=None if key is None else key.encode())


class Bench:
    """One test's way to the broker: names of its own, and everything closed in the end."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.patience = harness.patience
        self.run = secrets.token_hex(4)
        self.figures: list[tuple[str, object]] = []
        self._first: Adapter | None = None
        self._adapters: list[Adapter] = []
        self._elsewhere: list[Elsewhere] = []

    async def open(self) -> Adapter:
        """Connect the first adapter and return it."""
        self._first = await self.adapter()
        return self._first

    @property
    def first(self) -> Adapter:
        """The adapter that is always there."""
        assert self._first is not None
        return self._first

    @property
    def capabilities(self) -> Capabilities:
        """What the broker claims."""
        return self.first.capabilities

    @property
    def lateness(self) -> float:
        """How many seconds late something may be: the promised one, and a loaded machine's."""
        return _LATENESS

    @property
    def browses(self) -> Browses:
        """The first adapter, as one that browses."""
        assert isinstance(self.first, Browses)
        return self.first

    @property
    def measures(self) -> Measures:
        """The first adapter, as one that measures."""
        assert isinstance(self.first, Measures)
        return self.first

    @property
    def provisions(self) -> Provisions:
        """The first adapter, as one that provisions."""
        assert isinstance(self.first, Provisions)
        return self.first

    @property
    def describes(self) -> Describes:
        """The first adapter, as one that describes."""
        assert isinstance(self.first, Describes)
        return self.first

    @property
    def identifies(self) -> Identifies:
        """The first adapter, as one that identifies its server."""
        assert isinstance(self.first, Identifies)
        return self.first

    @property
    def restarts(self) -> Restarts:
        """The harness, as one that restarts."""
        assert isinstance(self.harness, Restarts)
        return self.harness

    def figure(self, name: str, value: float) -> None:
        """Keep a measured figure, for the table of guarantees; no test judges by it."""
        self.figures.append((f"figure:{name}", round(value, 4)))

    def spared(self, limit: str) -> bool:
        """Return whether the harness claims this limit."""
        assert limit in LIMITS
        return limit in self.harness.limits

    def name(self, word: str = "c") -> str:
        """Return a channel name that no other test uses."""
        return f"{word}-{self.run}"

    async def adapter(self) -> Adapter:
        """Return a new connected adapter: another process."""
        adapter = await self.harness.adapter()
        self._adapters.append(adapter)
        return adapter

    async def elsewhere(self) -> "Elsewhere":
        """Return another process with an adapter of its own."""
        process = await start_elsewhere(self.harness, real=self.capabilities.processes)
        self._elsewhere.append(process)
        return process

    async def member(
        self,
        channel: str | None = None,
        group: str = "g",
        *,
        place: str = "inlet",
        adapter: Adapter | None = None,
        order: Order = "none",
        start: Start = "earliest",
    ) -> Member:
        """Subscribe, through a new adapter if none is given."""
        chosen = adapter or await self.adapter()
        return await join(chosen, Address(channel or self.name(), group, place), self.patience, order, start)

    async def send(
        self,
        adapter: Adapter,
        to: Address | str,
        messages: Iterable[Message | str],
        after: float | Sequence[float] = 0,
    ) -> None:
        """Send, and see each confirmed."""
        address = Address(to) if isinstance(to, str) else to
        made = [text(message) if isinstance(message, str) else message for message in messages]
        async with asyncio.timeout(self.patience):
            assert list(await adapter.send(address, made, after=after)) == [None] * len(made)

    async def close(self) -> None:
        """Close what is open, also what a test has stopped or killed."""
        for process in self._elsewhere:
            await process.close()
        async with asyncio.timeout(self.patience):
            await asyncio.gather(*(adapter.close() for adapter in self._adapters))


async def eventually(
    check: Callable[[], Awaitable[bool]], patience: float, what: str, *, pause: float = 0.02
) -> None:
    """Ask again and again, where a broker tells no event."""
    end = asyncio.get_running_loop().time() + patience
    while not await check():
        assert asyncio.get_running_loop().time() < end, f"not within {patience} s: {what}"
        await asyncio.sleep(pause)
