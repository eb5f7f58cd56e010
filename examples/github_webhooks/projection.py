"""
The projection: for each repository what is known of it now, kept by its events in their order.

`order="key"` hands out one repository's events one after the other, over both processes, and also while one of them waits for
its retry; the others flow meanwhile. State, ledger and the record that the event was handled commit together.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, insert
from sqlalchemy.dialects.sqlite import insert as upsert
from sqlalchemy.ext.asyncio import AsyncConnection
from tenacity import wait_fixed

from brokerkit import Bus, Delivery, Event, Pattern
from brokerkit.examples.github_webhooks import trouble
from brokerkit.examples.github_webhooks.ledger import create_tables, entry, make_ledger
from brokerkit.examples.github_webhooks.sabotage import transaction
from brokerkit.examples.github_webhooks.settings import BROKER, CHANNEL, FIXED, WITHOUT, engine_for
from brokerkit.examples.github_webhooks.witness import Witness
from brokerkit.patterns import inbox, retry, timeout

__all__ = ["bus", "prepare"]

metadata = MetaData()
ledger = make_ledger(metadata)
repositories = Table(
    "repositories",
    metadata,
    Column("name", String, primary_key=True),
    Column("events", Integer, nullable=False),
    Column("open_issues", Integer),
    Column("last_type", String, nullable=False),
)
_new = upsert(repositories)
_kept = _new.on_conflict_do_update(
    index_elements=["name"],
    set_={
        "events": repositories.c.events + 1,
        "open_issues": _new.excluded.open_issues,
        "last_type": _new.excluded.last_type,
    },
)
engine = engine_for("projection")
once = inbox(engine)
witness = Witness()
protection: Pattern = transaction(engine) if WITHOUT == "inbox" else once


class NotYetVisible(Exception):
    """GitHub's API does not know yet what the event tells of."""


@asynccontextmanager
async def lifespan(_: Bus) -> AsyncGenerator[None]:
    """Close the database at the end."""
    yield
    await engine.dispose()


bus = Bus(BROKER, name="projection", lifespan=lifespan, hooks=[witness.hook], patterns=[witness])


@bus.subscriber(
    CHANNEL,
    group="projection",
    order="none" if WITHOUT == "order" else "key",
    patterns=[retry(attempts=5, wait=wait_fixed(2)), timeout(60), protection],
)
async def project(event: Event[dict[str, Any]], delivery: Delivery, connection: AsyncConnection) -> None:
    """Bring one repository up to date."""
    if not FIXED and trouble.is_poison("projection", event.id):
        message = f"{event.type}: this release cannot apply it"
        raise ValueError(message)
    if delivery.attempt == 1 and trouble.is_early(event.id):
        raise NotYetVisible(event.type)
    await connection.execute(insert(ledger), entry(delivery))
    witness.wrote(delivery)
    if event.subject is not None:
        await _apply(connection, event, event.subject)


async def _apply(connection: AsyncConnection, event: Event[dict[str, Any]], name: str) -> None:
    issues = event.data["repository"].get("open_issues_count")
    await connection.execute(
        _kept, {"name": name, "events": 1, "open_issues": issues, "last_type": event.type}
    )


async def prepare() -> None:
    """Create the tables."""
    await once.create()
    async with engine.begin() as connection:
        await create_tables(connection, metadata)
    await engine.dispose()
