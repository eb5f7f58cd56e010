"""`memory://` against the conformance suite, with a lease so that members can die."""

import secrets
from collections.abc import Iterator

import pytest

from brokerkit.adapter import Adapter
from brokerkit.adapters.memory import MemoryAdapter, forget
from brokerkit.testing.conformance import AdapterConformance, Harness


class MemoryHarness:
    limits: frozenset[str] = frozenset()
    patience = 10.0

    def __init__(self) -> None:
        self.name = secrets.token_hex(4)
        self.url = f"memory://{self.name}?lease=0.6&max_message=200000"

    async def adapter(self) -> Adapter:
        adapter = MemoryAdapter(self.url)
        await adapter.connect()
        return adapter

    async def restart(self) -> None:
        adapter = MemoryAdapter(self.url)
        adapter.broker.stop()
        adapter.broker.start()


@pytest.mark.conformance
class TestMemory(AdapterConformance):
    @pytest.fixture
    def harness(self) -> Iterator[Harness]:
        harness = MemoryHarness()
        yield harness
        forget(harness.name)
