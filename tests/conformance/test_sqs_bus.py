"""`sqs://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_sqs import SqsHarness, times_of
from tests.servers import RealServer


@pytest.mark.conformance
class TestSqsBus(BusConformance):
    @pytest.fixture
    def harness(self, request: pytest.FixtureRequest, sqs_server: RealServer) -> Harness:
        return SqsHarness(sqs_server.url, *times_of(request.function))
