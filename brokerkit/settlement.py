"""
How a delivery ends, as a value.

A handler returns one of these (or `None`, which acks). `raise Settle(...)` does the same from
deep inside; it derives from `BaseException`, so an `except Exception` on the way cannot swallow it.
"""

import math
from dataclasses import dataclass
from typing import Final

__all__ = ["ACK", "Ack", "DeadLetter", "Retry", "Settle", "Settlement"]


@dataclass(frozen=True, slots=True)
class Ack:
    """The message is done for this group."""


@dataclass(frozen=True, slots=True)
class Retry:
    """
    Hand the message to this group again.

    `after` is in seconds, not earlier than that and late by at most a second plus load.
    With `counts=True` the handling counts as a failed attempt; with `counts=False` it is a
    polite return, which can never lead to a dead letter.
    """

    after: float = 0.0
    reason: str = ""
    counts: bool = True

    def __post_init__(self) -> None:
        try:
            after = float(self.after)
        except OverflowError:
            after = math.inf
        if not (math.isfinite(after) and after >= 0):
            message = f"Retry(after={self.after!r}): give a finite number of seconds, zero or more"
            raise ValueError(message)
        # Decimal and its kin cannot be added to the clock's floats, and whoever adds them must not fail
        object.__setattr__(self, "after", after)
        _check_text("Retry", "reason", self.reason)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Put the message into the group's dead place with its story, then ack it. `reason` is one stable word."""

    reason: str = "rejected"
    detail: str = ""

    def __post_init__(self) -> None:
        _check_text("DeadLetter", "reason", self.reason)
        _check_text("DeadLetter", "detail", self.detail)
        if not self.reason:
            message = "DeadLetter(reason=''): give a word"
            raise ValueError(message)


Settlement = Ack | Retry | DeadLetter

ACK: Final = Ack()


class Settle(BaseException):
    """Carry a settlement out of a handler: `raise Settle(Retry(after=5))`."""

    def __init__(self, settlement: Settlement) -> None:
        if not isinstance(settlement, Ack | Retry | DeadLetter):
            message = f"Settle() takes Ack, Retry or DeadLetter, not {settlement!r}"
            raise TypeError(message)
        super().__init__(settlement)
        self.settlement: Settlement = settlement


def _check_text(kind: str, name: str, value: object) -> None:
    """Refuse here, in the handler, what could not be written into a story later."""
    if not isinstance(value, str):
        message = f"{kind}({name}=...) is {type(value).__name__}; give text"
        raise TypeError(message)
