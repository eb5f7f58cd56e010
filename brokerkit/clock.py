"""
Time, as something that can be given.

Waiting goes through the running event loop's own clock, so a test that runs on a virtual loop
(`brokerkit.testing.clock`) moves every timer at once; only wall time needs an object.
"""

import time
from typing import Protocol

__all__ = ["SYSTEM", "Clock", "SystemClock"]


class Clock(Protocol):
    """Wall time in seconds since 1970, UTC."""

    def time(self) -> float:
        """Return now."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Return now."""
        return time.time()


SYSTEM: Clock = SystemClock()
