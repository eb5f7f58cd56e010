"""
The audit: one row for every event that GitHub sent, exactly once.

The row and the record that the event was handled commit together (`inbox`), so neither a redelivery by GitHub nor a killed
process can add a second row or lose one.
"""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import MetaData, insert
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import wait_random_exponential

from brokerkit import Bus, Delivery, Pattern
from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.ledger import create_tables, entry, make_ledger
from brokerkit.examples.github_webhooks.sabotage import transaction
from brokerkit.examples.github_webhooks.settings import BROKER, CHANNEL, FIXED, WITHOUT, engine_for
from brokerkit.examples.github_webhooks.witness import Witness
from brokerkit.patterns import inbox, retry, timeout

__all__ = ["bus", "prepare"]

metadata = MetaData()
ledger = make_ledger(metadata)
engine = engine_for("audit")
once = inbox(engine)
witness = Witness()
protection: Pattern = transaction(engine) if WITHOUT == "inbox" else once


@asynccontextmanager
async def lifespan(_: Bus) -> AsyncGenerator[None]:
    """Close the database at the end."""
    yield
    await engine.dispose()


bus = Bus(BROKER, name="audit", lifespan=lifespan, hooks=[witness.hook], patterns=[witness])


@bus.subscriber(
    CHANNEL,
    group="audit",
    patterns=[
        retry(attempts=5, wait=wait_random_exponential(multiplier=0.1, max=2)),
        timeout(60),
        protection,
    ],
)
async def record(delivery: Delivery, connection: AsyncConnection) -> None:
    """Append one event to the ledger."""
    event = delivery.event
    if not FIXED and trouble.is_poison("audit", event.id):
        message = f"{event.type}: this release cannot read it"
        raise ValueError(message)
    await connection.execute(insert(ledger), entry(delivery))
    witness.wrote(delivery)
    if not FIXED and trouble.crashes_audit(event.type, event.id):
        os._exit(1)  # a bug in a C extension, an out-of-memory kill


async def prepare() -> None:
    """Create the tables."""
    await once.create()
    async with engine.begin() as connection:
        await create_tables(connection, metadata)
    await engine.dispose()
