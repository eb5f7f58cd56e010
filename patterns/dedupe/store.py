"""
What a memory of events for dedupe has to do; anything that has these members can be one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from brokerkit.patterns._identity import Scope

__all__ = ["DONE", "Done", "Scope", "Store", "Taken", "Token"]


@dataclass(slots=True, eq=False)
class Token:
    """
    The proof of a claim, which only its store can tell from another.

    `value` is the store's own and new for every claim, or the object itself is the proof: who has lost a claim can neither
    finish nor release it.
    """

    scope: Scope
    value: str = ""


@dataclass(frozen=True, slots=True)
class Taken:
    """Somebody else has the claim, for so many seconds more unless renewed."""

    remaining: float


@dataclass(frozen=True, slots=True)
class Done:
    """It was finished within the window."""


DONE: Final = Done()


class Store(Protocol):
    """
    A memory of what is being handled and what has finished.

    Any exception means that the store cannot be reached; the caller tries again. Leases and windows are measured by the
    store's own clock where it has one. A store may have `start()` and `close()` as well.
    """

    async def claim(self, scope: Scope, lease: float) -> Token | Taken | Done:
        """
        Claim an event for `lease` seconds; at most one claim of a scope is alive at any time.

        A claim whose lease is over may be taken over. Cancelled, it may leave a claim that ends with its lease.
        """
        ...

    async def done(self, token: Token, window: float) -> bool:
        """Remember for `window` seconds that it finished; False, and nothing changed, if the claim is no longer the token's."""
        ...

    async def release(self, token: Token) -> bool:
        """Give the claim back, as if it had never been; False, and nothing changed, if it is no longer the token's."""
        ...

    async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
        """Let claims last for `lease` seconds from now; one outcome for each, False for what is no longer the token's."""
        ...
