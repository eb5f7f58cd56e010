"""
Publishing: each message confirmed, or one honest outcome within the send's time.
"""

import asyncio
from collections.abc import Sequence

from brokerkit.adapters.rabbitmq.client import Client
from brokerkit.adapters.rabbitmq.link import Link
from brokerkit.adapters.rabbitmq.outlet import Outlet
from brokerkit.adapters.rabbitmq.parcels import Parcel
from brokerkit.errors import BrokerkitError, ConnectionLost, SendError, Throttled

__all__ = ["Publisher"]


class Publisher:
    """Publishes through one connection, and one channel of it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._client: Client | None = None
        self._outlet: Outlet | None = None
        self._opening: asyncio.Lock = asyncio.Lock()

    async def client(self) -> Client:
        """Return the connection on which is published."""
        return await self._link.client()

    async def publish(self, parcels: Sequence[Parcel], deadline: float) -> Sequence[SendError | None]:
        """
        Publish and return one outcome for each, in order; ends by the deadline, a time of the loop.

        Cancelled, what is on its way stays on its way.
        """
        outlet = self._outlet
        if outlet is None or not outlet.ready:
            try:
                async with asyncio.timeout_at(deadline):
                    outlet = await self._open(deadline)
            except TimeoutError:
                return [ConnectionLost("no connection to publish on in time")] * len(parcels)
            except SendError as error:
                return [error] * len(parcels)
            except BrokerkitError as error:
                lost = ConnectionLost(str(error))
                lost.__cause__ = error
                return [lost] * len(parcels)
        return await outlet.publish(parcels, deadline)

    async def _open(self, deadline: float) -> Outlet:
        async with self._opening:
            client = await self._link.client()
            if not await client.unblocked(max(deadline - asyncio.get_running_loop().time() - 0.05, 0.05)):
                reason = "the broker takes no publishes (memory or disk alarm)"
                raise Throttled(reason)
            if self._outlet is None or self._client is not client or not self._outlet.alive:
                # What was out on a connection that is gone may hang for ever: its room is not ours.
                self._outlet = Outlet(client, await client.channel(confirms=True))
                self._client = client
            return self._outlet
