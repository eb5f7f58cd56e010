"""`memory://` against the conformance suite of the bus."""

from collections.abc import Iterator

import pytest

from brokerkit.adapters.memory import forget
from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_memory import MemoryHarness


@pytest.mark.conformance
class TestMemoryBus(BusConformance):
    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        harness = MemoryHarness()
        yield harness
        forget(harness.name)
