"""
The memory of one process: an optimisation, for it forgets at a restart and knows nothing of other processes.
"""

import time
from collections.abc import Callable, Sequence

from brokerkit.errors import ConfigurationError
from brokerkit.patterns.dedupe.store import DONE, Done, Scope, Taken, Token

__all__ = ["MemoryStore"]


class MemoryStore:
    """
    Remember the last `limit` events that finished, in this process.

    What was not asked for longest is forgotten first when the limit is reached.

    clock: seconds that only go forward, from anywhere.
    """

    def __init__(self, limit: int = 100_000, *, clock: Callable[[], float] = time.monotonic) -> None:
        given: object = limit
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            message = f"MemoryStore({limit!r}): the limit is a whole number above 0"
            raise ConfigurationError(message)
        self.limit = limit
        self._clock = clock
        self._claims: dict[Scope, _Claim] = {}
        self._finished: dict[Scope, float] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({self.limit})"

    def __len__(self) -> int:
        return len(self._finished)

    async def claim(self, scope: Scope, lease: float) -> Token | Taken | Done:
        """See `Store.claim`."""
        now = self._clock()
        if scope in self._finished and self._remembers(scope, now):
            return DONE
        claim = _Claim(scope)
        claim.until = now + lease
        held = self._claims.setdefault(scope, claim)
        if held is claim:
            return claim
        if held.until > now:
            return Taken(held.until - now)
        self._claims[scope] = claim
        return claim

    async def done(self, token: Token, window: float) -> bool:
        """See `Store.done`."""
        scope = token.scope
        held = self._claims.pop(scope, None)
        if held is not token:
            if held is not None:
                self._claims[scope] = held
            return False
        finished = self._finished
        finished[scope] = self._clock() + window
        if len(finished) > self.limit:
            del finished[next(iter(finished))]
        return True

    async def release(self, token: Token) -> bool:
        """See `Store.release`."""
        if self._claims.get(token.scope) is not token:
            return False
        del self._claims[token.scope]
        return True

    async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
        """See `Store.renew`."""
        until = self._clock() + lease
        return [self._renew(token, until) for token in tokens]

    def _remembers(self, scope: Scope, now: float) -> bool:
        until = self._finished.pop(scope)
        if until <= now:
            return False
        self._finished[scope] = until  # behind the others: it was asked for just now
        return True

    def _renew(self, token: Token, until: float) -> bool:
        held = self._claims.get(token.scope)
        if held is None or held is not token:
            return False
        held.until = until
        return True


class _Claim(Token):
    """A claim and its token in one; being this very object is the proof."""

    __slots__ = ("until",)

    until: float
