"""
Who the members of a group are: each says so to the others every few seconds.

A single-active-consumer queue hands over at once when its owner goes, so nothing here is needed for order or for takeover. It
is what lets members share the partitions: the first would keep them all. A false word makes a partition move, no more.
"""

import asyncio
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any, cast

from brokerkit.adapters.rabbitmq.channel import Channel, Raw
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.errors import BrokerkitError

__all__ = ["Presence"]

_log = logging.getLogger(__name__)

_SILENCES = 3.5
"""Intervals after which somebody who has said nothing is taken for gone."""

_LONGEST_ID = 64


class Presence:
    """
    One member's view of who else is there; `changed` is called when it changes.

    On the connection of a link, and not the one by which is consumed: in an alarm the broker stops reading a connection that
    publishes, acks included. When it is lost the member listens anew with its next sign of life.
    """

    def __init__(self, exchange: str, interval: float, changed: Callable[[], None], link: Link) -> None:
        self._exchange = exchange
        self._interval = interval
        self._changed = changed
        self._link = link
        self._me = secrets.token_hex(8)
        self._loop = asyncio.get_running_loop()
        self._heard: dict[str, float] = {}
        self._channel: Channel | None = None
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Listen, then say hello: whoever hears it answers."""
        await self._listen()
        self._timer = self._loop.call_later(self._interval, self._tick)

    async def _listen(self) -> None:
        self._channel = channel = await (await self._link.client()).channel()
        queue = await channel.declare_own_queue()
        await channel.bind_queue(queue, self._exchange, "")
        await channel.consume(queue, self._arrived, _nothing, prefetch=0, no_ack=True)
        self._say("hello")

    async def _listen_again(self) -> None:
        try:
            await self._listen()
        except BrokerkitError as error:
            _log.info("%s: the other members cannot be heard (%s); tried again", self._exchange, error)
            await self._drop()

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
        if self._channel is not None and self._channel.alive:
            self._say("here")
        elif self._again is None or self._again.done():
            self._again = self._loop.create_task(self._listen_again())
        self._changed()
        self._timer = self._loop.call_later(self._interval, self._tick)

    def _say(self, word: str) -> None:
        if self._channel is not None and self._channel.alive:
            self._channel.say(json.dumps({"v": 1, "member": self._me, "word": word}).encode(), self._exchange)

    async def close(self) -> None:
        """Say goodbye and stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        if self._again is not None:
            self._again.cancel()
            await asyncio.wait({self._again}, timeout=1.0)
        self._say("bye")
        await self._drop()

    async def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and channel.alive:
            await channel.close()


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
