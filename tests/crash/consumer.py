"""
A consumer for the crash tests: appends one row for each event, with the inbox or without it.

Run as `python -m tests.crash.consumer BROKER DATABASE WITNESS inbox|bare`. WITNESS is a file of one shared byte: how many
handlers stand between their first write and their return.
"""

import asyncio
import mmap
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from sqlalchemy import Column, Insert, Integer, MetaData, String, Table, event, insert
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from brokerkit import Bus, Delivery, Pattern
from brokerkit.hooks import HookEvent, Settled
from brokerkit.patterns import inbox, retry

metadata = MetaData()
effects = Table(
    "effects",
    metadata,
    Column("row", Integer, primary_key=True),
    Column("event", String, nullable=False),
    Column("attempt", Integer, nullable=False),
)
CHANNEL, GROUP = "transfers", "ledger"


class Witness:
    """One byte in a shared file: how many handlers are between their first write and their return."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._byte = mmap.mmap(file.fileno(), 1)

    def add(self, number: int) -> None:
        self._byte[0] += number


def engine_of(database: str) -> AsyncEngine:
    engine = create_async_engine(f"sqlite+aiosqlite:///{database}", connect_args={"timeout": 30})

    @event.listens_for(engine.sync_engine, "connect")
    def fast(connection: object, _: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")  # type: ignore[attr-defined]
        connection.execute("PRAGMA synchronous=NORMAL")  # type: ignore[attr-defined]

    return engine


def bus_of(broker: str, database: str, witness: Witness, how: str) -> Bus:
    engine = engine_of(database)
    once = inbox(engine)

    @asynccontextmanager
    async def lifespan(_: Bus) -> AsyncGenerator[None]:
        yield
        await engine.dispose()

    def hook(event: HookEvent) -> None:
        if isinstance(event, Settled) and event.outcome in ("retry", "dead"):
            print(event.outcome, event.delivery, event.delivery.story, file=sys.stderr, flush=True)

    bus = Bus(broker, name="crash", lifespan=lifespan, grace=20, hooks=[hook])
    patterns: list[Pattern] = [retry(attempts=5)]

    async def append(delivery: Delivery, connection: AsyncConnection) -> None:
        row = insert(effects).values(event=delivery.event.id, attempt=delivery.attempt)
        await connection.execute(row)
        witness.add(1)
        try:
            await asyncio.sleep(0.002)
        finally:
            witness.add(-1)

    async def in_the_inbox(delivery: Delivery, connection: AsyncConnection) -> None:
        await append(delivery, connection)

    async def write(row: Insert) -> None:
        """Write a row; on a busy machine the ledger may be locked for long, and that is not what this is about."""
        while True:
            try:
                async with engine.begin() as connection:
                    await connection.execute(row)
            except OperationalError as error:
                print(f"the ledger is busy: {error.orig}", file=sys.stderr, flush=True)
                await asyncio.sleep(0.05)
            else:
                return

    async def bare(delivery: Delivery) -> None:
        row = insert(effects).values(event=delivery.event.id, attempt=delivery.attempt)
        await write(row)
        witness.add(1)
        try:
            await asyncio.sleep(0.002)
        finally:
            witness.add(-1)

    if how == "inbox":
        bus.subscriber(CHANNEL, group=GROUP, patterns=[*patterns, once])(in_the_inbox)
    else:
        bus.subscriber(CHANNEL, group=GROUP, patterns=patterns)(bare)
    return bus


async def prepare(database: str) -> None:
    """Create the tables, before the consumers start."""
    engine = engine_of(database)
    await inbox(engine).create()
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    await engine.dispose()


if __name__ == "__main__":
    broker, database, path, how = sys.argv[1:]
    asyncio.run(bus_of(broker, database, Witness(Path(path)), how).run())
