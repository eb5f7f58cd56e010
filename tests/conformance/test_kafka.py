"""`kafka://` against the conformance suite, on a real server."""

import pytest

from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.conformance.servers import harness_of
from tests.servers import RealServer

OPTIONS = "session=2&heartbeat=0.1&drain=4"
"""Short sessions, and a drain that a test can wait for."""


@pytest.mark.conformance
class TestKafka(AdapterConformance):
    @pytest.fixture
    async def harness(self, kafka_server: RealServer) -> Harness:
        return await harness_of(kafka_server, f"{OPTIONS}&partitions=2")
