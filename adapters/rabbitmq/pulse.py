"""
Whether this process has stood still for so long that the broker may have given its deliveries to others.

A frozen process (a stop signal, a sleeping machine, a handler that blocks the loop) does not see its connection die: for a
moment after it wakes, everything looks as before. So it looks at the clock, and when too much of it is gone it asks the
broker for a sign of life before it hands out or settles anything.
"""

import asyncio

from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.errors import BrokerkitError

__all__ = ["Pulse"]


class Pulse:
    """The pulse of one connection. Starts with it and ends with it."""

    def __init__(self, client: Client, channel: Channel, heartbeat: float) -> None:
        self._client = client
        self._channel = channel
        self._longest = heartbeat
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._asking: asyncio.Task[None] | None = None
        self._timer = self._loop.call_later(heartbeat / 4, self._tick)
        client.lost.add_done_callback(lambda _: self._timer.cancel())

    @property
    def doubtful(self) -> bool:
        """Whether `sure` has to be awaited before anything is handed out or settled."""
        if self._asking is None and self._loop.time() - self._last > self._longest:
            self._ask()
        return self._asking is not None or not self._client.alive

    async def sure(self) -> bool:
        """Wait for the broker's answer; False if the connection is lost."""
        if self._asking is not None:
            await asyncio.wait({self._asking, self._client.lost}, return_when=asyncio.FIRST_COMPLETED)
        return self._client.alive

    def _tick(self) -> None:
        if self._client.alive:
            if not self.doubtful:
                self._last = self._loop.time()
            self._timer = self._loop.call_later(self._longest / 4, self._tick)

    def _ask(self) -> None:
        self._asking = self._loop.create_task(self._answered())

    async def _answered(self) -> None:
        asked = self._loop.time()
        try:
            await self._channel.ask()
        except BrokerkitError:
            self._client.abort()
        else:
            self._last = asked
        finally:
            self._asking = None
