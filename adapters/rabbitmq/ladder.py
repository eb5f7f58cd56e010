"""
The retry ladder: which rung a copy takes, and how long it waits after that.
"""

import math

from brokerkit.adapters.rabbitmq.names import RUNGS

__all__ = ["MAX_DELAY", "in_milliseconds", "read_wait", "step"]

MAX_DELAY = 12 * 3600.0
"""Longest delay of a send, in seconds."""

_MOST_DIGITS = 9


def step(milliseconds: int) -> tuple[int | None, int]:
    """
    Return the largest rung, in seconds, that fits into a wait, and the milliseconds that remain after it.

    No rung fits into less than a second: that much is waited for in the memory of a consumer.
    """
    fitting = [rung for rung in RUNGS if rung * 1000 <= milliseconds]
    if not fitting:
        return None, milliseconds
    return fitting[-1], milliseconds - fitting[-1] * 1000


def in_milliseconds(seconds: float) -> int:
    """Return a delay in whole milliseconds, rounded up: never early."""
    return max(math.ceil(seconds * 1000 - 1e-6), 0)


def read_wait(value: object) -> int:
    """Return the milliseconds that a copy's header says remain; what is no such number is none."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS:
        return min(int(value), int(MAX_DELAY * 1000))
    return 0
