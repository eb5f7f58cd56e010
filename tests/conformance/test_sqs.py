"""`sqs://` against the conformance suite, on a real server."""

from collections.abc import Callable

import pytest

from brokerkit.testing.conformance import AdapterConformance, Harness
from tests.conformance.servers import harness_of
from tests.servers import RealServer

LONG_POLLS = frozenset({"lifecycle", "bus_handling"})
"""The parts of the suites about cancelling, closing and draining: what a long poll does wrong, it does there."""


def options_for(test: Callable[..., object]) -> str:
    """
    Return the options for a test.

    A lease of 3 s where it waits for the end of one, else a busy machine has time enough; long polls where they matter.
    """
    lease = 3 if "lease" in getattr(test, "needs", ()) else 12
    poll = 1 if test.__module__.rpartition(".")[2] in LONG_POLLS else 0
    return f"lease={lease}&poll={poll}&groups_age=0.05&max_message=200000"


@pytest.mark.conformance
class TestSqs(AdapterConformance):
    @pytest.fixture
    async def harness(self, request: pytest.FixtureRequest, sqs_server: RealServer) -> Harness:
        return await harness_of(sqs_server, options_for(request.function))
