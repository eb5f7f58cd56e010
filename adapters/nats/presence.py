"""
The members of a group with order by key, as they know each other.

Only a hint: each says now and then that it is there and what it owns, over a subject that nobody keeps. Who owns a partition
is decided by the server; this makes that nobody reaches for more than its share. A member that hears nobody takes all.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any, cast

from brokerkit.adapters.nats.failure import NoAnswer
from brokerkit.adapters.nats.link import Incoming, Link, Listener
from brokerkit.adapters.nats.shares import shares

__all__ = ["Presence"]

_SILENCE = 3


class Presence:
    """
    One member's view of the group.

    beat: seconds between two signs of life; three beats of silence, and a member is taken for gone. owned: what this one owns
    now. on_change: called when somebody has come or gone, or owns something else.
    """

    def __init__(
        self,
        link: Link,
        subject: str,
        *,
        beat: float,
        owned: Callable[[], AbstractSet[int]],
        on_change: Callable[[], None],
    ) -> None:
        self.me = secrets.token_hex(8)
        self._link = link
        self._subject = subject
        self._beat = beat
        self._owned = owned
        self._on_change = on_change
        self._others: dict[str, tuple[frozenset[int], float]] = {}
        self._listener: Listener | None = None
        self._said = 0.0

    async def start(self) -> None:
        """Begin to listen, and say that this one is there: the others answer at once."""
        self._listener = await self._link.listen(self._subject, self._hear)
        await self.say("hello")

    async def say(self, what: str = "here") -> None:
        """Give a sign of life; unheard, it is only a hint less."""
        self._said = asyncio.get_running_loop().time()
        body = {"id": self.me, "is": what, "owns": sorted(self._owned())}
        try:
            await self._link.publish(self._subject, json.dumps(body).encode())
        except NoAnswer:
            return

    async def turn(self) -> None:
        """Do what is due: give a sign of life, and forget those that gave none."""
        now = asyncio.get_running_loop().time()
        gone = [other for other, (_, heard) in self._others.items() if now - heard > _SILENCE * self._beat]
        for other in gone:
            del self._others[other]
        if gone:
            self._on_change()
        if now - self._said >= self._beat:
            await self.say()

    def plan(self, count: int) -> set[int]:
        """Return the partitions that this member should own."""
        owned: dict[str, AbstractSet[int]] = {other: owns for other, (owns, _) in self._others.items()}
        owned[self.me] = self._owned()
        return {part for part, member in shares(count, owned).items() if member == self.me}

    async def close(self) -> None:
        """Say good-bye."""
        await self.say("bye")
        if self._listener is not None:
            await self._link.drain(self._listener)

    def _hear(self, message: Incoming) -> None:
        other, what, owns = _read(message.data)
        if not other or other == self.me:
            return
        known = self._others.pop(other, None)
        if what != "bye":
            self._others[other] = (owns, asyncio.get_running_loop().time())
        if what == "hello":
            task = asyncio.ensure_future(self.say())
            task.add_done_callback(lambda _: None)
        if what == "bye" or known is None or known[0] != owns:
            self._on_change()


def _read(data: bytes) -> tuple[str, str, frozenset[int]]:
    """Read a sign of life; a stranger's noise is nobody's."""
    try:
        found = cast("dict[str, Any]", json.loads(data))
        owns = frozenset(int(part) for part in found["owns"])
        return str(found["id"]), str(found["is"]), owns
    except (ValueError, TypeError, KeyError):
        return "", "", frozenset()
