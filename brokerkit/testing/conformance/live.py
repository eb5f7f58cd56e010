"""
Both suites against the broker that `BROKERKIT_CONFORMANCE_URL` names: what `brokerkit conformance` runs.
"""

import os

import pytest

from brokerkit.adapter import Adapter, open_adapter
from brokerkit.testing.conformance.bus_suite import BusConformance
from brokerkit.testing.conformance.harness import Harness
from brokerkit.testing.conformance.suite import AdapterConformance

__all__ = ["URL", "TestAdapter", "TestBus", "UrlHarness"]

URL = "BROKERKIT_CONFORMANCE_URL"


class UrlHarness:
    """
    A broker by its URL alone: it cannot be restarted, and its limits are what the adapter says of them.

    Picklable, so that another process can join.
    """

    def __init__(self, url: str, limits: frozenset[str], patience: float = 30.0) -> None:
        self.url = url
        self.limits = limits
        self.patience = patience

    async def adapter(self) -> Adapter:
        """Return a new, connected adapter."""
        adapter = open_adapter(self.url)
        await adapter.connect()
        return adapter


async def _harness() -> Harness:
    adapter = await UrlHarness(os.environ[URL], frozenset()).adapter()
    limits = adapter.capabilities.limits
    await adapter.close()
    return UrlHarness(os.environ[URL], limits)


class TestAdapter(AdapterConformance):
    """The boundary."""

    @pytest.fixture
    async def harness(self) -> Harness:
        """Return the broker under test."""
        return await _harness()


class TestBus(BusConformance):
    """The whole way of a message."""

    @pytest.fixture
    async def harness(self) -> Harness:
        """Return the broker under test."""
        return await _harness()
