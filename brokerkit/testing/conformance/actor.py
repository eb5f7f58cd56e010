"""
A consumer that does what the messages say, so that a test can be played over there, in another process.
"""

import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass

from tenacity import wait_fixed

from brokerkit.adapter import Adapter, Order
from brokerkit.bus import Bus
from brokerkit.delivery import Delivery
from brokerkit.patterns import retry
from brokerkit.publisher import Outgoing
from brokerkit.testing.conformance.elsewhere import Die
from brokerkit.testing.conformance.harness import Harness
from brokerkit.testing.conformance.log import Say, heard, note_of
from brokerkit.testing.conformance.through import through

__all__ = ["Actor", "BusHand", "Deed", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How an actor consumes, as data. wait: seconds between two tries of a message."""

    channel: str
    group: str = "g"
    order: Order = "none"
    concurrency: int = 16
    prefetch: int | None = None
    attempts: int = 5
    wait: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Deed:
    """
    What the handler of an actor does with one message.

    do: nothing; `work` (for so many seconds); `die` (with its process); `block` (the event loop, until the file `go`
    exists). times: then fail, while the attempt is at most this.
    """

    n: int
    do: str = ""
    times: int = 0
    seconds: float = 0.0
    go: str = ""

    def outgoing(self, key: str | None = None) -> Outgoing:
        """Return it as what `publish_many` takes; its number is the event's id."""
        return Outgoing(data=asdict(self), type="deed", id=str(self.n), key=key)


class Actor:
    """A bus with one handler that acts, on an adapter that is connected."""

    def __init__(self, adapter: Adapter, plan: Plan, who: str, say: Say, die: Die) -> None:
        self._who = who
        self._say = say
        self._die = die
        self._stack = AsyncExitStack()
        self._bus = Bus("memory://", name=who, hooks=[heard(say, who)])
        self._bus.adapter = through(adapter)
        self._bus.subscriber(
            plan.channel,
            group=plan.group,
            order=plan.order,
            concurrency=plan.concurrency,
            prefetch=plan.prefetch,
            patterns=[retry(plan.attempts, wait=wait_fixed(plan.wait), in_place=0)],
        )(self.act)

    async def start(self) -> None:
        """Begin to consume."""
        await self._stack.enter_async_context(self._bus)
        await self._stack.enter_async_context(self._bus.consuming())

    async def stop(self, grace: float) -> int:
        """Drain and leave; return how many handlers were abandoned."""
        self._bus.grace = grace
        await self._stack.aclose()
        return self._bus.abandoned

    async def act(self, deed: Deed, delivery: Delivery) -> None:
        """Do what the message says, and say so before and after."""
        self._say(note_of("begin", self._who, delivery))
        if deed.do == "work":
            await asyncio.sleep(deed.seconds)
        elif deed.do == "die":
            self._die()
            await asyncio.Event().wait()
        elif deed.do == "block":
            while not os.path.exists(deed.go):  # noqa: ASYNC240, PTH110 - to block the loop is what it is for
                time.sleep(0.005)  # noqa: ASYNC251
        if delivery.attempt <= deed.times:
            message = f"number {deed.n} fails, attempt {delivery.attempt}"
            raise RuntimeError(message)
        self._say(note_of("end", self._who, delivery))


class BusHand:
    """What works over there: one actor."""

    def __init__(self, harness: Harness, who: str, say: Say, die: Die) -> None:
        self._harness = harness
        self._who = who
        self._say = say
        self._die = die
        self._adapter: Adapter | None = None
        self._actor: Actor | None = None

    async def start(self, plan: Plan) -> None:
        """Connect and begin to consume."""
        self._adapter = await self._harness.adapter()
        self._actor = Actor(self._adapter, plan, self._who, self._say, self._die)
        await self._actor.start()

    async def stop(self, grace: float) -> int:
        """Drain and leave; return how many handlers were abandoned."""
        actor, self._actor = self._actor, None
        return 0 if actor is None else await actor.stop(grace)

    async def close(self) -> None:
        """Leave at once, and close the adapter."""
        await self.stop(0)
        if self._adapter is not None:
            await self._adapter.close()
