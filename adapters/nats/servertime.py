"""
The server's clock, as far as it is known here.
"""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["ServerTime", "nanoseconds"]

_STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)")


def nanoseconds(stamp: str) -> int:
    """Return a time of RFC 3339, as the server writes it, in nanoseconds since 1970."""
    found = _STAMP.fullmatch(stamp)
    if found is None:
        message = f"not a time: {stamp!r}"
        raise ValueError(message)
    whole, fraction, zone = found.groups()
    seconds = int(
        datetime.fromisoformat(whole + ("+00:00" if zone == "Z" else zone)).astimezone(UTC).timestamp()
    )
    return seconds * 1_000_000_000 + int((fraction or "").ljust(9, "0") or 0)


class ServerTime:
    """
    A lower bound of the server's time, from its own answers: it is never later here than there.

    An answer was stamped before it arrived, so what is due by this clock is due at the server. Our own wall clock is used
    only until a first answer has come.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: tuple[int, float] | None = None

    def observe(self, stamp: str) -> None:
        """Take the time that an answer carries, which has just arrived."""
        self._seen = (nanoseconds(stamp), self._clock())

    @property
    def age(self) -> float:
        """Return the seconds since the last answer."""
        return self._clock() - self._seen[1] if self._seen else float("inf")

    def now(self) -> int:
        """Return the time in nanoseconds since 1970."""
        if self._seen is None:
            return time.time_ns()
        stamp, arrived = self._seen
        return stamp + int((self._clock() - arrived) * 1e9)
