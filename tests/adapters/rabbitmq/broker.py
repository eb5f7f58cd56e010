"""What the tests on a real broker share."""

import asyncio
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiormq
from pamqp import commands

from brokerkit.adapter import Order, Subscription
from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.delivery import Delivery
from brokerkit.errors import BrokerkitError
from brokerkit.message import Address, Message
from brokerkit.settlement import ACK

Adapters = Callable[..., Awaitable[RabbitAdapter]]

_NUMBERS = itertools.count()


def fresh(word: str = "c") -> str:
    """Return a channel name that nobody else uses."""
    return f"{word}-{secrets.token_hex(3)}-{next(_NUMBERS)}"


def inlet(channel: str, group: str = "g") -> Address:
    return Address(channel, group, "inlet")


def texts(count: int, start: int = 0) -> list[Message]:
    return [Message(body=str(number).encode()) for number in range(start, start + count)]


class Member:
    """A subscription and what it has lost."""

    def __init__(self, subscription: Subscription, lost: list[Delivery]) -> None:
        self.subscription = subscription
        self.lost = lost

    async def take(self, count: int, *, ack: bool = False, limit: int = 1000) -> list[Delivery]:
        taken: list[Delivery] = []
        async with asyncio.timeout(30):
            while len(taken) < count:
                batch = await self.subscription.receive(min(limit, count - len(taken)))
                assert batch
                taken.extend(batch)
                if ack:
                    await self.ack(batch)
        return taken

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        outcomes = await self.subscription.settle([(each, ACK) for each in deliveries])
        assert list(outcomes) == [None] * len(deliveries)

    async def nothing(self, seconds: float = 0.2) -> None:
        try:
            async with asyncio.timeout(seconds):
                found = await self.subscription.receive(10)
        except TimeoutError:
            return
        assert [each.message.body for each in found] == []


async def join(adapter: RabbitAdapter, at: Address, *, order: Order = "none", prefetch: int = 100) -> Member:
    lost: list[Delivery] = []

    async def on_lost(deliveries: Sequence[Delivery], _: float) -> None:
        lost.extend(deliveries)

    subscription = await adapter.subscribe(
        at, order=order, start="earliest", prefetch=prefetch, on_lost=on_lost
    )
    return Member(subscription, lost)


async def sure(adapter: RabbitAdapter, to: Address, messages: Sequence[Message], **options: Any) -> None:
    """Send, and see each confirmed."""
    assert list(await adapter.send(to, messages, **options)) == [None] * len(messages)


async def until_sent(adapter: RabbitAdapter, to: Address, message: Message, seconds: float = 60) -> int:
    """Send until it is confirmed, as the bus does; return how many tries it took."""
    async with asyncio.timeout(seconds):
        for tries in itertools.count(1):
            try:
                (outcome,) = await adapter.send(to, [message])
            except BrokerkitError as error:
                if not error.retryable:
                    raise
            else:
                if outcome is None:
                    return tries
                assert outcome.retryable, outcome
            await asyncio.sleep(0.1)
    raise AssertionError


@asynccontextmanager
async def raw_channel(url: str) -> AsyncGenerator[Any, None]:
    """Give a channel of the client's own: a stranger."""
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel()
    finally:
        await connection.close()


async def raw_publish(channel: Any, exchange: str, key: str, body: bytes = b"x", **headers: Any) -> None:
    await channel.basic_publish(
        body, exchange=exchange, routing_key=key, properties=commands.Basic.Properties(headers=headers)
    )
