"""
What every adapter has to keep, as tests that its author subclasses and runs.

```python
class TestMine(AdapterConformance):
    @pytest.fixture
    def harness(self) -> Harness:
        return MyHarness()
```

Needs pytest and pytest-asyncio in auto mode. A test that a capability or a listed limit switches off is skipped
with that reason; `switched_off` names them without running anything.
"""

import pytest

_PARTS = (
    "bench",
    "bus_attempts",
    "bus_bench",
    "bus_crash",
    "bus_dead",
    "bus_handling",
    "bus_ordering",
    "bus_publishing",
    "bus_suite",
    "bus_versions",
    "dead",
    "delay",
    "groups",
    "lifecycle",
    "live",
    "log",
    "marks",
    "ordering",
    "sending",
    "settlement",
    "suite",
)

# Before the parts are imported: only then do their asserts say what they compared.
pytest.register_assert_rewrite(*(f"{__name__}.{part}" for part in _PARTS))

from brokerkit.testing.conformance.bench import Bench, Member  # noqa: E402
from brokerkit.testing.conformance.bus_bench import BusBench  # noqa: E402
from brokerkit.testing.conformance.bus_suite import BusConformance  # noqa: E402
from brokerkit.testing.conformance.elsewhere import Away, Elsewhere  # noqa: E402
from brokerkit.testing.conformance.harness import LIMITS, Harness, Restarts  # noqa: E402
from brokerkit.testing.conformance.suite import AdapterConformance, switched_off  # noqa: E402

__all__ = [
    "LIMITS",
    "AdapterConformance",
    "Away",
    "Bench",
    "BusBench",
    "BusConformance",
    "Elsewhere",
    "Harness",
    "Member",
    "Restarts",
    "switched_off",
]
