"""
Counts of a group, by name: each is the length of a queue that exists while the count is not zero.
"""

import asyncio
from collections.abc import Sequence

from brokerkit.adapters.rabbitmq.channel import Channel
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.adapters.rabbitmq.names import tally_queue
from brokerkit.errors import BrokerkitError, NotFound, SettleError, Unavailable
from brokerkit.message import Address

__all__ = ["Tallies"]

_KEPT = 7 * 86_400_000
_ARGUMENTS = {"x-queue-type": "quorum", "x-expires": _KEPT}


class Tallies:
    """
    The counts of one group, on the connection of a link.

    Not the one by which is consumed: in an alarm the broker stops reading a connection that publishes, acks included. Asked
    for on a channel of their own: the broker answers a question for a queue that is not there by closing it.
    """

    def __init__(self, at: Address, link: Link) -> None:
        self._at = at
        self._link = link
        self._channel: Channel | None = None
        self._lock = asyncio.Lock()

    async def tally(self, changes: Sequence[tuple[str, int]]) -> Sequence[int | SettleError]:
        """Change the counts one after the other."""
        counts: list[int | SettleError] = []
        async with self._lock:
            for name, change in changes:
                try:
                    counts.append(
                        await self._change(tally_queue(self._at.channel, self._at.group or "", name), change)
                    )
                except BrokerkitError as error:
                    await self._drop()
                    counts.append(Unavailable(f"a count could not be kept: {error}"))
        return counts

    async def _change(self, queue: str, change: int) -> int:
        before = await self._look(queue)
        after = max(0, before + change)
        if not after and before:
            await (await self._open()).delete_queue(queue)
        elif after > before:
            channel = await self._open()
            await channel.declare_queue(queue, _ARGUMENTS)
            for _ in range(after - before):
                await channel.store(b"", queue)
        else:
            for _ in range(before - after):
                await (await self._open()).drop_one(queue)
        return after

    async def _look(self, queue: str) -> int:
        channel = await self._open()
        try:
            return await channel.declare_queue(queue, passive=True)
        except NotFound:
            self._channel = None  # the broker has closed it
            return 0

    async def _open(self) -> Channel:
        if self._channel is None or not self._channel.alive:
            self._channel = await (await self._link.client()).channel(confirms=True)
        return self._channel

    async def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None and channel.alive:
            await channel.close()

    async def close(self) -> None:
        """Give the channel back, within about 2 s."""
        await self._drop()
