"""
The broker's clock, as its answers let it be known.

Delays are counted by the broker's clock alone: when it stored a copy is its own time stamp, and how late it is now is what
this says. It says the earliest time that it can be, so that nothing comes too soon.
"""

import time
from collections.abc import Callable

__all__ = ["BrokerClock"]

_WINDOW = 300.0


class BrokerClock:
    """
    A lower bound of the broker's wall time, from time stamps in its answers.

    A stamp that was written before an answer came is a bound: it was that late then, or later. The best bound of the last
    minutes is kept; older ones are forgotten, because the two clocks drift.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._current: float | None = None
        self._former: float | None = None
        self._since = 0.0

    def note(self, stamp: float) -> None:
        """Take a wall time in seconds that the broker has written before now."""
        now = self._monotonic()
        if now - self._since > _WINDOW:
            self._former, self._current, self._since = self._current, None, now
        offset = stamp - now
        if self._current is None or offset > self._current:
            self._current = offset

    def now(self) -> float | None:
        """Return a wall time that the broker's clock has reached for certain, or None before the first answer."""
        offsets = [each for each in (self._current, self._former) if each is not None]
        return self._monotonic() + max(offsets) if offsets else None
