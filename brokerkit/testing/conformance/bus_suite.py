"""
The promise at the level of the bus, as tests: the same handler keeps the same promise on every broker.
"""

from collections.abc import AsyncIterator

import pytest

from brokerkit.testing.conformance.bus_attempts import Attempts
from brokerkit.testing.conformance.bus_bench import BusBench
from brokerkit.testing.conformance.bus_crash import Crashes
from brokerkit.testing.conformance.bus_dead import BusDeadLetters
from brokerkit.testing.conformance.bus_handling import Handling
from brokerkit.testing.conformance.bus_ordering import BusOrdering
from brokerkit.testing.conformance.bus_publishing import Publishing
from brokerkit.testing.conformance.bus_versions import Versions
from brokerkit.testing.conformance.gate import check_limits, why_off
from brokerkit.testing.conformance.harness import Harness

__all__ = ["BusConformance"]


class BusConformance(Handling, Attempts, BusOrdering, BusDeadLetters, Crashes, Publishing, Versions):
    """
    The whole way of a message, tested on one broker. Subclass it, override the fixture `harness`, run it under pytest.

    The engine, the settler and the patterns are the real ones. Another process is a real one where the broker is shared by
    processes, and is then stopped, continued and killed by signals; the harness must be picklable for that.
    """

    @pytest.fixture
    def harness(self) -> Harness:
        """Return the broker under test."""
        message = "override the fixture `harness`"
        raise NotImplementedError(message)

    @pytest.fixture
    async def bench(self, request: pytest.FixtureRequest, harness: Harness) -> AsyncIterator[BusBench]:
        """Give a test its way to the broker, or skip it with the reason."""
        check_limits(harness)
        bench = BusBench(harness)
        try:
            adapter = await bench.open()
            if reason := why_off(request.function, adapter.capabilities, (adapter, harness), harness.limits):
                pytest.skip(reason)
            yield bench
            request.node.user_properties += bench.figures
        finally:
            await bench.close()
