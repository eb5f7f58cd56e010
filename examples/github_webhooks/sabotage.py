"""
What stands in for a protection that the demo takes away: `brokerkit demo --without inbox`.
"""

from collections.abc import Mapping
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from brokerkit import Ack, Delivery, Handler, Settlement

__all__ = ["transaction"]


def transaction(engine: AsyncEngine) -> "Transaction":
    """Return a pattern that opens a transaction for each attempt, as an inbox does, and remembers nothing."""
    return Transaction(engine)


class Transaction:
    """An inbox without memory."""

    kind = "inbox"
    provides: Mapping[type[Any], str] = {AsyncConnection: "connection"}

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def __call__(self, handler: Handler) -> Handler:
        """Return the handler with a transaction around each attempt."""

        async def transacted(delivery: Delivery) -> Settlement:
            async with self._engine.connect() as connection, connection.begin() as begun:
                if delivery.extra is None:
                    delivery.extra = {}
                delivery.extra["connection"] = connection
                settlement = await handler(delivery)
                if not isinstance(settlement, Ack):
                    await begun.rollback()
                return settlement

        return transacted
