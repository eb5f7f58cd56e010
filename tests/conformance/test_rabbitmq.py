"""`amqp://` against the conformance suite, on a real server."""

import pytest

from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.conformance.servers import harness_of
from tests.servers import RealServer

OPTIONS = "heartbeat=1&max_message=200000&partitions=4"
"""A heartbeat of a second makes a lease of three."""


@pytest.mark.conformance
class TestRabbit(AdapterConformance):
    @pytest.fixture
    async def harness(self, rabbitmq_server: RealServer) -> Harness:
        return await harness_of(rabbitmq_server, OPTIONS)
