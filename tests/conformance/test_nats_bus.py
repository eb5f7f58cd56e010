"""`nats://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.servers import harness_of
from tests.conformance.test_nats import OPTIONS
from tests.servers import RealServer


@pytest.mark.conformance
class TestNatsBus(BusConformance):
    @pytest.fixture
    async def harness(self, nats_server: RealServer) -> Harness:
        return await harness_of(nats_server, OPTIONS)
