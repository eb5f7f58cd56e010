"""
The broker's clock, as far as it can be told from here.
"""

import time
from collections import deque
from functools import partial

__all__ = ["BrokerClock"]

_SAMPLES = 64
_LAST = 600.0
_EVERY = 1.0

_steady = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)
"""A clock that nobody sets; where the system has such a one it goes on while the machine sleeps."""


class BrokerClock:
    """
    An estimate of the broker's wall clock that is never ahead of it, whatever is done to ours.

    A confirmation of a send carries the time of the append, by the broker's clock, and was written before it arrived here:
    so the broker's clock is at least that far ahead of a steady clock of ours. The best of the last samples counts. Until
    there is one, the broker's wall clock is taken to be ours.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._ahead: float | None = None

    def confirmed(self, timestamp: float) -> None:
        """Take in a confirmation that has just come: the append's time in seconds, by the broker's clock."""
        now = _steady()
        ahead = timestamp - now
        if self._ahead is not None and ahead < self._ahead and now - self._samples[-1][0] < _EVERY:
            return  # one a second does, or a busy sender would forget the good ones
        self._samples.append((now, ahead))
        self._ahead = max(each for at, each in self._samples if now - at < _LAST)

    def time(self) -> float:
        """Return the broker's wall time in seconds, or a little less."""
        return time.time() if self._ahead is None else _steady() + self._ahead
