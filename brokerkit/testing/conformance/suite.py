"""
The suite itself: the parts together, what switches them off, and the test of the tests.
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import fields

import pytest

from brokerkit.adapter import Adapter, Capabilities
from brokerkit.testing.conformance.bench import Bench
from brokerkit.testing.conformance.dead import DeadPlace
from brokerkit.testing.conformance.delay import Delay
from brokerkit.testing.conformance.gate import all_tests, check_limits, why_off
from brokerkit.testing.conformance.groups import Groups
from brokerkit.testing.conformance.harness import Harness
from brokerkit.testing.conformance.lifecycle import Lifecycle
from brokerkit.testing.conformance.marks import Marking, Tallying
from brokerkit.testing.conformance.ordering import Ordering
from brokerkit.testing.conformance.sending import Sending
from brokerkit.testing.conformance.settlement import Settlement

__all__ = ["AdapterConformance", "switched_off"]

_ELSEWHERE = frozenset({"log", "processes", "max_return", "attributes", "limits"})
"""
Capabilities that the tests read instead of needing: `log` loosens them, `processes` takes real ones, `max_return` and
`attributes` tell the core what to send, `limits` is what a harness hands on.
"""


class AdapterConformance(
    Sending, Groups, Settlement, Marking, Tallying, Ordering, Delay, DeadPlace, Lifecycle
):
    """
    The boundary, tested. Subclass it, override the fixture `harness`, run it under pytest.

    Uses nothing but `Adapter`, `Subscription` and the optional protocols; another process is played by an adapter
    on an event loop and thread of its own. Real processes and real brokers' faults are other suites.
    """

    @pytest.fixture
    def harness(self) -> Harness:
        """Return the broker under test."""
        message = "override the fixture `harness`"
        raise NotImplementedError(message)

    @pytest.fixture
    async def bench(self, request: pytest.FixtureRequest, harness: Harness) -> AsyncIterator[Bench]:
        """Give a test its way to the broker, or skip it with the reason."""
        check_limits(harness)
        bench = Bench(harness)
        try:
            adapter = await bench.open()
            if reason := why_off(request.function, adapter.capabilities, (adapter, harness), harness.limits):
                pytest.skip(reason)
            yield bench
            request.node.user_properties += bench.figures
        finally:
            await bench.close()

    def test_every_capability_has_a_test(self) -> None:
        """A claim without a test would be a boast."""
        named = [name for _, test in all_tests(type(self)) for name in test.__dict__.get("needs", ())]
        tested = {each for name in named for each in name.split("|")}
        assert {field.name for field in fields(Capabilities)} - tested == _ELSEWHERE


def switched_off(suite: type, adapter: Adapter, harness: Harness) -> Mapping[str, str]:
    """Return the tests that would not run, with the reason for each."""
    reasons = {
        name: why_off(test, adapter.capabilities, (adapter, harness), harness.limits)
        for name, test in all_tests(suite)
    }
    return {name: reason for name, reason in reasons.items() if reason}
