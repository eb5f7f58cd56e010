"""`nats://` against the conformance suite, on a real server."""

import pytest

from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.conformance.servers import harness_of
from tests.servers import RealServer

OPTIONS = "lease=2"
"""A lease that is short enough to wait for, and long enough for a busy machine."""


@pytest.mark.conformance
class TestNats(AdapterConformance):
    @pytest.fixture
    async def harness(self, nats_server: RealServer) -> Harness:
        return await harness_of(nats_server, OPTIONS)
