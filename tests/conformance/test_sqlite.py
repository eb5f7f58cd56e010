"""`sqlite://` against the conformance suite, one file for each test."""

from pathlib import Path

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.sqlite import SqliteAdapter
from brokerkit.testing.conformance import AdapterConformance, Harness


class SqliteHarness:
    limits: frozenset[str] = frozenset()
    patience = 10.0

    def __init__(self, path: Path) -> None:
        self.url = f"sqlite:///{path}?lease=1&max_message=200000"

    async def adapter(self) -> Adapter:
        adapter = SqliteAdapter(self.url)
        await adapter.connect()
        return adapter


@pytest.mark.conformance
class TestSqlite(AdapterConformance):
    @pytest.fixture
    def harness(self, tmp_path: Path) -> Harness:
        return SqliteHarness(tmp_path / "broker.db")
