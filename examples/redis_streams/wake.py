"""
Hints that there is something to be had, by Redis' publish and subscribe.

A hint may be lost with the connection, so nobody depends on one: every subscription looks by itself as well.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from redis import exceptions

from brokerkit.errors import ConfigurationError, SendError
from brokerkit.examples.redis_streams.line import Line, Wire, hang_up

__all__ = ["Listener"]

_log = logging.getLogger(__name__)
_PAUSE = 0.25  # seconds between two tries to listen


class Listener:
    """One connection that listens for all subscriptions of an adapter."""

    def __init__(self, line: Line, hello: str) -> None:
        self._line = line
        self._heard: dict[str, set[Callable[[], None]]] = {hello: set()}
        self._wire: Wire | None = None
        self._task: asyncio.Task[None] | None = None

    async def add(self, channel: str, callback: Callable[[], None]) -> None:
        """Call this when something is said there, and once when listening has begun."""
        known = channel in self._heard
        self._heard.setdefault(channel, set()).add(callback)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._listen())
        elif self._wire is not None and not known:
            await self._say(self._wire, "SUBSCRIBE", channel)

    async def remove(self, channel: str, callback: Callable[[], None]) -> None:
        """Call this no more."""
        callbacks = self._heard.get(channel, set())
        callbacks.discard(callback)
        if not callbacks and self._heard.pop(channel, None) is not None and self._wire is not None:
            await self._say(self._wire, "UNSUBSCRIBE", channel)

    async def close(self) -> None:
        """Stop listening."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=1.5)

    async def _listen(self) -> None:
        while True:
            try:
                await self._hear(await self._line.open())
            except (SendError, ConfigurationError, exceptions.RedisError, OSError) as error:
                _log.debug("not listening for hints: %r", error)
            self._wire = None
            await asyncio.sleep(_PAUSE)

    async def _hear(self, wire: Wire) -> None:
        try:
            await wire.send_command("SUBSCRIBE", *self._heard)
            self._wire = wire
            while True:
                word, channel, _ = cast("tuple[bytes, bytes, object]", await wire.read_response())
                if word in {b"message", b"subscribe"}:
                    for callback in list(self._heard.get(channel.decode(), ())):
                        callback()
        finally:
            self._wire = None
            await hang_up(wire)

    @staticmethod
    async def _say(wire: Wire, word: str, channel: str) -> None:
        with suppress(
            exceptions.RedisError, OSError
        ):  # the listening task sees it too, and begins again with all of them
            await wire.send_command(word, channel)
