"""What the tests of this adapter share."""

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.brokerurl import parse_url
from brokerkit.delivery import Delivery
from brokerkit.message import Address, Message
from brokerkit.testing.conformance.member import Member, join

__all__ = ["Member", "connected", "eventually", "fresh", "inlet", "join", "send", "servers_of", "text"]

PATIENCE = 30.0


def fresh(word: str = "c") -> str:
    """Return a channel name that no other test uses."""
    return f"{word}-{secrets.token_hex(4)}"


def servers_of(url: str) -> list[str]:
    """Return what a raw client bootstraps from."""
    return [f"{host}:{port}" for host, port in parse_url(url, port=9092, known=()).hosts]


def inlet(channel: str, group: str = "g") -> Address:
    return Address(channel, group, "inlet")


def text(body: object, key: str | None = None) -> Message:
    return Message(body=str(body).encode(), key=None if key is None else key.encode())


@asynccontextmanager
async def connected(
    url: str, native: Mapping[str, str] | None = None, **options: str | float | bool
) -> AsyncGenerator[KafkaAdapter]:
    """Give a connected adapter, closed in the end."""
    given: Any = {"session": 6, "heartbeat": 0.1, "drain": 5, "partitions": 2, **options}
    adapter = KafkaAdapter(url, native=native, **given)
    await adapter.connect()
    try:
        yield adapter
    finally:
        async with asyncio.timeout(PATIENCE):
            await adapter.close()


async def send(adapter: KafkaAdapter, to: Address, messages: Iterable[Message]) -> None:
    """Send, and see each confirmed."""
    made = list(messages)
    async with asyncio.timeout(PATIENCE):
        assert list(await adapter.send(to, made)) == [None] * len(made)


async def eventually(check: Callable[[], Awaitable[bool]], what: str) -> None:
    """Ask again and again, where nobody tells."""
    end = asyncio.get_running_loop().time() + PATIENCE
    while not await check():
        assert asyncio.get_running_loop().time() < end, what
        await asyncio.sleep(0.05)


def numbers(deliveries: Sequence[Delivery]) -> list[int]:
    """Return the bodies as numbers, in order."""
    return [int(delivery.message.body) for delivery in deliveries]
