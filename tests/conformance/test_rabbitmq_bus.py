"""`amqp://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.servers import harness_of
from tests.conformance.test_rabbitmq import OPTIONS
from tests.servers import RealServer


@pytest.mark.conformance
class TestRabbitBus(BusConformance):
    @pytest.fixture
    async def harness(self, rabbitmq_server: RealServer) -> Harness:
        return await harness_of(rabbitmq_server, OPTIONS)
