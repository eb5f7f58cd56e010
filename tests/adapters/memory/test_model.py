"""Whatever members do, and whatever is done to them: nothing is lost, and no key is ever out of order."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Sequence

import pytest

from brokerkit.adapter import Order, Subscription
from brokerkit.adapters.memory import MemoryAdapter
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK, Retry
from brokerkit.testing import run_virtual

CHANNEL = Address("orders")
INLET = Address("orders", "billing", "inlet")


class World:
    """One group of members that come, go, die, ack in order, and return what they hold."""

    def __init__(self, seed: int, order: Order) -> None:
        self.random = random.Random(seed)
        self.order: Order = order
        self.adapter = MemoryAdapter("memory://")
        self.held: dict[Subscription, list[Delivery]] = {}
        self.sent: dict[bytes, int] = defaultdict(int)
        self.acked: dict[bytes, list[int]] = defaultdict(list)

    async def on_lost(self, deliveries: Sequence[Delivery], _seconds: float) -> None:
        for delivery in deliveries:
            self.forget(delivery)

    def forget(self, delivery: Delivery) -> None:
        for held in self.held.values():
            if delivery in held:
                held.remove(delivery)

    def some_member(self) -> Subscription | None:
        return self.random.choice(list(self.held)) if self.held else None

    async def send(self) -> None:
        messages: list[Message] = []
        for _ in range(self.random.randint(1, 6)):
            key = b"k%d" % self.random.randint(0, 8)
            messages.append(Message(body=b"%d" % self.sent[key], key=key))
            self.sent[key] += 1
        assert list(await self.adapter.send(CHANNEL, messages)) == [None] * len(messages)

    async def join(self) -> None:
        if len(self.held) < 5:
            member = await self.adapter.subscribe(
                INLET, order=self.order, start="earliest", prefetch=10, on_lost=self.on_lost
            )
            self.held[member] = []

    async def leave(self) -> None:
        if member := self.some_member():
            await member.close()
            del self.held[member]

    async def receive(self) -> None:
        if member := self.some_member():
            try:
                async with asyncio.timeout(0.5):
                    self.held[member].extend(await member.receive(self.random.randint(1, 5)))
            except TimeoutError:
                return
            self.check_owners()

    def check_owners(self) -> None:
        if self.order == "key":
            keys = [{delivery.message.key for delivery in held} for held in self.held.values()]
            assert sum(len(each) for each in keys) == len({key for each in keys for key in each})

    async def ack(self) -> None:
        member = self.some_member()
        if member is None or not self.held[member]:
            return
        first = self.random.choice(self.held[member])
        first = next(each for each in self.held[member] if each.message.key == first.message.key)
        assert list(await member.settle([(first, ACK)])) == [None]
        self.held[member].remove(first)
        assert first.message.key is not None
        self.acked[first.message.key].append(int(first.message.body))

    async def give_back(self) -> None:
        member = self.some_member()
        if member is None or not self.held[member]:
            return
        key = self.random.choice(self.held[member]).message.key
        mine = [each for each in self.held[member] if each.message.key == key]
        after = self.random.choice([0.0, 0.3, 2.0])
        settled = [(each, Retry(after=after if each is mine[0] else 0.0)) for each in mine]
        assert list(await member.settle(settled)) == [None] * len(mine)
        for each in mine:
            self.held[member].remove(each)

    async def expire(self) -> None:
        member = self.some_member()
        if member is not None and self.held[member]:
            self.adapter.broker.expire(self.random.choice(self.held[member]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def cut(self) -> None:
        if self.random.random() < 0.2:
            self.adapter.disconnect()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.held.clear()

    async def run(self) -> None:
        await self.adapter.connect()
        await self.join()
        steps = [
            self.send,
            self.join,
            self.leave,
            self.receive,
            self.ack,
            self.give_back,
            self.expire,
            self.cut,
        ]
        for step in self.random.choices(steps, weights=[6, 2, 1, 12, 10, 2, 1, 1], k=400):
            await step()
        while self.held:
            await self.leave()
        await self.join()
        (member,) = self.held
        while (await self.adapter.measure(INLET)).oldest is not None:
            self.held[member].extend(await member.receive(3))
            while self.held[member]:
                await self.ack()


@pytest.mark.parametrize("order", ["key", "none"])
@pytest.mark.parametrize("seed", range(25))
def test_nothing_is_lost_doubled_or_out_of_order(seed: int, order: Order) -> None:
    world = World(seed, order)
    run_virtual(world.run())
    for key, count in world.sent.items():
        numbers = world.acked[key]
        assert (numbers if order == "key" else sorted(numbers)) == list(range(count)), key
