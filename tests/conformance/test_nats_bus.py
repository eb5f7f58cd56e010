"""`nats://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_nats import NatsHarness, lent
from tests.servers import RealServer


@pytest.mark.conformance
class TestNatsBus(BusConformance):
    @pytest.fixture
    async def harness(self, nats_server: RealServer) -> Harness:
        return NatsHarness(nats_server.url) if nats_server.own else await lent(nats_server.url)
