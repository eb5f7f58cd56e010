"""`kafka://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_kafka import KafkaHarness
from tests.servers import RealServer


@pytest.mark.conformance
class TestKafkaBus(BusConformance):
    @pytest.fixture
    def harness(self, kafka_server: RealServer) -> Harness:
        return KafkaHarness(
            kafka_server.url, partitions=3
        )  # some tests have three members, and each wants a share
