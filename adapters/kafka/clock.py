"""
The broker's clock, as far as it can be told from here.
"""

import time
from collections import deque

__all__ = ["BrokerClock"]

_SAMPLES = 64
_LAST = 600.0


class BrokerClock:
    """
    An estimate of the broker's wall clock that is never ahead of it.

    A confirmation of a send carries the time of the append, by the broker's clock, and was written before it arrived here:
    so the broker's clock is at least that far ahead of ours. The best of the last samples counts. Until there is one, both
    clocks are taken to be the same.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_SAMPLES)
        self._ahead = 0.0

    def confirmed(self, timestamp: float) -> None:
        """Take in a confirmation that has just come: the append's time in seconds, by the broker's clock."""
        now = time.time()
        self._samples.append((now, timestamp - now))
        fresh = [ahead for at, ahead in self._samples if now - at < _LAST]
        self._ahead = max(fresh)

    def time(self) -> float:
        """Return the broker's wall time in seconds, or a little less."""
        return time.time() + self._ahead
