"""Adapters and words for the tests of `nats://`; each test has channels of its own."""

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from brokerkit.adapters.nats import NatsAdapter
from tests.servers import RealServer

Connect = Callable[..., Awaitable[NatsAdapter]]


@pytest.fixture
def channel() -> str:
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
async def connect(nats_server: RealServer) -> AsyncIterator[Connect]:
    adapters: list[NatsAdapter] = []

    async def make(url: str | None = None, **options: object) -> NatsAdapter:
        adapter = NatsAdapter(url or nats_server.url, **options)  # type: ignore[arg-type]
        adapters.append(adapter)
        await adapter.connect()
        return adapter

    yield make
    for adapter in adapters:
        await adapter.close()
