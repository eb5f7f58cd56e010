"""
Who the members of a group are: each says so to the others every few seconds.

A single-active-consumer queue hands over at once when its owner goes, so nothing here is needed for order or for takeover. It
is what lets members share the partitions: the first would keep them all. A false word makes a partition move, no more.
"""

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from brokerkit.adapters.rabbitmq.client import Channel, Client, Raw
from brokerkit.errors import BrokerkitError

__all__ = ["Presence"]

_SILENCES = 3.5
"""Intervals after which somebody who has said nothing is taken for gone."""

_LONGEST_ID = 64


class Presence:
    """One member's view of who else is there; `changed` is called when it changes."""

    def __init__(self, exchange: str, interval: float, changed: Callable[[], None]) -> None:
        self._exchange = exchange
        self._interval = interval
        self._changed = changed
        self._me = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, float] = {}
        self._channel: Channel | None = None
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, client: Client) -> None:
        """Listen, then say hello: whoever hears it answers."""
        channel = await client.channel()
        queue = await channel.declare_own_queue()
        await channel.bind_queue(queue, self._exchange, "")
        await channel.consume(queue, self._arrived, _nothing, prefetch=0, no_ack=True)
        self._channel = channel
        self._say("hello")
        self._timer = self._loop.call_later(self._interval, self._tick)

    @property
    def members(self) -> Sequence[str]:
        """All members, this one included, in an order that all share."""
        return sorted({*self._heard, self._me})

    def owns(self, part: int) -> bool:
        """Say whether a partition is this member's share."""
        members = self.members
        return members[part % len(members)] == self._me

    def _arrived(self, raw: Raw) -> None:
        word, member = _read(raw.body)
        if member is None or member == self._me:
            return
        before = self.members
        if word == "bye":
            self._heard.pop(member, None)
        else:
            self._heard[member] = self._loop.time()
        if word == "hello":
            self._say("here")
        if self.members != before:
            self._changed()

    def _tick(self) -> None:
        now = self._loop.time()
        if now - self._last > 2 * self._interval:
            # it is we who have stood still: the others get the benefit of the doubt
            self._heard = dict.fromkeys(self._heard, now)
        self._last = now
        gone = [member for member, at in self._heard.items() if now - at > _SILENCES * self._interval]
        for member in gone:
            del self._heard[member]
        self._say("here")
        self._changed()
        self._timer = self._loop.call_later(self._interval, self._tick)

    def _say(self, word: str) -> None:
        if self._channel is not None and self._channel.alive:
            self._channel.say(json.dumps({"v": 1, "member": self._me, "word": word}).encode(), self._exchange)

    async def close(self) -> None:
        """Say goodbye and stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._channel is not None:
            self._say("bye")
            try:
                await self._channel.close()
            except BrokerkitError:
                return


def _nothing() -> None:
    """The queue is this connection's own: it ends with it."""


def _read(body: bytes) -> tuple[str, str | None]:
    try:
        loaded = json.loads(body)
    except (ValueError, RecursionError):
        return "", None
    if not isinstance(loaded, dict):
        return "", None
    said = cast("dict[str, Any]", loaded)
    word, member = said.get("word"), said.get("member")
    if not isinstance(word, str) or not isinstance(member, str) or len(member) > _LONGEST_ID:
        return "", None
    return word, member
