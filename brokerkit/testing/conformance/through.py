"""
An adapter behind glass: everything passes, until a test lets sends to some places fail.
"""

from collections.abc import Sequence

from brokerkit.adapter import Adapter, OnLost, Order, Provisions, Start, Subscription
from brokerkit.errors import ConnectionLost, SendError
from brokerkit.message import Address, Message

__all__ = ["Through", "through"]


class Through:
    """
    Wraps an adapter that the harness has connected.

    refused: places (`inlet`, `dead`; None for channels) to which no message is sent; each is answered with `ConnectionLost`.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.capabilities = adapter.capabilities
        self.refused: set[str | None] = set()
        self._adapter = adapter

    async def connect(self) -> None:
        """Do nothing: it is connected."""

    async def send(
        self,
        to: Address,
        messages: Sequence[Message],
        *,
        after: float | Sequence[float] = 0,
        must_route: bool = False,
    ) -> Sequence[SendError | None]:
        """Send, or refuse each message."""
        if to.place in self.refused:
            return [ConnectionLost(f"the test refuses what goes to {to}")] * len(messages)
        return await self._adapter.send(to, messages, after=after, must_route=must_route)

    async def subscribe(
        self, at: Address, *, order: Order, start: Start, prefetch: int, on_lost: OnLost
    ) -> Subscription:
        """Subscribe."""
        return await self._adapter.subscribe(at, order=order, start=start, prefetch=prefetch, on_lost=on_lost)

    async def close(self) -> None:
        """Close."""
        await self._adapter.close()


class _ThroughProvisions(Through):
    """The same for an adapter that provisions."""

    def __init__(self, adapter: Adapter, provisions: Provisions) -> None:
        super().__init__(adapter)
        self._provisions = provisions

    async def provision(
        self, places: Sequence[tuple[Address, Start, Order]], *, create: bool
    ) -> Sequence[str]:
        """Create what is missing, or only name it."""
        return await self._provisions.provision(places, create=create)


def through(adapter: Adapter) -> Through:
    """Return the adapter behind glass; it provisions if the adapter does, for the bus looks at that."""
    return _ThroughProvisions(adapter, adapter) if isinstance(adapter, Provisions) else Through(adapter)
