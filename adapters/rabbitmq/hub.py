"""
The connection by which is consumed, shared by the subscriptions of one adapter, with its pulse.
"""

import asyncio

from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.adapters.rabbitmq.pulse import Pulse

__all__ = ["Hub"]


class Hub:
    """Gives out the consuming connection and its pulse: acks must not stall behind a blocked publish."""

    def __init__(self, link: Link, heartbeat: float) -> None:
        self._link = link
        self._heartbeat = heartbeat
        self._client: Client | None = None
        self._pulse: Pulse | None = None
        self._lock = asyncio.Lock()

    async def client(self) -> tuple[Client, Pulse]:
        """Return the connection, made if there is none; raises as `Link.client`."""
        async with self._lock:
            client = await self._link.client()
            if self._pulse is None or self._client is not client:
                self._pulse = Pulse(client, await client.channel(), self._heartbeat)
                self._client = client
            return client, self._pulse

    async def close(self) -> None:
        """Close for good."""
        await self._link.close()
