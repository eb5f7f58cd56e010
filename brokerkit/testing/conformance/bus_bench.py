"""
One test's way to a broker through the bus: buses, consumers here and over there, and what they say.
"""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection

from brokerkit.adapter import Adapter, Measures, Order
from brokerkit.bus import Bus
from brokerkit.message import Address
from brokerkit.patterns.dead_letter import DeadLetters, Letter
from brokerkit.publisher import Outgoing
from brokerkit.testing.conformance.actor import Actor, BusHand, Plan
from brokerkit.testing.conformance.bench import Bench, eventually
from brokerkit.testing.conformance.elsewhere import Way, start_way
from brokerkit.testing.conformance.harness import Harness
from brokerkit.testing.conformance.log import Log, Note, heard
from brokerkit.testing.conformance.through import through

__all__ = ["BusBench", "Consumer"]

_GRACE = 5.0


class Consumer:
    """An actor over there, used from here. `who` is its name in the notes."""

    def __init__(self, who: str, way: Way) -> None:
        self.who = who
        self.way = way

    async def stop(self, grace: float = _GRACE) -> int:
        """Ask it to drain and leave; return how many handlers it has abandoned."""
        abandoned: int = await self.way.call("stop", (grace,))
        return abandoned


class BusBench(Bench):
    """Buses and consumers of one test on one broker, and everything closed in the end."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness)
        self.log = Log(harness.patience)
        self._buses: list[Bus] = []
        self._ways: list[Way] = []
        self._pipes: list[Connection] = []
        self._stack = AsyncExitStack()
        self._publisher: Bus | None = None
        self._count = 0

    async def bus(self, who: str = "", *, grace: float = _GRACE) -> Bus:
        """Return a bus on an adapter of its own, connected; it says what happens under this name."""
        self._count += 1
        who = who or f"bus-{self._count}"
        bus = Bus("memory://", name=who, hooks=[heard(self.log.add, who)], grace=grace)
        bus.adapter = through(await self.adapter())
        await bus.connect()
        self._buses.append(bus)
        return bus

    @asynccontextmanager
    async def consuming(self, bus: Bus) -> AsyncGenerator[Bus]:
        """Consume, within the patience for joining and for leaving."""
        stack = AsyncExitStack()
        async with asyncio.timeout(self.patience):
            await stack.enter_async_context(bus.consuming())
        try:
            yield bus
        finally:
            async with asyncio.timeout(bus.grace + self.patience):
                await stack.aclose()

    @asynccontextmanager
    async def acting(self, who: str, plan: Plan) -> AsyncGenerator[Actor]:
        """Run an actor in this process."""
        actor = Actor(await self.adapter(), plan, who, self.log.add, _nobody_dies_here)
        async with asyncio.timeout(self.patience):
            await actor.start()
        try:
            yield actor
        finally:
            async with asyncio.timeout(_GRACE + self.patience):
                await actor.stop(_GRACE)

    async def consumer(self, plan: Plan) -> Consumer:
        """Run an actor over there: in a real process where the broker is shared by processes."""
        self._count += 1
        who = f"away-{self._count}"
        loop = asyncio.get_running_loop()
        if self.capabilities.processes:
            ours, theirs = multiprocessing.Pipe(duplex=False)
            self._pipes.append(ours)
            loop.add_reader(ours.fileno(), self._hear, ours)
            way = start_way(self.harness, partial(BusHand, self.harness, who, theirs.send), real=True)
            theirs.close()
        else:
            hand = partial(BusHand, self.harness, who, partial(_tell_home, loop, self.log))
            way = start_way(self.harness, hand, real=False)
        self._ways.append(way)
        await way.call("start", (plan,))
        return Consumer(who, way)

    def _hear(self, pipe: Connection) -> None:
        try:
            while pipe.poll():
                self.log.add(pipe.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(pipe.fileno())

    async def freeze(self, consumer: Consumer) -> None:
        """Stop a consumer like SIGSTOP, at a moment at which it does not hold the whole broker up."""
        while True:
            await consumer.way.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.send(self.first, self.name("probe"), ["is anybody there"])
                return
            consumer.way.resume()
            await asyncio.sleep(0.05)

    async def publisher(self) -> Bus:
        """Return the bus that publishes for the test."""
        if self._publisher is None:
            self._publisher = await self.bus("suite")
        return self._publisher

    async def publish(self, channel: str, outgoing: Iterable[Outgoing]) -> list[str]:
        """Publish, see each confirmed, and return the ids."""
        bus = await self.publisher()
        outcomes = await bus.publish_many(channel, list(outgoing))
        assert [outcome.error for outcome in outcomes if outcome.error is not None] == []
        return [outcome.event.id for outcome in outcomes]

    async def found(self, channel: str, group: str = "g", order: Order = "none") -> None:
        """Make a group before anybody consumes for it."""
        member = await self.member(channel, group, adapter=self.first, order=order)
        await member.close()

    async def letters(self, channel: str, group: str = "g") -> list[Letter]:
        """Return the dead letters of a group."""
        found, _ = await self.dead_letters(channel, group).list(limit=1000)
        return found

    def dead_letters(self, channel: str, group: str = "g", adapter: Adapter | None = None) -> DeadLetters:
        """Return the dead place of a group."""
        return DeadLetters(adapter or self.first, channel, group, idle=0.5)

    async def left(self, channel: str, group: str = "g") -> int:
        """Return how many messages the group has not ended, where the broker can say; else 0."""
        if not isinstance(self.first, Measures):
            return 0
        found = await self.first.measure(Address(channel, group, "inlet"))
        return found.waiting + found.delayed + found.in_flight

    async def nothing_left(self, channel: str, group: str = "g") -> None:
        """See that the group ends every message."""

        async def ended() -> bool:
            return await self.left(channel, group) == 0

        await eventually(ended, self.patience, f"nothing left of {channel} for {group}")

    def once(self, seen: Iterable[str], sent: Iterable[str]) -> None:
        """See that each was seen, and once, unless the broker may forget an ack."""
        times, expected = Counter(seen), Counter(sent)
        if self.spared("acked-may-return"):
            assert times.keys() == expected.keys()
        else:
            assert times == expected

    async def close(self) -> None:
        """Close what is open, also what a test has stopped or killed."""
        for way in self._ways:
            await way.close()
        loop = asyncio.get_running_loop()
        for pipe in self._pipes:
            loop.remove_reader(pipe.fileno())
            pipe.close()
        for bus in self._buses:
            async with asyncio.timeout(self.patience):
                await bus.close()
        await super().close()


def _tell_home(loop: asyncio.AbstractEventLoop, log: Log, note: Note) -> None:
    with suppress(RuntimeError):  # the loop is closed: the test is over
        loop.call_soon_threadsafe(log.add, note)


def _nobody_dies_here() -> None:
    message = "this consumer works in the process of the test"
    raise AssertionError(message)
