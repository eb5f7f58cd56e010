"""`kafka://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.servers import harness_of
from tests.conformance.test_kafka import OPTIONS
from tests.servers import RealServer


@pytest.mark.conformance
class TestKafkaBus(BusConformance):
    @pytest.fixture
    async def harness(self, kafka_server: RealServer) -> Harness:
        # some tests have three members, and each wants a share
        return await harness_of(kafka_server, f"{OPTIONS}&partitions=3")
