"""
The seam between this adapter and a client library: one call, its answer, its failure.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, Protocol

__all__ = ["Answer", "Arguments", "CallFailed", "Transport", "date_of"]

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. date: the server's wall time in seconds, cut to the second, or None."""

    data: dict[str, Any]
    date: float | None = None


class CallFailed(Exception):
    """
    A call that brought no answer, or a refusal.

    code: the service's word for it, in short; `unreachable` and `timeout` are ours. status: of HTTP, or 0. sent: whether
    the request may have reached the service, so that its outcome is unknown.
    """

    def __init__(self, message: str, *, code: str, status: int = 0, sent: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.status = status
        self.sent = sent


class Transport(Protocol):
    """Makes the calls that are made often: receive, send, delete, change visibility."""

    async def call(self, operation: str, arguments: Arguments, *, timeout: float) -> Answer:
        """Make one call and return its answer, or raise `CallFailed` within about `timeout` seconds."""
        ...

    async def close(self) -> None:
        """Let go of connections; calls under way may fail. Idempotent."""
        ...


@lru_cache(8)  # it changes once a second
def date_of(header: str | None) -> float | None:
    """Return the wall time that a `Date` header names."""
    if header is None:
        return None
    try:
        return parsedate_to_datetime(header).timestamp()
    except ValueError:
        return None
