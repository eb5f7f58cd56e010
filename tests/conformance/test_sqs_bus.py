"""`sqs://` against the conformance suite of the bus, on a real server and with real processes."""

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.servers import harness_of
from tests.conformance.test_sqs import options_for
from tests.servers import RealServer


@pytest.mark.conformance
class TestSqsBus(BusConformance):
    @pytest.fixture
    async def harness(self, request: pytest.FixtureRequest, sqs_server: RealServer) -> Harness:
        return await harness_of(sqs_server, options_for(request.function))
