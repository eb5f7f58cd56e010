"""
What the tests share: adapters that are closed in the end, members that remember, and processes played by threads.
"""

import asyncio
import secrets
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from brokerkit.adapter import (
    Adapter,
    Browses,
    Capabilities,
    Measures,
    Order,
    Provisions,
    Start,
    Subscription,
)
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK
from brokerkit.testing.conformance.harness import LIMITS, Harness, Restarts

__all__ = ["Bench", "Elsewhere", "Member", "bodies", "eventually", "inlet", "text"]

T = TypeVar("T")

_LATENESS = 1.5

QUIET = 0.15
"""Seconds in which nothing may come, where there is no event that says so."""


def inlet(channel: str, group: str) -> Address:
    """Return a group's inlet."""
    return Address(channel, group, "inlet")


def text(body: str, key: str | None = None) -> Message:
    """Return a message of text."""
    return Message(body=body.encode(), key=None if key is None else key.encode())


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

    async def close(self) -> None:
        """Close the subscription."""
        async with asyncio.timeout(self.patience):
            await self.subscription.close()


class Bench:
    """One test's way to the broker: names of its own, and everything closed in the end."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.patience = harness.patience
        self.run = secrets.token_hex(4)
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
    def restarts(self) -> Restarts:
        """The harness, as one that restarts."""
        assert isinstance(self.harness, Restarts)
        return self.harness

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
        """Return a new process with an adapter of its own."""
        process = await Elsewhere(self.harness).start()
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
        for adapter in self._adapters:
            async with asyncio.timeout(self.patience):
                await adapter.close()


async def join(
    adapter: Adapter, at: Address, patience: float, order: Order = "none", start: Start = "earliest"
) -> Member:
    """Subscribe and remember what is lost."""
    lost: list[Delivery] = []
    told = asyncio.Event()

    async def on_lost(deliveries: Sequence[Delivery], _seconds: float) -> None:
        lost.extend(deliveries)
        told.set()

    async with asyncio.timeout(patience):
        subscription = await adapter.subscribe(at, order=order, start=start, prefetch=100, on_lost=on_lost)
    return Member(subscription, patience, lost, told)


class Elsewhere:
    """
    A process, as far as its broker can tell: an adapter on an event loop of its own in a thread of its own.

    `stop` is SIGSTOP: nothing of that loop goes on, so no lease is renewed and no heartbeat sent by it. Never
    resumed, it is a process that has died.
    """

    def __init__(self, harness: Harness) -> None:
        self._harness = harness
        self._patience = harness.patience
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stopped = threading.Event()
        self._go_on = threading.Event()
        self._adapter: Adapter | None = None

    async def start(self) -> Self:
        """Start it and connect."""
        self._thread.start()
        self._adapter = await self.run(self._harness.adapter())
        return self

    @property
    def adapter(self) -> Adapter:
        """Its adapter; to be used inside `run` only."""
        assert self._adapter is not None
        return self._adapter

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something over there and return what it returns."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        async with asyncio.timeout(self._patience):
            return await asyncio.wrap_future(future)

    async def member(
        self, channel: str, group: str = "g", *, order: Order = "none", start: Start = "earliest"
    ) -> Member:
        """Subscribe over there."""
        return await self.run(join(self.adapter, inlet(channel, group), self._patience, order, start))

    async def stop(self) -> None:
        """Stop everything over there, between two steps."""
        self._go_on.clear()
        self._stopped.clear()
        self._loop.call_soon_threadsafe(self._halt)
        await asyncio.to_thread(self._stopped.wait, self._patience)

    def resume(self) -> None:
        """Let it go on."""
        self._go_on.set()

    async def close(self) -> None:
        """Close its adapter and end it, resumed if need be."""
        self.resume()
        try:
            if self._adapter is not None:
                await self.run(self._adapter.close())
            await self.run(_leave_nothing())
        except (BrokerkitError, TimeoutError):
            """It has lost its broker: what it says in the end is no part of the test."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, self._patience)
        if not self._thread.is_alive():
            self._loop.close()

    def _halt(self) -> None:
        self._stopped.set()
        self._go_on.wait()


async def _leave_nothing() -> None:
    """Cancel what is left on this loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


async def eventually(
    check: Callable[[], Awaitable[bool]], patience: float, what: str, *, pause: float = 0.02
) -> None:
    """Ask again and again, where a broker tells no event."""
    end = asyncio.get_running_loop().time() + patience
    while not await check():
        assert asyncio.get_running_loop().time() < end, f"not within {patience} s: {what}"
        await asyncio.sleep(pause)
