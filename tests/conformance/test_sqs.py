"""`sqs://` against the conformance suite, on a real server; a few tests with botocore as the transport too."""

import asyncio
from collections.abc import Callable

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.sqs import SqsAdapter
from brokerkit.sandbox import Server
from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.servers import RealServer

LONG_POLLS = frozenset({"lifecycle", "bus_handling"})
"""The parts of the suites about cancelling, closing and draining: what a long poll does wrong, it does there."""


class SqsHarness:
    """Times that are short enough to wait for, where a test waits for them; else a busy machine has time enough."""

    patience = 60.0

    def __init__(self, url: str, lease: int = 3, poll: int = 1) -> None:
        self.server_url, self.lease, self.poll = url, lease, poll
        self.url = f"{url}?lease={lease}&poll={poll}&groups_age=0.05&max_message=200000"
        self.limits = SqsAdapter(self.url).capabilities.limits

    async def adapter(self) -> Adapter:
        adapter = SqsAdapter(self.url)
        await adapter.connect()
        return adapter


class RestartingHarness(SqsHarness):
    """The same on a server that may be restarted; other processes only get the URL."""

    def __init__(self, url: str, lease: int, poll: int, server: Server) -> None:
        super().__init__(url, lease, poll)
        self._server = server

    async def restart(self) -> None:
        await asyncio.to_thread(self._server.stop)
        await asyncio.to_thread(self._server.start)

    def __reduce__(self) -> tuple[type[SqsHarness], tuple[str, int, int]]:
        return SqsHarness, (self.server_url, self.lease, self.poll)


def times_of(test: Callable[..., object]) -> tuple[int, int]:
    """Return lease and poll for a test: 3 s where it waits for the end of a lease, long polls where they matter."""
    lease = 3 if "lease" in getattr(test, "needs", ()) else 12
    return lease, 1 if test.__module__.rpartition(".")[2] in LONG_POLLS else 0


@pytest.mark.conformance
class TestSqs(AdapterConformance):
    @pytest.fixture
    def harness(self, request: pytest.FixtureRequest, sqs_server: RealServer) -> Harness:
        lease, poll = times_of(request.function)
        if sqs_server.own is None:
            return SqsHarness(sqs_server.url, lease, poll)
        return RestartingHarness(sqs_server.url, lease, poll, sqs_server.own)
