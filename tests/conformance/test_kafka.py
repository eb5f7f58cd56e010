"""`kafka://` against the conformance suite, on a real server that allows short sessions."""

import asyncio

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.kafka import KafkaAdapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.servers import RealServer


class KafkaHarness:
    """Short sessions, and a drain that a test can wait for."""

    patience = 60.0

    def __init__(self, url: str, partitions: int = 2) -> None:
        self.url = f"{url}?session=2&heartbeat=0.1&drain=4&partitions={partitions}"
        self.limits = KafkaAdapter(self.url).capabilities.limits

    async def adapter(self) -> Adapter:
        adapter = KafkaAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(KafkaHarness):
    """The same on a server that may be restarted; other processes only get the URL."""

    patience = 60.0

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url)
        self._server = server

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[KafkaHarness], tuple[str]]:
        return KafkaHarness, (self.url.partition("?")[0],)


@pytest.mark.conformance
class TestKafka(AdapterConformance):
    @pytest.fixture
    def harness(self, kafka_server: RealServer) -> Harness:
        if kafka_server.own is None:
            return KafkaHarness(kafka_server.url)
        return RestartingHarness(kafka_server.url, kafka_server.own)
