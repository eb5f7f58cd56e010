"""
Why intake is held: the `Control` that patterns see.
"""

from collections.abc import Callable

__all__ = ["Intake"]


class Intake:
    """A set of reasons to take nothing new; it outlives reconnects, and intake goes on when none is left."""

    def __init__(self, released: Callable[[], None]) -> None:
        self.reasons: set[str] = set()
        self._released = released

    def hold(self, reason: str) -> None:
        """Stop taking new messages for this reason."""
        self.reasons.add(reason)

    def release(self, reason: str) -> None:
        """Take this reason away."""
        self.reasons.discard(reason)
        if not self.reasons:
            self._released()
