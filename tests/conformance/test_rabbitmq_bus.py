"""`amqp://` against the conformance suite of the bus, on a real RabbitMQ and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_rabbitmq import RabbitHarness
from tests.servers import RealServer


@pytest.mark.conformance
class TestRabbitBus(BusConformance):
    @pytest.fixture
    def harness(self, rabbitmq_server: RealServer) -> Harness:
        return RabbitHarness(rabbitmq_server.url)
