"""`sqlite://` against the conformance suite of the bus, one file for each test and real processes."""

from pathlib import Path

import pytest

from brokerkit.testing.conformance import BusConformance, Harness
from tests.conformance.test_sqlite import SqliteHarness


@pytest.mark.conformance
class TestSqliteBus(BusConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SqliteHarness(tmp_path / "broker.db")
