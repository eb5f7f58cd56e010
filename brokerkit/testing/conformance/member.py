"""
A member of a group as the tests use it: waits are bounded, and what was lost is remembered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from brokerkit.adapter import Adapter, Marks, Order, Settled, Start, Subscription, Tallies
from brokerkit.delivery import Delivery
from brokerkit.errors import SettleError
from brokerkit.message import Address
from brokerkit.settlement import ACK

__all__ = ["Member", "bodies", "join", "share"]

QUIET = 0.1
"""Seconds in which nothing may come, where there is no event that says so."""


def bodies(deliveries: Iterable[Delivery]) -> list[str]:
    """Return the bodies as text, in order."""
    return [delivery.message.body.decode() for delivery in deliveries]


@dataclass(eq=False)
class Member:
    """A subscription, and what its adapter has said to have lost."""

    subscription: Subscription
    patience: float
    lost: list[Delivery]
    told: asyncio.Event
    subscribe: Callable[[], Awaitable[Subscription]]

    async def receive(self, limit: int = 100) -> Sequence[Delivery]:
        """Receive once, within the patience."""
        async with asyncio.timeout(self.patience):
            return await self.subscription.receive(limit)

    async def take(self, count: int, *, limit: int = 100, ack: bool = False) -> list[Delivery]:
        """Receive exactly so many; with `ack`, settle each batch as it comes."""
        taken: list[Delivery] = []
        while len(taken) < count:
            batch = await self.receive(min(limit, count - len(taken)))
            assert batch, f"receive returned nothing on an open subscription, after {len(taken)} of {count}"
            taken.extend(batch)
            if ack:
                await self.ack(batch)
        return taken

    async def ack(self, deliveries: Iterable[Delivery]) -> None:
        """Ack, and see each confirmed."""
        settled = [(delivery, ACK) for delivery in deliveries]
        outcomes = await self.subscription.settle(settled)
        assert list(outcomes) == [None] * len(settled)

    async def until(self, body: str, *, ack: bool = True) -> list[Delivery]:
        """Receive until this body has come, and return what came before it."""
        before: list[Delivery] = []
        while True:
            (delivery,) = await self.take(1, ack=ack)
            if delivery.message.body == body.encode():
                return before
            before.append(delivery)

    async def some(self, seconds: float, *, limit: int = 100) -> list[Delivery]:
        """Receive what comes within so many seconds."""
        taken: list[Delivery] = []
        end = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(end):
                while batch := await self.subscription.receive(limit):
                    taken.extend(batch)
        except TimeoutError:
            pass
        return taken

    async def nothing(self, seconds: float = QUIET) -> None:
        """See that nothing comes."""
        assert bodies(await self.some(seconds)) == []

    async def come_back(self) -> None:
        """Do what the engine does when `receive` has raised `ConnectionLost`: close, and subscribe again."""
        await self.close()
        async with asyncio.timeout(self.patience):
            self.subscription = await self.subscribe()

    async def close(self) -> None:
        """Close the subscription."""
        async with asyncio.timeout(self.patience):
            await self.subscription.close()


class Taker(Protocol):
    """A member, here or elsewhere."""

    async def some(self, seconds: float) -> list[Delivery]:
        """Receive what comes within so many seconds."""
        ...


async def share(members: Sequence[Taker], count: int, patience: float) -> list[list[Delivery]]:
    """Receive with several members, turn by turn, until they have so many together; return what each has."""
    taken: list[list[Delivery]] = [[] for _ in members]
    async with asyncio.timeout(patience):
        while sum(map(len, taken)) < count:
            for mine, member in zip(taken, members, strict=True):
                mine.extend(await member.some(0.05))
    return taken


class _Watched:
    """A subscription whose settlements are noticed: who loses deliveries in some seconds may settle them until then."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        self._settled: dict[int, Delivery] = {}
        self._moved = asyncio.Event()
        self.receive = subscription.receive
        self.close = subscription.close
        if isinstance(subscription, Marks):
            self.mark = subscription.mark
        if isinstance(subscription, Tallies):
            self.tally = subscription.tally

    async def settle(self, settled: Sequence[Settled]) -> Sequence[SettleError | None]:
        """Settle, and remember what."""
        outcomes = await self._subscription.settle(settled)
        self._settled.update((id(delivery), delivery) for delivery, _ in settled)
        self._moved.set()
        return outcomes

    async def finish(self, deliveries: Sequence[Delivery], seconds: float) -> None:
        """Wait until all of these are settled, or the seconds are over."""
        try:
            async with asyncio.timeout(seconds):
                while not all(id(delivery) in self._settled for delivery in deliveries):
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            pass


async def join(
    adapter: Adapter, at: Address, patience: float, order: Order = "none", start: Start = "earliest"
) -> Member:
    """Subscribe and remember what is lost; what is lost in some seconds only is waited for, as the engine does."""
    lost: list[Delivery] = []
    told = asyncio.Event()
    watched: list[_Watched] = []

    async def on_lost(deliveries: Sequence[Delivery], seconds: float) -> None:
        lost.extend(deliveries)
        told.set()
        if watched and seconds > 0:
            await watched[-1].finish(deliveries, seconds)

    async def subscribe() -> Subscription:
        subscription = await adapter.subscribe(at, order=order, start=start, prefetch=100, on_lost=on_lost)
        watched.append(_Watched(subscription))
        return watched[-1]

    async with asyncio.timeout(patience):
        subscription = await subscribe()
    return Member(subscription, patience, lost, told, subscribe)
