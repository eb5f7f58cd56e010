"""`amqp://` against the conformance suite, on a real RabbitMQ."""

import asyncio

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.rabbitmq import RabbitAdapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.servers import RealServer


class RabbitHarness:
    """A heartbeat of a second makes a lease of three."""

    patience = 60.0

    def __init__(self, url: str) -> None:
        self.url = f"{url}?heartbeat=1&max_message=200000&partitions=4"
        self.limits = RabbitAdapter(self.url).capabilities.limits

    async def adapter(self) -> Adapter:
        adapter = RabbitAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(RabbitHarness):
    """
    The same on a server that may be restarted; other processes only get the URL.

    It is stopped politely: killed, RabbitMQ 3.10 may not find a queue again that it made a moment before.
    """

    patience = 60.0

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url)
        self._server = server

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[RabbitHarness], tuple[str]]:
        return RabbitHarness, (self.url.partition("?")[0],)


@pytest.mark.conformance
class TestRabbit(AdapterConformance):
    @pytest.fixture
    def harness(self, rabbitmq_server: RealServer) -> Harness:
        if rabbitmq_server.own is None:
            return RabbitHarness(rabbitmq_server.url)
        return RestartingHarness(rabbitmq_server.url, rabbitmq_server.own)
