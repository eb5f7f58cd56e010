"""
Effects in a database, for the tests of the inbox: one row for each, without any key that would hide a second one.
"""

from pathlib import Path
from typing import Self

from sqlalchemy import Column, Integer, MetaData, String, Table, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from brokerkit.delivery import Delivery
from brokerkit.patterns import inbox

__all__ = ["Effects"]

_METADATA = MetaData()
_EFFECTS = Table(
    "effects",
    _METADATA,
    Column("row", Integer, primary_key=True),
    Column("event", String(200), nullable=False),
)


class Effects:
    """A file of effects."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    @classmethod
    async def open(cls, path: Path) -> Self:
        """Create the file, with the inbox's own table."""
        engine = create_async_engine(f"sqlite+aiosqlite:///{path}", connect_args={"timeout": 30})
        await inbox(engine).create()
        async with engine.begin() as connection:
            await connection.run_sync(_METADATA.create_all)
        return cls(engine)

    async def add(self, delivery: Delivery, connection: AsyncConnection) -> None:
        """Handle a message: have one effect."""
        await connection.execute(insert(_EFFECTS).values(event=delivery.event.id))

    async def close(self) -> list[str]:
        """Return the events of all effects, and close the file."""
        async with self.engine.connect() as connection:
            found = [str(row.event) for row in await connection.execute(select(_EFFECTS.c.event))]
        await self.engine.dispose()
        return found
