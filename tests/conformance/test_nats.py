"""`nats://` against the conformance suite, on a real server."""

import asyncio

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.nats import NatsAdapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance import AdapterConformance, Harness
from brokerkit.testing.conformance.report import server_of
from tests.servers import RealServer


class NatsHarness:
    """A lease that is short enough to wait for, and long enough for a busy machine."""

    patience = 60.0

    def __init__(self, url: str) -> None:
        self.url = f"{url}?lease=2"
        self.limits = NatsAdapter(self.url).capabilities.limits

    async def adapter(self) -> Adapter:
        adapter = NatsAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(NatsHarness):
    """The same on a server that may be restarted; other processes only get the URL."""

    patience = 60.0

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url)
        self._server = server

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[NatsHarness], tuple[str]]:
        return NatsHarness, (self.url.partition("?")[0],)


async def lent(url: str) -> NatsHarness:
    """Return the harness of a server of any version: what it falls short of it says itself."""
    harness = NatsHarness(url)
    _, harness.limits = await server_of(harness.url)
    return harness


@pytest.mark.conformance
class TestNats(AdapterConformance):
    @pytest.fixture
    async def harness(self, nats_server: RealServer) -> Harness:
        if nats_server.own is None:
            return await lent(nats_server.url)
        return RestartingHarness(nats_server.url, nats_server.own)
