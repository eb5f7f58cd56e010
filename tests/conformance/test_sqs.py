"""`sqs://` against the conformance suite, on a real server; a few tests with botocore as the transport too."""

import asyncio

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.servers import RealServer


class SqsHarness:
    """A lease and polls that are short enough to wait for."""

    patience = 60.0

    def __init__(self, url: str, options: str = "") -> None:
        self.url = f"{url}?lease=3&poll=1&groups_age=0.05&max_message=200000{options}"
        self.limits = SqsAdapter(self.url).capabilities.limits

    async def adapter(self) -> Adapter:
        adapter = SqsAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(SqsHarness):
    """The same on a server that may be restarted; other processes only get the URL."""

    patience = 60.0

    def __init__(self, url: str, server: Server) -> None:
        super().__init__(url)
        self._server = server

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[SqsHarness], tuple[str]]:
        return SqsHarness, (self.url.partition("?")[0],)


@pytest.mark.conformance
class TestSqs(AdapterConformance):
    @pytest.fixture
    def harness(self, sqs_server: RealServer) -> Harness:
        if sqs_server.own is None:
            return SqsHarness(sqs_server.url)
        return RestartingHarness(sqs_server.url, sqs_server.own)
