"""A member of a group, as the tests of `nats://` use it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from brokerkit.adapter import Order, Start, Subscription
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK

PATIENCE = 20.0


@dataclass(eq=False)
class Joined:
    subscription: Subscription
    lost: list[Delivery] = field(default_factory=list[Delivery])
    told: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, count: int, *, ack: bool = False) -> list[Delivery]:
        taken: list[Delivery] = []
        async with asyncio.timeout(PATIENCE):
            while len(taken) < count:
                batch = await self.subscription.receive(count - len(taken))
                assert batch
                if ack:
                    await self.ack(batch)
                taken.extend(batch)
        return taken

    async def some(self, seconds: float) -> list[Delivery]:
        taken: list[Delivery] = []
        try:
            async with asyncio.timeout(seconds):
                while batch := await self.subscription.receive(100):
                    taken.extend(batch)
        except TimeoutError:
            pass
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        outcomes = await self.subscription.settle([(each, ACK) for each in deliveries])
        assert list(outcomes) == [None] * len(deliveries), outcomes


async def join(
    adapter: NatsAdapter,
    at: Address,
    *,
    order: Order = "none",
    start: Start = "earliest",
    prefetch: int = 100,
) -> Joined:
    joined: list[Joined] = []

    async def on_lost(deliveries: Sequence[Delivery], _: float) -> None:
        joined[0].lost.extend(deliveries)
        joined[0].told.set()

    made = await adapter.subscribe(at, order=order, start=start, prefetch=prefetch, on_lost=on_lost)
    joined.append(Joined(made))
    return joined[0]


async def send(
    adapter: NatsAdapter, to: Address, *bodies: str, key: str | None = None, after: float = 0
) -> None:
    messages = [Message(body=body.encode(), key=key.encode() if key else None) for body in bodies]
    assert list(await adapter.send(to, messages, after=after)) == [None] * len(bodies)


def inlet(channel: str, group: str = "g") -> Address:
    return Address(channel, group, "inlet")


def bodies(deliveries: Sequence[Delivery]) -> list[str]:
    return [each.message.body.decode() for each in deliveries]
