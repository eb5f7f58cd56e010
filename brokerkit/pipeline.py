"""
A handler, patterns around it, and the rules of what must stand outside what.

A pattern is any `Callable[[Handler], Handler]`; the first in a list is the outermost. The patterns that
brokerkit ships have a `kind`, and a chain that breaks a stated rule between two kinds is refused at decoration.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from brokerkit.adapter import Capabilities, Order
from brokerkit.delivery import Delivery
from brokerkit.errors import ChainError
from brokerkit.settlement import Settlement

__all__ = [
    "KINDS",
    "Checks",
    "Control",
    "Handler",
    "Keeps",
    "Pattern",
    "Place",
    "Provides",
    "check_chain",
    "placed",
    "with_default",
    "wrap",
]

Handler = Callable[[Delivery], Awaitable[Settlement]]
Pattern = Callable[[Handler], Handler]


class Control(Protocol):
    """A subscription's intake, for patterns that must hold it. Reached as `delivery.control`."""

    def hold(self, reason: str) -> None:
        """Stop taking new messages for this reason. Reasons are a set; it survives a reconnect and a rebalance."""
        ...

    def release(self, reason: str) -> None:
        """Take this reason away; intake goes on when none is left."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """
    Where a chain will run, for a pattern's own check at start.

    max_hold: in `order="key"`, the longest single wait in seconds that a lane may hold.
    """

    channel: str
    group: str
    handler: str
    order: Order
    max_hold: float
    concurrency: int
    blocking: bool
    capabilities: Capabilities


@runtime_checkable
class Checks(Protocol):
    """A pattern that can refuse to run somewhere."""

    def check(self, place: Place) -> None:
        """Raise `ConfigurationError` that names the place and what to change."""
        ...


@runtime_checkable
class Keeps(Protocol):
    """A pattern with something to open and close. One object in several chains is started once."""

    async def start(self) -> None:
        """Open; called before the first message."""
        ...

    async def close(self) -> None:
        """Close; called after the last settlement is flushed."""
        ...


@runtime_checkable
class Provides(Protocol):
    """
    A pattern that gives the handler something: by annotation, a name in `delivery.extra`.

    A parameter annotated with one of the classes gets `delivery.extra[name]`.
    """

    provides: Mapping[type[Any], str]


KINDS = ("trace", "rate_limit", "bulkhead", "dedupe", "retry", "breaker", "timeout", "inbox")
"""The default order, outermost first: wait first, claim late, one transaction for each attempt."""

_BECAUSE = {
    ("rate_limit", "dedupe"): "a message that waits for its turn must not hold a claim",
    ("bulkhead", "dedupe"): "a message that waits for a slot must not hold a claim",
    ("bulkhead", "timeout"): "waiting for a slot is not the handler's time",
    ("dedupe", "retry"): "the claim covers all attempts in place and is released before a later one",
    ("retry", "timeout"): "the timeout is for one attempt, and a timed-out attempt must be tried again",
    ("retry", "breaker"): "a breaker sees attempts, not messages",
    ("retry", "inbox"): "each attempt has a transaction of its own",
    ("timeout", "inbox"): "the timeout covers the commit",
    ("dedupe", "inbox"): "a finished message must not open a transaction",
}


def check_chain(patterns: Sequence[Pattern], handler: str) -> None:
    """
    Refuse a chain that breaks a rule, with the reason.

    Raises `ChainError`. Patterns without a `kind` may stand anywhere; a kind other than bulkhead and rate limit may
    stand once only.
    """
    seen: list[str] = []
    for pattern in patterns:
        kind = getattr(pattern, "kind", None)
        if kind not in KINDS:
            continue
        for outer in seen:
            _check_pair(outer, kind, handler)
        seen.append(kind)


def _check_pair(outer: str, inner: str, handler: str) -> None:
    if outer == inner:
        if outer in ("bulkhead", "rate_limit"):
            return
        message = f"handler {handler}: {outer} stands twice in its patterns; keep one"
        raise ChainError(message)
    if KINDS.index(outer) > KINDS.index(inner):
        because = _BECAUSE.get((inner, outer), "that is the order in which each keeps its promise")
        message = f"handler {handler}: {inner} must stand outside (before) {outer}: {because}"
        raise ChainError(message)


def with_default(patterns: Sequence[Pattern], kind: str, make: Callable[[], Pattern]) -> list[Pattern]:
    """Return the chain with a pattern of that kind put where it belongs, if it has none."""
    if any(getattr(pattern, "kind", None) == kind for pattern in patterns):
        return list(patterns)
    return placed(patterns, kind, make())


def placed(patterns: Sequence[Pattern], kind: str, pattern: Pattern) -> list[Pattern]:
    """Return the chain with a pattern of that kind put where it belongs, inside those of its own kind."""
    inner = KINDS[KINDS.index(kind) + 1 :]
    at = next(
        (index for index, have in enumerate(patterns) if getattr(have, "kind", None) in inner), len(patterns)
    )
    return [*patterns[:at], pattern, *patterns[at:]]


def wrap(endpoint: Handler, patterns: Sequence[Pattern]) -> Handler:
    """Return the endpoint with the patterns around it, the first outermost."""
    handler = endpoint
    for pattern in reversed(patterns):
        handler = pattern(handler)
    return handler
