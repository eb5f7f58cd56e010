"""
The memory of one process: an optimisation, for it forgets at a restart and knows nothing of other processes.
"""

import asyncio
from collections.abc import Sequence

from brokerkit.errors import ConfigurationError
from brokerkit.patterns.dedupe.store import DONE, Done, Scope, Taken, Token

__all__ = ["MemoryStore"]


class MemoryStore:
    """
    Remember the last `limit` events that finished, in this process.

    Seconds are the running loop's. What was not asked for longest is forgotten first when the limit is reached.
    """

    def __init__(self, limit: int = 100_000) -> None:
        given: object = limit
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            message = f"MemoryStore({limit!r}): the limit is a whole number above 0"
            raise ConfigurationError(message)
        self.limit = limit
        self._claims: dict[Scope, tuple[Token, float]] = {}
        self._finished: dict[Scope, float] = {}
        self._count = 0

    def __repr__(self) -> str:
        return f"MemoryStore({self.limit})"

    def __len__(self) -> int:
        return len(self._finished)

    async def claim(self, scope: Scope, lease: float) -> Token | Taken | Done:
        """See `Store.claim`."""
        now = _now()
        until = self._finished.pop(scope, None)
        if until is not None and until > now:
            self._finished[scope] = until
            return DONE
        held = self._claims.get(scope)
        if held is not None and held[1] > now:
            return Taken(held[1] - now)
        self._count += 1
        token = Token(scope, str(self._count))
        self._claims[scope] = (token, now + lease)
        return token

    async def done(self, token: Token, window: float) -> bool:
        """See `Store.done`."""
        if not self._drop(token):
            return False
        finished = self._finished
        finished[token.scope] = _now() + window
        if len(finished) > self.limit:
            del finished[next(iter(finished))]
        return True

    async def release(self, token: Token) -> bool:
        """See `Store.release`."""
        return self._drop(token)

    async def renew(self, tokens: Sequence[Token], lease: float) -> Sequence[bool]:
        """See `Store.renew`."""
        until = _now() + lease
        return [self._renew(token, until) for token in tokens]

    def _drop(self, token: Token) -> bool:
        held = self._claims.get(token.scope)
        if held is None or held[0] is not token:
            return False
        del self._claims[token.scope]
        return True

    def _renew(self, token: Token, until: float) -> bool:
        held = self._claims.get(token.scope)
        if held is None or held[0] is not token:
            return False
        self._claims[token.scope] = (token, until)
        return True


def _now() -> float:
    return asyncio.get_running_loop().time()
