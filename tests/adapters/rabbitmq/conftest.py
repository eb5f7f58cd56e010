"""Adapters on the shared broker, closed in the end."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from brokerkit.adapters.rabbitmq import RabbitAdapter
from tests.adapters.rabbitmq.broker import Adapters
from tests.servers import Certificates, Park, RealServer


@pytest.fixture
def strict_server(park: Park, certificates: Certificates) -> RealServer:
    """A real server with TLS that takes no message above 1,000 bytes."""
    settings = {"max_message_size": "1000"}
    return park.get("rabbitmq", place="secure", security=certificates.server, settings=settings)


@pytest.fixture
async def adapters(rabbitmq_server: RealServer) -> AsyncIterator[Adapters]:
    """Connect adapters: `await adapters(heartbeat=1)`."""
    opened: list[RabbitAdapter] = []

    async def connect(url: str | None = None, **options: Any) -> RabbitAdapter:
        adapter = RabbitAdapter(url or rabbitmq_server.url, **options)
        opened.append(adapter)
        await adapter.connect()
        return adapter

    yield connect
    for adapter in opened:
        await adapter.close()
